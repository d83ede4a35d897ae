# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: their form, what they refuse, and those for GKE, Slurm and one machine."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch_cases import (
    PLACE,
    PROGRAM,
    RECIPE,
    RECORD,
    ROOT,
    SCRIPTS,
    SLICE,
    WITH_SIGINT,
    commands,
    executable,
)

# ---- the scripts as text ------------------------------------------------------------------------


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    assert shellcheck, "pip install -e '.[test]' brings shellcheck"
    checked = subprocess.run(
        [shellcheck, "--external-sources", *map(str, SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_head_says_what_it_is_for_and_modes_fit(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(lines[:12])
    assert "SPDX-FileCopyrightText" in head
    assert "SPDX-License-Identifier: Apache-2.0" in head
    if path.name == "common.sh":  # is sourced
        return
    assert lines[0] == "#!/usr/bin/env bash"
    assert f"launch/{path.name} " in head
    assert "set -euo pipefail" in lines
    assert os.access(path, os.X_OK)


def test_readme_lists_every_file():
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("## Files", 1)[1].split("```")[1]
    listed = block.split("\nlaunch/\n", 1)[1].split("\nrlvlm_jax/\n", 1)[0]
    names = {line.split()[0] for line in listed.splitlines()}
    assert names == {path.name for path in (ROOT / "launch").iterdir()}


# ---- what is missing ----------------------------------------------------------------------------

GKE = [
    *("--name=run1", "--image=i", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4"),
    "--bucket=b",
]
GKE_RECIPE = ["configs/tiny.py", "--workdir=/data/run1"]
SLURM = ["configs/tiny.py", "--workdir=/shared/run1", "--gpus=8", "--time=1:00:00"]


def without(arguments, prefix):
    return [a for a in arguments if not a.startswith(prefix)]


@pytest.mark.parametrize(
    ("script", "arguments", "word"),
    [
        *[
            ("tpu.sh", ["create", *without(SLICE, f"--{x}")], f"--{x}=")
            for x in ("project", "zone")
        ],
        ("tpu.sh", ["create", *without(SLICE, "--name")], "--name="),
        ("tpu.sh", ["create", *PLACE], "--accelerator="),
        ("tpu.sh", ["create", *PLACE, "--accelerator=v9-8"], "--runtime="),
        ("tpu.sh", ["create", *SLICE, "extra"], "extra"),
        ("tpu.sh", ["create", "--project", "p", "--zone=z"], "--project=VALUE"),
        ("tpu.sh", ["run", *PLACE], "CONFIG"),
        ("tpu.sh", ["run", *PLACE, "--workdir=/mnt/b/x", "configs/tiny.py"], "CONFIG"),
        ("tpu.sh", ["run", *PLACE, "configs/none.py", "--workdir=/x"], "configs/none.py"),
        ("tpu.sh", ["run", *PLACE, "configs/tiny.py"], "--workdir="),
        ("tpu.sh", ["run", *PLACE, "configs/tiny.py", "--workdir=runs/x"], "shared storage"),
        ("tpu.sh", ["run", *PLACE, "configs/tiny.py", "--workdir=gs://b/x"], "log.checkpoints=gs:"),
        ("tpu.sh", ["all", *SLICE, "--slices=0", *RECIPE], "--slices=0"),
        ("tpu.sh", ["delete", "--project=p", "--zone=z", "--name=A b"], "--name=A b"),
        ("tpu.sh", ["destroy", *PLACE], "destroy"),
        ("tpu.sh", [], "create"),
        *[
            ("gke.sh", ["run", *GKE_RECIPE, *without(GKE, f"--{x}=")], f"--{x}=")
            for x in ("name", "image", "accelerator", "topology", "bucket")
        ],
        ("gke.sh", ["run", *GKE_RECIPE, *GKE, "--chips-per-host=5"], "--chips-per-host"),
        ("gke.sh", ["run", "configs/tiny.py", "--workdir=runs/x", *GKE], "/data"),
        ("gke.sh", ["logs"], "--name="),
        *[("slurm.sh", without(SLURM, f"--{x}"), f"--{x}=") for x in ("gpus", "time", "workdir")],
        ("slurm.sh", SLURM[1:], "CONFIG"),
        ("slurm.sh", [*SLURM, "--nodes=two"], "two"),
        ("run.sh", ["npu", "configs/tiny.py"], "cuda"),
    ],
)
def test_what_is_missing_or_wrong_is_status_2_and_one_sentence(cloud, script, arguments, word):
    ran = cloud.run(script, *arguments)
    assert ran.returncode == 2, ran.stderr
    assert word in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stdout == ""
    assert cloud.calls == ""


def test_project_and_zone_may_come_from_the_environment(cloud):
    ran = cloud.run("tpu.sh", "status", "--name=run1", "--dry-run", PROJECT="p", ZONE="z")
    assert ran.returncode == 0, ran.stderr
    assert "--project=p --zone=z" in ran.stdout


def test_a_tool_that_is_not_there_is_status_2(cloud):
    (cloud.bin / "gcloud").unlink()
    for script, arguments, tool in [
        ("tpu.sh", ["create", *SLICE], "gcloud"),
        ("gke.sh", ["run", *GKE_RECIPE, *GKE], "kubectl"),
        ("slurm.sh", SLURM, "sbatch"),
    ]:
        ran = cloud.run(script, *arguments)
        assert ran.returncode == 2
        assert f"{tool} is not on the PATH" in ran.stderr


# ---- GKE ----------------------------------------------------------------------------------------


def rendered(cloud, *more):
    ran = cloud.run("gke.sh", "render", *GKE_RECIPE, *GKE, *more)
    assert ran.returncode == 0, ran.stderr
    return yaml.safe_load(ran.stdout)


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_manifest_has_what_a_slice_needs(cloud):
    manifest = rendered(cloud, '--config.x=a "b" c\\d # e: f\'', "--secret=tokens", "--restarts=3")
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "run1"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    assert policy["rules"][0]["action"] == "FailJobSet"
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    # 16 chips of 4 a host; any host that fails ends its job, which restarts the JobSet.
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 0)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])  # not 75
    pod = pod_of(manifest)
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "rlvlm_jax.main"]
    assert container["args"] == [
        "--config=configs/tiny.py",
        "--workdir=/data/run1",
        '--config.x=a "b" c\\d # e: f\'',
    ]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"


def test_manifest_with_a_claim_several_slices_and_spot(cloud):
    more = ("--pvc=disk", "--slices=2", "--spot", "--service-account=trainer", "--topology=2x2x4")
    manifest = rendered(cloud, *more)
    (job,) = manifest["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 4)
    pod = pod_of(manifest)
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}]
    assert "envFrom" not in pod["containers"][0]


