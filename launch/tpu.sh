#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs a recipe on a slice of Cloud TPUs with gcloud, from requesting the slice to deleting it:
#   launch/tpu.sh all configs/mm_eureka.py --workdir=/mnt/BUCKET/mm_eureka --bucket=BUCKET \
#       --project=PROJECT --zone=us-west4-a --name=mm-eureka --accelerator=v5e-64 --spot \
#       --config.data.train=/mnt/BUCKET/train.jsonl
# or step by step, each with --project, --zone (or $PROJECT, $ZONE) and --name:
#   create   requests the slice, waits for it, copies the checkout's last commit, installs
#   run      CONFIG --workdir=DIR [flags of rlvlm_jax.main]: starts it on all workers, shows the log
#            of worker 0, exits with the recipe's status; Ctrl-C here does not stop it there
#   logs     shows that log again until the run ends
#   status   what exists, and whether the recipe runs
#   stop     SIGTERM to all workers: they write a checkpoint and exit with 75
#   delete   deletes everything with this name and checks that it is gone
#   all      create, run, delete; repeated after a preemption, up to --retries times
# --accelerator   v5e-16 (or v5litepod-16, gcloud's name), v5p-32, v6e-64, ...
# --runtime       image of the machines; by default the one for the accelerator
# --slices=N      several slices as one run
# --spot          may be preempted, costs less
# --valid-until=6h  how long the request may wait for free machines
# --bucket=NAME   mounts a Cloud Storage bucket at /mnt/NAME; DIR must be on storage all hosts share,
#                 or checkpoints in a bucket by --config.log.checkpoints=gs://NAME/DIR
# --retries=10 --keep   for all: how often to restart; do not delete at the end
# --dry-run       shows every command and runs none
# HF_TOKEN and WANDB_API_KEY are read from the environment and copied to the workers in a file of
# mode 600, which is removed when the run starts. POLL_S, WAIT_S: seconds between two checks for the
# slice, and in total. Exit status: the recipe's (0, 2, 75, 1); 2 also for a missing flag.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

project="${PROJECT:-}" zone="${ZONE:-}" name="" accelerator="" runtime="" slices=1 spot="" bucket=""
valid_until=6h retries=10 keep="" program=()
begun=""   # something with this name may exist: report it at the end
asking=""  # requested, but not listed yet
ours=""    # this script requested the slice, so it may delete it
stopped="" # the run ended because somebody stopped it
scratch=""

command="${1:-}"
[ $# -eq 0 ] || shift
case "$command" in
    create | run | logs | status | stop | delete | all) ;;
    *) usage "the first argument is '$command', expected create, run, logs, status, stop, delete or all" ;;
esac
for argument in "$@"; do
    value="${argument#*=}"
    case "$argument" in
        --project=*) project="$value" ;;
        --zone=*) zone="$value" ;;
        --name=*) name="$value" ;;
        --accelerator=*) accelerator="$value" ;;
        --runtime=*) runtime="$value" ;;
        --slices=*) slices="$value" ;;
        --bucket=*) bucket="$value" ;;
        --valid-until=*) valid_until="$value" ;;
        --retries=*) retries="$value" ;;
        --spot) spot=1 ;;
        --keep) keep=1 ;;
        --dry-run) dry_run=1 ;;
        --project | --zone | --name | --accelerator | --runtime | --slices | --bucket | --retries)
            usage "$argument needs its value after a '=': $argument=VALUE"
            ;;
        *) program+=("$argument") ;;
    esac
done

# ---- arguments -------------------------------------------------------------------------

