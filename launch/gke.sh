#!/usr/bin/env bash
# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs a recipe on TPU nodes of a GKE cluster, as a JobSet (its controller must be installed there):
#   launch/gke.sh run configs/mm_eureka.py --workdir=/data/mm_eureka --name=mm-eureka \
#       --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/rlvlm_jax --bucket=BUCKET \
#       --accelerator=tpu-v5-lite-podslice --topology=8x8 --config.data.train=/data/train.jsonl
#   render   same arguments; only prints the manifest
#   logs     the log of host 0, with --name
#   status   the JobSet and its pods
#   delete   deletes them and checks that they are gone
# --image         contains this checkout and jax for TPU; launch/Dockerfile builds one
# --accelerator --topology   as in the node pool's labels: tpu-v5-lite-podslice, tpu-v5p-slice,
#                 tpu-v6e-slice, ...; 2x4, 4x4, 2x2x4, ...
# --chips-per-host=4   TPU chips of one node;  --slices=1   node pools that work as one
# --bucket=NAME   Cloud Storage, or --pvc=CLAIM, mounted at /data; DIR must be under it
# --service-account=NAME   of Kubernetes, with access to the bucket
# --secret=NAME   a Kubernetes Secret whose keys (HF_TOKEN, WANDB_API_KEY) become variables
# --restarts=10   of all hosts, after exit status 75, a lost node or a failure; never after 2
# --grace=600     seconds for a pod's checkpoint after it is told to stop
# --spot --namespace=default --context=NAME
# --dry-run       shows every command and runs none
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"

name="" image="" accelerator="" topology="" chips=4 slices=1 bucket="" pvc="" account="" secret=""
restarts=10 grace=600 spot="" namespace=default context="" program=() begun=""

command="${1:-}"
[ $# -eq 0 ] || shift
case "$command" in
    run | render | logs | status | delete) ;;
    *) usage "the first argument is '$command', expected run, render, logs, status or delete" ;;
esac
for argument in "$@"; do
    value="${argument#*=}"
    case "$argument" in
        --name=*) name="$value" ;;
        --image=*) image="$value" ;;
        --accelerator=*) accelerator="$value" ;;
        --topology=*) topology="$value" ;;
        --chips-per-host=*) chips="$value" ;;
        --slices=*) slices="$value" ;;
        --bucket=*) bucket="$value" ;;
        --pvc=*) pvc="$value" ;;
        --service-account=*) account="$value" ;;
        --secret=*) secret="$value" ;;
        --restarts=*) restarts="$value" ;;
        --grace=*) grace="$value" ;;
        --spot) spot=1 ;;
        --namespace=*) namespace="$value" ;;
        --context=*) context="$value" ;;
        --dry-run) dry_run=1 ;;
        *) program+=("$argument") ;;
    esac
done

# ---- arguments -------------------------------------------------------------------------

need "the name" "$name" "--name=NAME"
need "the namespace" "$namespace" "--namespace=NAME, or leave it out"
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    usage "--name=$name: expected at most 40 lower-case letters, digits and '-', a letter first"
for number in "$restarts" "$grace"; do
    [[ "$number" =~ ^(0|[1-9][0-9]*)$ ]] || usage "'$number': expected restarts, or seconds"