def test_dry_run_of_gke_needs_no_kubectl(cloud):
    ran = cloud.run("gke.sh", "run", *GKE_RECIPE, *GKE, "--dry-run")
    assert (ran.returncode, ran.stderr) == (0, "")
    first, *document, last = ran.stdout.splitlines()
    assert (first, last) == ("+ kubectl --namespace=default apply -f - <<'EOF'", "EOF")
    assert yaml.safe_load("\n".join(document)) == rendered(cloud)
    for command in ("logs", "status", "delete"):
        ran = cloud.run("gke.sh", command, "--name=run1", "--dry-run")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert all(words[0] == "kubectl" for words in commands(ran.stdout))


KUBECTL = """#!/usr/bin/env bash
echo "kubectl $*" >>"$FAKE_CLOUD/calls"
case " $* " in *" $FAIL "*) exit 1 ;; esac
case "$2" in
    apply) cat >"$FAKE_CLOUD/jobset" ;;
    get)
        if [ -e "$FAKE_CLOUD/jobset" ]; then
            case "$3" in jobset) echo jobset/run1 ;; pods) echo pod/run1-slice-0-0-abcde ;; esac
        fi
        ;;
    delete) rm -f "$FAKE_CLOUD/jobset" ;;
esac
"""


@pytest.mark.parametrize("fail", ["none", "apply", "get", "delete"])
def test_gke_says_what_exists(cloud, fail):
    executable(cloud.bin / "kubectl", KUBECTL)
    ran = cloud.run("gke.sh", "run", *GKE_RECIPE, *GKE, FAIL=fail)
    delete = "+ kubectl --namespace=default delete jobset run1 --ignore-not-found"
    assert ran.returncode == (fail in ("apply", "get"))
    assert (delete in ran.stderr) == (fail != "apply")
    if fail == "apply":
        assert "nothing named run1 exists" in ran.stderr
        return
    assert ("may still run" if fail == "get" else "this still exists") in ran.stderr
    assert yaml.safe_load((cloud.path / "jobset").read_text())["kind"] == "JobSet"
    ran = cloud.run("gke.sh", "delete", "--name=run1", FAIL=fail)
    if fail == "none":
        assert ran.returncode == 0, ran.stderr
        assert "nothing named run1 exists" in ran.stderr
    else:
        assert ran.returncode == 1
        assert delete in ran.stderr


# ---- Slurm --------------------------------------------------------------------------------------

SBATCH = """#!/usr/bin/env bash
echo "sbatch $*" >>"$FAKE_CLOUD/calls"
cat >"$FAKE_CLOUD/batch"
echo "4711;cluster"
exit "${SBATCH_STATUS:-0}"
"""
SRUN = """#!/usr/bin/env bash
echo "srun $* devices=$JAX_LOCAL_DEVICE_IDS" >>"$FAKE_CLOUD/calls"
exit "$SRUN_STATUS"
"""


