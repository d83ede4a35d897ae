#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Submits a recipe to Slurm, on whole nodes, one process per node:
#   launch/slurm.sh configs/mm_eureka.py --workdir=/shared/mm_eureka --nodes=2 --gpus=8 \
#       --time=24:00:00 --partition=gpu --account=ACCOUNT --config.data.train=/shared/train.jsonl
# --gpus=N        of each node; --nodes=1; --time as sbatch takes it; --partition, --account,
#                 --name=rlvlm_jax may be left out
# --python=FILE   by default .venv/bin/python of this checkout, which the nodes must see, like DIR;
#                 python3 -m venv .venv && .venv/bin/pip install 'jax[cuda13]' -e .
# --dry-run       shows the batch script and the command, and runs none
# --lead=600      seconds before the time limit at which the recipe is told to write a checkpoint: at
#                 least as long as a rollout or an update and a checkpoint take; by default at most
#                 a quarter of the time
# Then, or if Slurm preempts it, the recipe writes a checkpoint and exits with 75; the job is requeued
# and resumes from the checkpoint. scancel ends it.
# HF_TOKEN and WANDB_API_KEY are passed on with the environment, sbatch's default.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

nodes=1 gpus="" time="" lead="" partition="" account="" name=rlvlm_jax python="$root/.venv/bin/python"
program=()
for argument in "$@"; do
    value="${argument#*=}"
    case "$argument" in
        --nodes=*) nodes="$value" ;;
        --gpus=*) gpus="$value" ;;
        --time=*) time="$value" ;;
        --lead=*) lead="$value" ;;
        --partition=*) partition="$value" ;;
        --account=*) account="$value" ;;
        --name=*) name="$value" ;;
        --python=*) python="$value" ;;
        --dry-run) dry_run=1 ;;
        *) program+=("$argument") ;;
    esac
done

# Seconds of MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, as sbatch reads them; 0: no limit.
seconds_of() {
    local days=0 hours=0 minutes=0 seconds=0
    [[ "$1" =~ ^([0-9]+-)?[0-9]+(:[0-9]+){0,2}$ ]] || set -- 0 # a word such as "infinite"
    case "$1" in
        *-*) IFS=-: read -r days hours minutes seconds <<<"$1" ;;
        *:*:*) IFS=: read -r hours minutes seconds <<<"$1" ;;
        *) IFS=: read -r minutes seconds <<<"$1" ;;
    esac
    echo $((((10#$days * 24 + 10#$hours) * 60 + 10#${minutes:-0}) * 60 + 10#${seconds:-0}))
}

recipe ${program[@]+"${program[@]}"}
need "the number of GPUs of a node" "$gpus" "--gpus=N"
need "the time limit" "$time" "--time=HH:MM:SS"
for number in "$nodes" "$gpus" "${lead:-1}"; do
    [[ "$number" =~ ^[1-9][0-9]*$ ]] || usage "'$number': expected a number of nodes, GPUs or seconds"
done
limit="$(seconds_of "$time")"
default=600
[ "$limit" -eq 0 ] || [ "$limit" -ge 2400 ] || default=$((limit / 4))
lead="${lead:-$default}"
# If it were told to stop as soon as it starts, it would be requeued for ever.
[ "$limit" -eq 0 ] || [ "$limit" -gt "$lead" ] ||
    usage "--time=$time is no longer than the last --lead=$lead seconds; give more time, or a smaller --lead"
for value in "$time" "$partition" "$account" "$name"; do
    [[ ! "$value" =~ [[:space:]] ]] || usage "'$value': spaces are not possible there"
done
case "$python" in /*) ;; *) python="$PWD/$python" ;; esac
need "the work directory" "$workdir" "--workdir=DIR on storage that all nodes share"
if [ -z "$dry_run" ]; then
    command -v sbatch >/dev/null || usage "sbatch is not on the PATH; run this on a login node"
    [ -x "$python" ] || usage "$python does not exist; install as described at the head of this script"
fi

batch() {
    local devices
    devices="$(seq -s, 0 $((gpus - 1)))"
    grep -v '^$' <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=$time
#SBATCH --signal=TERM@$lead
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="$root/runs/%x-%j.log"
${partition:+#SBATCH --partition=$partition}
${account:+#SBATCH --account=$account}
cd $(printf '%q' "$root") || exit 1
# A process drives all GPUs of its node; from Slurm's variables JAX would give it one.
export JAX_LOCAL_DEVICE_IDS=$devices
# The host that ends first must not cause the others to be killed while they write.
srun --cpus-per-task="\$SLURM_CPUS_ON_NODE" --kill-on-bad-exit=0 --wait=600 \\
    $(printf '%q ' "$python" -m rlvlm_jax.main "--config=$config" "${program[@]:1}")
status=\$?
if [ "\$status" -eq 75 ]; then
    scontrol requeue "\$SLURM_JOB_ID" || echo "not requeued: submit it again to resume" >&2
fi
exit "\$status"
EOF
}

if [ -n "$dry_run" ]; then
    show mkdir -p "$root/runs"
    echo "+ sbatch --parsable <<'EOF'"
    batch
    echo "EOF"
    exit 0
fi
mkdir -p "$root/runs"
trap 'say "interrupted; \"squeue --me --name=$name\" shows whether a job exists, scancel ends it"; exit 1' \
    HUP INT TERM
if ! job="$(batch | sbatch --parsable)"; then
    say "sbatch failed; 'squeue --me --name=$name' shows whether a job exists anyway"
    exit 1
fi
echo "job ${job%%;*}; its log is runs/$name-${job%%;*}.log; end it with: scancel ${job%%;*}"