need "the project" "$project" "--project=PROJECT or \$PROJECT"
need "the zone" "$zone" "--zone=ZONE or \$ZONE"
need "the name" "$name" "--name=NAME"
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    usage "--name=$name: expected lower-case letters, digits and '-', a letter first"
[[ "$slices" =~ ^[1-9][0-9]*$ ]] || usage "--slices=$slices: expected a number of slices, 1 or more"
[[ "${WAIT_S:=86400}" =~ ^(0|[1-9][0-9]*)$ ]] || usage "WAIT_S=$WAIT_S: expected seconds"
[[ "$bucket" != *[/:]* ]] || usage "--bucket=$bucket: expected the bucket's name alone"
[[ "$retries" =~ ^[0-9]+$ ]] || usage "--retries=$retries: expected a number, 0 or more"
case "$command" in
    create | all)
        need "the accelerator" "$accelerator" "--accelerator=TYPE, such as v5litepod-16"
        case "$accelerator" in v5e-*) accelerator="v5litepod-${accelerator#v5e-}" ;; esac
        case "${runtime:+given}$accelerator" in
            given*) ;;
            v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
            v5p-*) runtime=v2-alpha-tpuv5 ;;
            v6e-*) runtime=v2-alpha-tpuv6e ;;
            v[234]-*) runtime="tpu-ubuntu2204-base" ;;
            *) usage "--accelerator=$accelerator: its image is not known here; give --runtime=VERSION too" ;;
        esac
        ;;