def submitted(cloud, *more, **environment):
    executable(cloud.bin / "sbatch", SBATCH)
    python = str(cloud.bin / "bash")  # any program that can be started
    checkout = cloud.path / "checkout"  # the script makes a folder for logs in its own
    shutil.copytree(ROOT / "launch", checkout / "launch", dirs_exist_ok=True)
    (checkout / "configs").mkdir(exist_ok=True)
    shutil.copy(ROOT / "configs" / "tiny.py", checkout / "configs")
    return subprocess.run(
        [
            *(str(cloud.bin / "bash"), str(checkout / "launch" / "slurm.sh"), *SLURM),
            *("--nodes=2", f"--python={python}", "--config.x=a b", *more),
        ],
        env=cloud.environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_slurm_asks_for_one_process_a_node_and_a_signal_in_time(cloud):
    ran = submitted(cloud, "--partition=gpu", "--account=me", HF_TOKEN="s3cret")
    assert ran.returncode == 0, ran.stderr
    assert "scancel 4711" in ran.stdout
    batch = (cloud.path / "batch").read_text()
    asked = {line.removeprefix("#SBATCH ") for line in batch.splitlines() if "#SBATCH" in line}
    assert asked >= {
        *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=1:00:00"),
        *("--signal=TERM@120", "--requeue", "--partition=gpu", "--account=me"),
    }
    assert "s3cret" not in batch + cloud.calls + ran.stdout
    failed = submitted(cloud, SBATCH_STATUS="1")
    assert failed.returncode == 1
    assert "squeue" in failed.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_batch_script_goes_back_into_the_queue_on_75_only(cloud, status):
    submitted(cloud)
    executable(cloud.bin / "srun", SRUN)
    executable(cloud.bin / "scontrol", RECORD)
    ran = subprocess.run(
        [str(cloud.bin / "bash"), str(cloud.path / "batch")],
        env=cloud.environment(
            SRUN_STATUS=str(status), SLURM_JOB_ID="4711", SLURM_CPUS_ON_NODE="96"
        ),
        check=False,
    )
    assert ran.returncode == status
    assert "devices=0,1,2,3,4,5,6,7" in cloud.calls
    assert "rlvlm_jax.main --config=configs/tiny.py --workdir=/shared/run1" in cloud.calls
    assert ("scontrol requeue 4711" in cloud.calls) == (status == 75)


def test_dry_run_of_slurm_shows_the_script_it_would_submit(cloud):
    submitted(cloud)
    ran = submitted(cloud, "--dry-run")
    mkdir, sbatch, *script, last = ran.stdout.splitlines()
    assert mkdir.startswith("+ mkdir")
    assert (sbatch, last) == ("+ sbatch --parsable <<'EOF'", "EOF")
    assert script == (cloud.path / "batch").read_text().splitlines()
    assert cloud.calls.count("sbatch") == 1  # the first
    checked = subprocess.run(["bash", "-n"], input="\n".join(script), text=True, check=False)
    assert checked.returncode == 0


# ---- one machine --------------------------------------------------------------------------------


VENV = f"""#!/usr/bin/env bash
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
{PROGRAM}END
cp TRUE .venv/bin/pip
chmod +x .venv/bin/python .venv/bin/pip
"""


@pytest.fixture
def one_machine(cloud):
    """A checkout in which `python3 -m venv` makes the program that `exits` steers."""
    checkout = cloud.path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    executable(cloud.bin / "python3", VENV.replace("TRUE", shutil.which("true")))
    for name in ("chmod", "cp"):
        (cloud.bin / name).symlink_to(shutil.which(name))

    def start(*arguments, **environment):
        return subprocess.Popen(
            [
                *WITH_SIGINT,
                *(str(cloud.bin / "bash"), str(checkout / "launch" / "run.sh"), *arguments),
            ],
            env=cloud.environment(WORKER="here", **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_dry_run_of_run_shows_three_commands(one_machine, cloud):
    ran = one_machine("--dry-run", "cuda", "configs/tiny.py", "--workdir=runs/x")
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 0
    _, install, main = commands(output)
    assert install[-1] == "jax[cuda13]"
    assert main[1:] == ["-m", "rlvlm_jax.main", "--config=configs/tiny.py", "--workdir=runs/x"]
    assert cloud.starts("here") == 0


@pytest.mark.parametrize(
    ("exits", "retries", "status", "starts"),
    [
        ("75 0", {}, 75, 1),
        ("0", {}, 0, 1),
        ("75 75 0", {"RETRIES": "5"}, 0, 3),
        ("75 2 0", {"RETRIES": "5"}, 2, 2),
        ("75 75 75", {"RETRIES": "1"}, 75, 2),
    ],
)
def test_run_begins_again_where_it_is_told_to(one_machine, cloud, exits, retries, status, starts):
    cloud.reset(exits)
    ran = one_machine("cpu", "configs/tiny.py", "--workdir=runs/x", **retries)
    output, _ = ran.communicate(timeout=100)
    assert (ran.returncode, cloud.starts("here")) == (status, starts), output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_told_to_stop_stops_with_a_checkpoint(one_machine, cloud, number):
    cloud.reset("hang 0")
    ran = one_machine("cpu", "configs/tiny.py", "--workdir=runs/x", RETRIES="5")
    cloud.until_ready("here")
    ran.send_signal(number)
    output, _ = ran.communicate(timeout=100)
    assert "checkpoint written" in output
    assert (ran.returncode, cloud.starts("here")) == (75, 1), output
