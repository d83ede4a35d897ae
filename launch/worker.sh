#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Run by launch/tpu.sh on each worker of a slice, in the copied checkout:
#   launch/worker.sh install [EXTRAS]   a virtual environment with jax for TPU and this checkout
#   launch/worker.sh mount BUCKET       a Cloud Storage bucket at /mnt/BUCKET
#   launch/worker.sh start FLAGS        rlvlm_jax.main, which outlives the connection
#   launch/worker.sh follow LINES       its log from that line ("+1": all of it) until it ends
#   launch/worker.sh state              "running", "exit STATUS [stopped]" or "gone"
#   launch/worker.sh stop               SIGTERM: it writes a checkpoint and exits with 75
set -euo pipefail

run="$HOME/rlvlm_run" # log, pid, exit, stopped
secrets="$HOME/.rlvlm_env"
cd "$(dirname "$0")/.."

# After a restart of the machine, the pid may belong to another process.
is_running() {
    [ -s "$run/pid" ] && tr '\0' ' ' <"/proc/$(cat "$run/pid")/cmdline" 2>/dev/null |
        grep -q "rlvlm_jax.main"
}

install() {
    # Images of TPU machines may have a Python older than 3.11; uv fetches a newer one.
    python3 -m pip install --quiet --user uv
    [ -x .venv/bin/python ] || "$HOME/.local/bin/uv" venv --quiet --python '>=3.11' .venv
    "$HOME/.local/bin/uv" pip install --quiet --python .venv/bin/python 'jax[tpu]' -e ".${1:-}"
}

mount_bucket() {
    if ! command -v gcsfuse >/dev/null && ! { sudo apt-get -qq update && sudo apt-get -qq install gcsfuse; }; then
        echo "launch/worker.sh: this image has no package gcsfuse; install it as Cloud Storage FUSE's" \
            "documentation says, or leave --bucket out and mount other storage that all workers share" >&2
        exit 2
    fi
    sudo mkdir -p "/mnt/$1"
    sudo chown "$(id -un)" "/mnt/$1"
    # A checkpoint is written under another name and renamed; by default gcsfuse renames no directory.
    mountpoint -q "/mnt/$1" || gcsfuse --implicit-dirs --rename-dir-limit=200000 "$1" "/mnt/$1"
}

start() {
    if [ -f "$secrets" ]; then
        set -a
        # shellcheck source=/dev/null
        . "$secrets"
        set +a
        rm -f "$secrets"
    fi
    if is_running; then
        echo "launch/worker.sh: a run is already in progress here" >&2
        exit 1
    fi
    mkdir -p "$run"
    rm -f "$run/pid" "$run/exit" "$run/stopped"
    # shellcheck disable=SC2016  # expanded by the inner bash, which outlives this one
    nohup setsid bash -c '"$@" & echo $! >"$0/pid"; wait $!; echo $? >"$0/exit"' "$run" \
        .venv/bin/python -m rlvlm_jax.main "$@" >"$run/log" 2>&1 </dev/null &
    for _ in $(seq 100); do
        [ ! -s "$run/pid" ] || exit 0
        sleep 0.1
    done
    echo "launch/worker.sh: the run did not start" >&2
    exit 1
}

state() {
    for _ in 1 2 3; do # its status is written just after it ends
        if [ -s "$run/exit" ]; then
            echo "exit $(cat "$run/exit")$([ ! -e "$run/stopped" ] || echo " stopped")"
            exit 0
        elif is_running; then
            echo "running"
            exit 0
        fi
        sleep 0.5
    done
    echo "gone"
}

case "${1:-}" in
    install) install "${2:-}" ;;
    mount) mount_bucket "$2" ;;
    start)
        shift
        start "$@"
        ;;
    follow) exec tail -n "$2" -F --pid="$(cat "$run/pid")" -s 0.2 "$run/log" ;;
    state) state ;;
    stop)
        if is_running; then
            touch "$run/stopped"
            kill -TERM "$(cat "$run/pid")"
        fi
        ;;
    *)
        echo "usage: launch/worker.sh install|mount|start|follow|state|stop ..." >&2
        exit 2
        ;;
esac