esac
case "$command" in
    run | all)
        recipe ${program[@]+"${program[@]}"}
        need "the work directory" "$workdir" "--workdir=DIR on storage that all workers share"
        [[ "$workdir" = gs://* ]] &&
            usage "--workdir=$workdir: records need a path; mount the bucket with --bucket, or give a" \
                "local --workdir and --config.log.checkpoints=$workdir"
        [[ "$workdir" = /* ]] ||
            usage "--workdir=$workdir: each worker would have its own; give a path from / on shared storage"
        program=("--config=$config" "${program[@]:1}")
        ;;
    *) [ ${#program[@]} -eq 0 ] || usage "${program[0]}: '$command' takes no such argument" ;;
esac
[ -n "$dry_run" ] || command -v gcloud >/dev/null || usage "gcloud is not on the PATH; install the Google Cloud CLI"

tpu=(gcloud compute tpus)
where=(--project="$project" --zone="$zone")
nodes=("$name")
if [ "$slices" -gt 1 ]; then
    nodes=()
    for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
delete_queued=("${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet)

# ---- what exists --------------------------------------------------------------------------------

# Prints a line "KIND NAME STATE" for each existing resource of this name, queued ones first. Machines
# are listed even if their queued resource is gone.
existing() {
    local queued vms
    queued="$(ask "${tpu[@]}" queued-resources list "${where[@]}" \
        --format='value(name.basename(),state.state)')" || return 1
    vms="$(ask "${tpu[@]}" tpu-vm list "${where[@]}" \
        --format='value(name.basename(),state,queuedResource.basename())')" || return 1
    awk -v name="$name" '$1 == name {print "queued-resource", $1, $2}' <<<"$queued"
    awk -v queued="$name" -v nodes=" ${nodes[*]} " \
        '$3 == queued || ($3 == "" && index(nodes, " " $1 " ")) {print "tpu-vm", $1, $2}' <<<"$vms"
}

# Runs when the script ends: reports everything that still costs money.
report() {
    local status=$? left
    [ -z "$scratch" ] || rm -rf "$scratch"
    if [ -n "$begun" ] && [ -z "$dry_run" ]; then
        last_look
        if ! left="$(existing)"; then
            say "gcloud does not say what exists: $name may still be there and cost money; delete it with"
            show "${delete_queued[@]}" >&2
            [ "$status" -ne 0 ] || status=1
        elif [ -n "$left" ]; then
            say "this still exists, and costs money until it is deleted:"
            echo "$left" >&2
            say "delete it with"
            show_deletion "$left" >&2
        elif [ -n "$asking" ]; then
            say "nothing named $name exists yet, but it was being asked for: it may still be there" \
                "later and cost money; delete it with"
            show "${delete_queued[@]}" >&2
        else
            say "nothing named $name exists"
        fi
    fi
    exit "$status"
}

# show_deletion LINES: the commands that delete what `existing` printed.
show_deletion() {
    local kind node
    case "$1" in "queued-resource "*)
        show "${delete_queued[@]}"
        return
        ;;
    esac
    while read -r kind node _; do
        show "${tpu[@]}" "$kind" delete "$node" "${where[@]}" --quiet
    done <<<"$1"
}

queue_state() {
    ask "${tpu[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
}

# Returns whether the slice was preempted. Its queued resource may stay ACTIVE for a while after that.
# A slice that somebody deleted is not requested again.
is_preempted() {
    local state left
    state="$(queue_state)" || return 1
    case "$state" in
        SUSPENDING | SUSPENDED | FAILED) return 0 ;;
        DELETING) return 1 ;;
    esac
    left="$(existing)" || return 1
    grep -qE '^tpu-vm .* (PREEMPTED|TERMINATED|STOPPING|STOPPED|REPAIRING|RESTARTING)$' <<<"$left"
}

# ---- the commands -------------------------------------------------------------------------------

# remote NODE WORKERS ARGUMENT...: runs launch/worker.sh there; the worker's shell parses the arguments
# a second time.
remote() {
    local node="$1" workers="$2"
    shift 2
    "${how:-call}" "${tpu[@]}" tpu-vm ssh "$node" "${where[@]}" --worker="$workers" \
        --ssh-flag=-oServerAliveInterval=30 \
        --command="rlvlm_jax/launch/worker.sh$(printf ' %q' "$@")"
}

# Makes the archive that is copied to the workers, before anything costs money.
pack() {
    local file="$scratch/rlvlm_jax.tar.gz"
    if [ -z "$dry_run" ] && ! git -C "$root" rev-parse --quiet HEAD >/dev/null 2>&1; then
        say "$root is no git checkout; its files are copied as they are"
        call tar -czf "$file" -C "$root" LICENSE README.md configs launch pyproject.toml rlvlm_jax
        return
    fi
    [ -n "$dry_run" ] || [ -z "${config:-}" ] ||
        git -C "$root" cat-file -e "HEAD:./${config%%:*}" 2>/dev/null ||
        usage "$config is not in the last commit, and only that is copied; commit it"
    [ -n "$dry_run" ] || [ -z "$(git -C "$root" status --porcelain)" ] ||
        say "the checkout has changes that are not committed; they are not copied"
    call git -C "$root" archive --format=tar.gz --output="$file" HEAD
}

# Returns 75 if the slice was preempted meanwhile.
create() {
    local left state before="" node deadline=$((SECONDS + WAIT_S))
    local shape=(--node-id="$name")
    [ "$slices" -eq 1 ] || shape=(--node-count="$slices" --node-prefix="$name")
    pack || return 1
    begun=1
    left="$(existing)" || return 1
    if [ -n "$left" ]; then
        say "$name exists already; take another --name, or delete it first"
        return 1
    fi
    ours=1 asking=1
    call "${tpu[@]}" queued-resources create "$name" "${where[@]}" "${shape[@]}" \
        --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+--spot} \
        --valid-until-duration="$valid_until" || return 1
    while true; do
        state="$(queue_state)" || return 1
        asking=""
        [ "$state" = "$before" ] || say "$name is $state"
        before="$state"
        case "${dry_run:+ACTIVE}$state" in
            ACTIVE*) break ;;
            FAILED | DELETING | SUSPENDING | SUSPENDED)
                say "$name is $state and will not become ACTIVE; gcloud says why:"
                call "${tpu[@]}" queued-resources describe "$name" "${where[@]}" --format='yaml(state)' || true
                [[ "$state" == SUSPEND* ]] && return 75
                return 1
                ;;
        esac
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "$name is still $state after WAIT_S=$WAIT_S seconds"
            return 1
        fi
        pause || return 1
    done

    for node in "${nodes[@]}"; do
        set_up "$node" || {
            is_preempted && return 75
            return 1
        }
    done
}

set_up() {
    local extras="[gcs${WANDB_API_KEY:+,wandb}]"
    call "${tpu[@]}" tpu-vm scp "$scratch/rlvlm_jax.tar.gz" "$1:" "${where[@]}" --worker=all || return 1
    call "${tpu[@]}" tpu-vm ssh "$1" "${where[@]}" --worker=all --ssh-flag=-oServerAliveInterval=30 \
        --command="mkdir -p rlvlm_jax && tar -xzf rlvlm_jax.tar.gz -C rlvlm_jax" || return 1
    remote "$1" all install "$extras" || return 1
    [ -z "$bucket" ] || remote "$1" all mount "$bucket"
}

# Copies the secrets in a file that only its owner may read.
send_secrets() {
    local file="$scratch/rlvlm_env" key given="" node
    for key in HF_TOKEN WANDB_API_KEY; do
        [ -z "${!key:-}" ] || given="$given $key"
    done
    [ -n "$given" ] || return 0
    if [ -n "$dry_run" ]; then
        echo "# $file, mode 600, holds$given"
    else
        (
            umask 077
            for key in $given; do printf '%s=%q\n' "$key" "${!key}"; done >"$file"
        ) || return 1
    fi
    for node in "${nodes[@]}"; do
        call "${tpu[@]}" tpu-vm scp --scp-flag=-p "$file" "$node:.rlvlm_env" "${where[@]}" --worker=all ||
            return 1
    done
    [ -n "$dry_run" ] || rm -f "$file"
}

# Starts the recipe and follows it; returns its status, or 75 if the slice was preempted.
run() {
    begun=1
    if ! send_secrets || ! start; then
        is_preempted && return 75
        return 1
    fi
    follow
}

start() {
    local node
    for node in "${nodes[@]}"; do remote "$node" all start "${program[@]}" || return 1; done
}

follow() {
    local answer lines=+1 misses=0 status=1
    while true; do
        remote "${nodes[0]}" 0 follow "$lines" || true # whatever ended it, the state of the run is checked next
        answer="$(how=ask remote "${nodes[0]}" 0 state)" || answer=""
        [ -z "$dry_run" ] || return 0
        case "$answer" in
            exit*)
                read -r _ status stopped <<<"$answer"
                case "$status" in 0 | 2 | 75) return "$status" ;; esac
                ;;
            running) misses=0 ;;
            *) misses=$((misses + 1)) ;;
        esac
        # A lost machine may end the program on the others with any status.
        if [ "$answer" != running ] && is_preempted; then
            say "$name was preempted; the same command on a new slice goes on from the last checkpoint"
            return 75
        fi
        case "$answer" in exit*) return "$status" ;; esac
        if [ "$misses" -ge 3 ]; then
            say "worker 0 of ${nodes[0]} does not answer about the run"
            return 1
        fi
        lines=20
        pause || return 1
    done
}

# Deletes what exists and checks that it is gone; up to three times.
delete() {
    local left node try
    begun=1
    for try in 1 2 3 4; do
        left="$(existing)" || return 1
        if [ -z "$left$dry_run" ]; then
            ours=""
            [ -z "$asking" ] || return 0 # the final report says that it may still appear
            say "nothing named $name exists"
            begun=""
            return 0
        fi
        asking=""
        [ "$try" -eq 1 ] || pause || return 1
        [ "$try" -lt 4 ] || return 1
        case "${dry_run:+queued-resource }$left" in
            "queued-resource "*) call "${delete_queued[@]}" || true ;; # --force: and its machines
            *)
                while read -r _ node _; do
                    call "${tpu[@]}" tpu-vm delete "$node" "${where[@]}" --quiet </dev/null || true
                done <<<"$left"
                ;;
        esac
        if [ -n "$dry_run" ]; then
            existing
            return 0
        fi
    done
}

all() {
    local status again=0
    while true; do
        status=0
        create || status=$?
        [ "$status" -ne 0 ] || run || status=$?
        if [ "$status" -ne 75 ] || [ -n "$stopped" ] || [ "$again" -ge "$retries" ]; then break; fi
        again=$((again + 1))
        say "preempted: restarting, $again of at most $retries times"
        delete || return 1
    done
    if [ -n "$ours" ] && [ -z "$keep" ] && ! delete && [ "$status" -eq 0 ]; then status=1; fi
    return "$status"
}

logs() {
    begun=1
    remote "${nodes[0]}" 0 follow +1
}

status() {
    existing
    remote "${nodes[0]}" 0 state
}

stop() {
    local node
    begun=1
    for node in "${nodes[@]}"; do remote "$node" all stop || return 1; done
}

if [ -n "$dry_run" ]; then
    scratch="${TMPDIR:-/tmp}/rlvlm_jax.XXXXXX"
    "$command"
    exit 0
fi
on_end report
scratch="$(mktemp -d "${TMPDIR:-/tmp}/rlvlm_jax.XXXXXX")"
"$command" || exit $?
