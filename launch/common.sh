# shellcheck shell=bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the other scripts: how a command is shown, run, asked and interrupted.

dry_run=""                 # set by --dry-run: commands are shown and not run
child=""                   # the command under way
poll_s="${POLL_S:-20}"     # seconds between two looks at something that takes time
exec 3>&1                  # where --dry-run shows commands, inside $(...) too

# Ends with status 2 and one sentence: what the user can mend.
usage() {
    echo "launch/$(basename "$0"): $*" >&2
    exit 2
}

say() {
    echo "launch/$(basename "$0"): $*" >&2
}

# need NAME VALUE HOW: refuses to go on without a value.
need() {
    [ -n "$2" ] || usage "$1 is missing; give $3"
}

# Shows a command as a shell would read it again, on one line.
show() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
}

# Runs a command, or shows it. In the background, so that a signal is answered at once.
call() {
    if [ -n "$dry_run" ]; then
        show "$@" >&3
        return 0
    fi
    local status=0
    "$@" <&0 &
    child=$!
    wait "$child" || status=$?
    child=""
    return "$status"
}

# Prints what a command that changes nothing answers; a passing fault is not an answer.
ask() {
    local answer
    if [ -n "$dry_run" ]; then
        show "$@" >&3
        return 0
    fi
    for _ in 1 2 3; do
        if answer="$("$@")"; then
            printf '%s\n' "$answer"
            return 0
        fi
        sleep "$poll_s"
    done
    return 1
}

pause() {
    [ -n "$dry_run" ] || call sleep "$poll_s"
}

# on_end FUNCTION: runs it when the script ends, however that comes about.
on_end() {
    # shellcheck disable=SC2064  # the function's name is known now
    trap "$1" EXIT
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
}

interrupted() {
    if [ -n "$child" ] && kill -STOP "$child" 2>/dev/null; then
        pkill -P "$child" || true # the ssh of a gcloud; stopped, it cannot start another one
        kill "$child"
        kill -CONT "$child"
    fi
    exit "$1"
}