done
case "$command" in
    run | render)
        recipe ${program[@]+"${program[@]}"}
        need "the image" "$image" "--image=IMAGE"
        need "the accelerator" "$accelerator" "--accelerator=TYPE, such as tpu-v5-lite-podslice"
        need "the topology" "$topology" "--topology=SHAPE, such as 4x4"
        need "the storage" "$bucket$pvc" "--bucket=NAME or --pvc=CLAIM"
        for number in "$chips" "$slices"; do
            [[ "$number" =~ ^[1-9][0-9]*$ ]] || usage "'$number': expected a number of chips or slices"
        done
        [ -z "$bucket" ] || [ -z "$pvc" ] || usage "--bucket and --pvc: /data is one of them; give one"
        [[ "$bucket" != *[/:]* ]] || usage "--bucket=$bucket: expected the bucket's name alone"
        [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*)*$ ]] ||
            usage "--topology=$topology: expected a shape such as 4x4"
        hosts=$((${topology//x/*} / chips))
        [ $((hosts * chips)) -eq $((${topology//x/*})) ] && [ "$hosts" -gt 0 ] ||
            usage "--topology=$topology cannot be divided into hosts of $chips chips; give --chips-per-host"
        [[ "$workdir" == /data/* && "$workdir/" != */../* ]] ||
            usage "--workdir=$workdir: give a directory under /data, the mounted storage"
        program=("--config=$config" "${program[@]:1}")
        ;;
    *) [ ${#program[@]} -eq 0 ] || usage "${program[0]}: '$command' takes no such argument" ;;
esac
[ -n "$dry_run" ] || [ "$command" = render ] || command -v kubectl >/dev/null ||
    usage "kubectl is not on the PATH"

kubectl=(kubectl --namespace="$namespace" ${context:+"--context=$context"})
pods="jobset.sigs.k8s.io/jobset-name=$name"
delete_jobset=("${kubectl[@]}" delete jobset "$name" --ignore-not-found)

# ---- the manifest -------------------------------------------------------------------------------

# Prints a string in JSON's notation, which is valid YAML.
quoted() {
    local text="${1//\\/\\\\}"
    text="${text//\"/\\\"}"
    printf '"%s"' "${text//$'\n'/\\n}"
}

manifest() {
    grep -v '^$' <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(quoted "$name")
  namespace: $(quoted "$namespace")
  annotations:
    # All hosts of a slice on one node pool, each slice on its own.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network:
    enableDNSHostnames: true  # a headless service: hosts find each other by name
    subdomain: $(quoted "$name")
  failurePolicy:
    maxRestarts: $restarts  # of all hosts together: a host cannot rejoin the others
    rules:
      - name: badInput
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0  # any host that fails, with 75 too, restarts all
          podFailurePolicy:
            rules:
              - action: FailJob  # 2: a restart would fail the same way
                onExitCodes: {containerName: train, operator: In, values: [2]}
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "$([ -z "$bucket" ] && echo false || echo true)"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace  # a checkpoint is written in this time
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(quoted "$accelerator")
                cloud.google.com/gke-tpu-topology: $(quoted "$topology")
$([ -z "$spot" ] || echo '                cloud.google.com/gke-spot: "true"')
$([ -z "$account" ] || echo "              serviceAccountName: $(quoted "$account")")
              containers:
                - name: train
                  image: $(quoted "$image")
                  command: [python, -m, rlvlm_jax.main]
                  args:
$(for argument in "${program[@]}"; do echo "                    - $(quoted "$argument")"; done)
                  resources:
                    limits:
                      google.com/tpu: $chips
                  ports:
                    - containerPort: 8471  # TPU hosts among themselves
                    - containerPort: 8476  # JAX's coordinator
$([ -z "$secret" ] || printf '                  envFrom:\n                    - secretRef: {name: %s}' "$(quoted "$secret")")
                  volumeMounts:
                    - {name: data, mountPath: /data}
              volumes:
                - name: data
$(volume)
EOF
}

volume() {
    if [ -n "$pvc" ]; then
        echo "                  persistentVolumeClaim: {claimName: $(quoted "$pvc")}"
        return
    fi
    cat <<EOF
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $(quoted "$bucket")
                      # A checkpoint is written under another name and renamed.
                      mountOptions: implicit-dirs,rename-dir-limit=200000
EOF
}

# ---- the commands -------------------------------------------------------------------------------

existing() {
    ask "${kubectl[@]}" get jobset "$name" --ignore-not-found -o name || return 1
    ask "${kubectl[@]}" get pods --selector="$pods" -o name
}

# Runs when the script ends: reports everything that still costs money.
report() {
    local status=$? left
    if [ -n "$begun" ]; then
        last_look
        if ! left="$(existing)"; then
            say "kubectl does not say what exists: $name may still run and cost money; delete it with"
            show "${delete_jobset[@]}" >&2
            [ "$status" -ne 0 ] || status=1
        elif [ -n "${left//[[:space:]]/}" ]; then
            say "this still exists, and holds TPU nodes that cost money until it has ended or is deleted:"
            echo "$left" >&2
            say "delete it with"
            show "${delete_jobset[@]}" >&2
        else
            say "nothing named $name exists; node pools are yours: those without autoscaling cost money"
        fi
    fi
    exit "$status"
}

run() {
    begun=1
    if [ -n "$dry_run" ]; then
        echo "$(show "${kubectl[@]}" apply -f -) <<'EOF'"
        manifest
        echo EOF
        return
    fi
    local answer
    answer="$(manifest | "${kubectl[@]}" apply -f -)" || return 1
    echo "$answer"
    case "$answer" in *" unchanged" | *" configured")
        say "$name exists already; delete it first to start again"
        return 1
        ;;
    esac
}

render() { manifest; }

logs() {
    begun=1
    call "${kubectl[@]}" logs --follow --tail=-1 --container=train \
        --selector="$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

status() {
    call "${kubectl[@]}" get jobset "$name"
    call "${kubectl[@]}" get pods --selector="$pods" -o wide
}

delete() {
    local left look
    begun=1
    call "${delete_jobset[@]}"
    for ((look = 0; look < grace / 20 + 6; look++)); do # pods end after their checkpoint is written
        left="$(existing)"
        [ -n "${left//[[:space:]]/}" ] || return 0
        pause
    done
    return 1
}

[ -n "$dry_run" ] || on_end report
"$command"
