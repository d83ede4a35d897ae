# shellcheck shell=bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the other scripts: shows, runs, queries and interrupts commands.

dry_run=""                 # set by --dry-run: commands are shown and not run
child=""                   # the running command
outside=""                 # set if a recipe need not be in the checkout
poll_s="${POLL_S:-20}"     # seconds between two checks of something slow
unset CDPATH               # else "cd" may go elsewhere and print the path
root="$(cd "$(dirname "$0")/.." && pwd)" # the checkout
exec 3>&1                  # --dry-run shows commands here, inside $(...) too

# Exits with status 2 and one sentence about something the user can fix.
usage() {
    echo "launch/$(basename "$0"): $*" >&2
    exit 2
}

say() {
    echo "launch/$(basename "$0"): $*" >&2
}

[[ "$poll_s" =~ ^[0-9]+([.][0-9]+)?$ ]] || usage "POLL_S=$poll_s: expected seconds"

# need NAME VALUE HOW: exits if the value is missing.
need() {
    [ -n "$2" ] || usage "$1 is missing; give $3"
}

# recipe CONFIG FLAG...: sets config and workdir, and refuses what neither this script nor
# rlvlm_jax.main takes: a misspelt flag must not be noticed on machines that cost money.
recipe() {
    local argument before=""
    config="${1:-}" workdir=""
    [[ "$config" != -* ]] || config=""
    need "the recipe" "$config" "CONFIG first, such as configs/mm_eureka.py"
    if [ ! -f "$root/${config%%:*}" ]; then
        [ -f "${outside:+${config%%:*}}" ] || usage "$config: there is no such file in this checkout"
        [[ "$config" = /* ]] || config="$PWD/$config"
    fi
    # shellcheck disable=SC2034  # workdir: read by the calling script
    for argument in "${@:2}"; do
        case "$argument" in
            --workdir=*) workdir="${argument#*=}" ;;
            --config.* | --noconfig.*) ;;
            *)
                [[ "$before" == --config.* && "$argument" != -[!0-9.]* ]] || # its value, without "="
                    usage "$argument is not understood: this script's flags are at its head, with a" \
                        "'=' before a value; rlvlm_jax.main takes --workdir=DIR and --config.KEY=VALUE"
                ;;
        esac
        before="${argument##*=*}"
    done
}

# Shows a command as a shell would read it again, on one line.
show() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
}

# Runs a command, or shows it. In the background, so that a signal is handled at once.
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

# Prints the output of a read-only command; retries after a transient error.
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

# on_end FUNCTION: runs it when the script ends, for whatever reason.
on_end() {
    # shellcheck disable=SC2064  # the function's name is expanded now
    trap "$1" EXIT
    trap 'interrupted 129' HUP
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    trap 'interrupted 141' PIPE
}

# Called before the final check of what exists, whose result must reach the user. After Ctrl-C a
# "| tee" is gone; the terminal is not.
last_look() {
    trap '' HUP INT TERM PIPE
    set +e
    { say "looking at what exists" 2>&4; } 4>&2 2>/dev/null ||
        { { : >/dev/tty; } 2>/dev/null && exec 2>/dev/tty; }
}

# Ends a process and its children, e.g. the ssh of a gcloud. It is stopped first, so it cannot start
# others.
end_tree() {
    local started
    kill -STOP "$1" 2>/dev/null || return 0
    for started in $(pgrep -P "$1"); do end_tree "$started"; done
    kill "$1" 2>/dev/null || true
    kill -CONT "$1" 2>/dev/null || true
}

interrupted() {
    if [ -n "$child" ]; then
        end_tree "$child"
        for _ in $(seq 100); do # its last action must come before the final check
            kill -0 "$child" 2>/dev/null || break
            sleep 0.1 || true
        done
    fi
    exit "$1"
}
