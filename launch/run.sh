#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs this checkout into .venv and runs a recipe on this machine, with all its devices:
#   launch/run.sh cpu   configs/tiny.py      --workdir=runs/tiny
#   launch/run.sh cuda  configs/mm_eureka.py --workdir=runs/mm_eureka --config.data.train=FILE
#   launch/run.sh tpu   configs/mm_eureka.py --workdir=/mnt/disk/mm_eureka ...
# Run it again to resume from the newest checkpoint. Exit status 75: preempted, run it again. With
# RETRIES=10 in front it restarts by itself up to ten times, unless this script is told to stop.
# --dry-run shows every command and runs none.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

program=()
for argument in "$@"; do
    if [ "$argument" = --dry-run ]; then dry_run=1; else program+=("$argument"); fi
done
if [ ${#program[@]} -lt 2 ]; then
    echo "usage: launch/run.sh [--dry-run] cpu|cuda|tpu CONFIG [flags of rlvlm_jax.main]" >&2
    exit 2
fi
case "${program[0]}" in
    cpu) extra="" ;;
    cuda) extra="jax[cuda13]" ;;
    tpu) extra="jax[tpu]" ;;
    *) usage "the first argument is '${program[0]}', expected cpu, cuda or tpu" ;;
esac
retries="${RETRIES:-0}"
[[ "$retries" =~ ^[0-9]+$ ]] || usage "RETRIES=$retries: expected a number, 0 or more"
outside=1
recipe "${program[@]:1}"
need "the work directory" "$workdir" "--workdir=DIR"
cd "$root"
main=(.venv/bin/python -m rlvlm_jax.main "--config=$config" "${program[@]:2}")

[ -z "$dry_run" ] || show cd "$root"
on_end true # an interrupt also ends an installation
call python3 -m venv .venv
call .venv/bin/pip install --quiet -e . ${extra:+"$extra"}
trap - EXIT HUP INT TERM PIPE
if [ -n "$dry_run" ]; then
    call "${main[@]}"
    exit 0
elif [ "$retries" -eq 0 ]; then
    exec "${main[@]}"
fi

# If told to stop, it passes that on to the recipe, which writes a checkpoint, and does not restart.
told=""
trap 'told="x$told"; kill -TERM "$child" 2>/dev/null || true' INT TERM
for ((again = 0; again <= retries; again++)); do
    [ "$again" -eq 0 ] || say "preempted: restarting, $again of at most $retries times"
    "${main[@]}" <&0 &
    child=$!
    while true; do
        before="$told"
        status=0
        wait "$child" || status=$?
        [ "$told" != "$before" ] || break # else a signal ended the wait, not the recipe
    done
    if [ "$status" -ne 75 ] || [ -n "$told" ]; then break; fi
done
exit "$status"
