#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs this checkout into .venv and runs a recipe on this machine:
#   launch/run.sh cpu   configs/tiny.py      --workdir=runs/tiny
#   launch/run.sh cuda  configs/mm_eureka.py --workdir=runs/mm_eureka --config.data.train=FILE
#   launch/run.sh tpu   configs/mm_eureka.py --workdir=/mnt/disk/mm_eureka ...
# Run again, it goes on from the newest checkpoint. Exit status 75: preempted, run it again.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: launch/run.sh cpu|cuda|tpu CONFIG [flags of rlvlm_jax.main]" >&2
    exit 2
fi
case "$1" in
    cpu) extra="" ;;
    cuda) extra="jax[cuda13]" ;;
    tpu) extra="jax[tpu]" ;;
    *)
        echo "launch/run.sh: the first argument is '$1', expected cpu, cuda or tpu" >&2
        exit 2
        ;;
esac
config="$2"
shift 2
cd "$(dirname "$0")/.."
python3 -m venv .venv
.venv/bin/pip install --quiet -e . ${extra:+"$extra"}
exec .venv/bin/python -m rlvlm_jax.main --config="$config" "$@"
