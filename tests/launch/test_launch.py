# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The launch scripts: their form, what they refuse, and those for GKE, Slurm and one machine."""

import os
import shlex
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
    commands,
    executable,
    is_alive,
)

# ---- the scripts as text ------------------------------------------------------------------------


def test_shellcheck_finds_nothing(tmp_path):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    assert shellcheck, "pip install -e '.[test]' brings shellcheck"
    checked = subprocess.run(
        [shellcheck, "--external-sources", *map(str, SCRIPTS)],
        cwd=tmp_path,  # wherever it is run
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


def test_the_list_of_files_names_every_script():
    block = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").split("```")[1]
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
        ("tpu.sh", ["create", *SLICE, "--bucket=gs://b"], "--bucket=gs://b"),
        ("tpu.sh", ["destroy", *PLACE], "destroy"),
        ("tpu.sh", [], "create"),
        *[
            ("gke.sh", ["run", *GKE_RECIPE, *without(GKE, f"--{x}=")], f"--{x}=")
            for x in ("name", "image", "accelerator", "topology", "bucket")
        ],
        *[
            ("gke.sh", ["run", *GKE_RECIPE, *GKE, f"--{flag}"], word)
            for flag, word in [
                *(("chips-per-host=5", "--chips-per-host"), ("chips-per-host=0", "'0'")),
                *(("chips-per-host=08", "'08'"), ("slices=0", "'0'"), ("restarts=x", "'x'")),
                *(("bucket=gs://b", "--bucket=gs://b"), ("workdir=/data/../etc", "/data/../etc")),
            ]
        ],
        ("gke.sh", ["run", "configs/tiny.py", "--workdir=runs/x", *GKE], "/data"),
        ("gke.sh", ["logs"], "--name="),
        ("gke.sh", ["delete", "--name=run1", "--grace=long"], "'long'"),
        *[("slurm.sh", without(SLURM, f"--{x}"), f"--{x}=") for x in ("gpus", "time", "workdir")],
        ("slurm.sh", SLURM[1:], "CONFIG"),
        ("slurm.sh", [*SLURM, "--nodes=two"], "two"),
        ("slurm.sh", [*SLURM, "--lead=0"], "'0'"),
        *[
            ("slurm.sh", [*SLURM, f"--time={time}", "--lead=600"], "--lead=600")
            for time in ("10", "9:59", "00:10:00", "0-00:10")
        ],
        ("gke.sh", ["run", *GKE_RECIPE, *GKE, "--pvc=c"], "give one"),
        ("gke.sh", ["status", "--name=run1", "--namespace="], "--namespace="),
        ("run.sh", ["cpu", "configs/tiny.py"], "--workdir=DIR"),
        ("run.sh", ["npu", "configs/tiny.py"], "cuda"),
        ("run.sh", ["cpu"], "CONFIG"),
        ("run.sh", ["cpu", "--workdir=runs/x"], "CONFIG"),
        ("run.sh", ["cpu", "configs/none.py"], "configs/none.py"),
        ("run.sh", ["cpu", "/none/none.py"], "/none/none.py"),
    ],
)
def test_what_is_missing_or_wrong_is_status_2_and_one_sentence(cloud, script, arguments, word):
    refused(cloud, script, *arguments, word=word)


def refused(cloud, script, *arguments, word, **environment):
    """It ends with status 2 and one sentence, and nothing was called."""
    cloud.copy()
    for tool in ("kubectl", "sbatch", "python3"):
        executable(cloud.bin / tool, RECORD)
    ran = cloud.run(script, *arguments, **environment)
    assert ran.returncode == 2, ran.stderr
    assert word in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stdout == ""
    assert cloud.calls == ""


RUNS = {
    "tpu.sh": ["all", *SLICE, *RECIPE],
    "gke.sh": ["run", *GKE_RECIPE, *GKE],
    "slurm.sh": SLURM,
    "run.sh": ["cpu", "configs/tiny.py", "--workdir=runs/x"],
}


@pytest.mark.parametrize(
    "flags",
    [
        *(["--dry-run=true"], ["--dry-run=client"], ["--spott"], ["rest"], ["--workdirs=/x"]),
        *(["--config.x=1", "rest"], ["--config.x", "1", "rest"], ["--config.x", "--spott"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("script", RUNS)
def test_a_flag_that_nothing_takes_is_refused(cloud, script, flags):
    refused(cloud, script, *RUNS[script], *flags, word=f"{flags[-1]} is not understood")


@pytest.mark.parametrize("command", ["create", "delete", "status", "stop"])
def test_a_misspelt_flag_is_refused_where_there_is_no_recipe(cloud, command):
    refused(cloud, "tpu.sh", command, *SLICE, "--dry-run=true", word="--dry-run=true")


@pytest.mark.parametrize("script", RUNS)
def test_flags_of_the_program_go_on_to_it(cloud, script):
    flags = ["--config.a", "b", "--config.c", "-1", "--noconfig.d", "--config.e=--spott"]
    ran = cloud.run(script, *RUNS[script], *flags, "--dry-run")
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.replace("\\ ", " ").replace('"', " ").replace("- ", " ").split()
    place = words.index("--config.a")
    assert words[place : place + len(flags)] == flags


@pytest.mark.parametrize(
    "environment", [{"WAIT_S": "abc"}, {"WAIT_S": "08"}, {"POLL_S": "abc"}], ids=str
)
def test_seconds_in_the_environment_are_numbers(cloud, environment):
    ((name, value),) = environment.items()
    refused(cloud, "tpu.sh", "create", *SLICE, word=f"{name}={value}", **environment)


@pytest.mark.parametrize("script", ["slurm.sh", "run.sh"])
def test_cdpath_changes_nothing(cloud, script):
    checkout, elsewhere = cloud.copy(), cloud.path / "elsewhere"
    (elsewhere / "launch").mkdir(parents=True)
    outputs = []
    for path in ({}, {"CDPATH": f"{elsewhere}:."}):
        ran = subprocess.run(
            [str(cloud.bin / "bash"), f"launch/{script}", *RUNS[script], "--dry-run"],
            cwd=checkout,
            env=cloud.environment(**path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout)
    assert str(checkout) in outputs[0]
    assert outputs[0] == outputs[1]


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
    value = '--config.x=a "b" c\\d # e: f\'\n\n g'
    manifest = rendered(cloud, value, "--secret=tokens", "--restarts=3")
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
        value,
    ]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    (volume,) = pod["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"


def test_manifest_with_a_claim_several_slices_and_spot(cloud):
    more = ("--slices=2", "--spot", "--service-account=trainer", "--topology=2x2x4")
    manifest = rendered(cloud, "--bucket=", "--pvc=disk", *more)
    (job,) = manifest["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 4)
    pod = pod_of(manifest)
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}]
    assert "envFrom" not in pod["containers"][0]


def test_a_name_that_yaml_would_take_for_another_kind_stays_a_name(cloud):
    manifest = rendered(cloud, "--name=on")
    assert manifest["metadata"]["name"] == manifest["spec"]["network"]["subdomain"] == "on"


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
    apply)
        cat >"$FAKE_CLOUD/jobset"
        echo "jobset.jobset.x-k8s.io/run1 ${ANSWER:-created}"
        ;;
    get)
        if [ -e "$FAKE_CLOUD/jobset" ]; then
            case "$3" in jobset) echo jobset/run1 ;; pods) echo pod/run1-slice-0-0-abcde ;; esac
        fi
        ;;
    delete) [ -n "${STAYS:-}" ] || rm -f "$FAKE_CLOUD/jobset" ;;
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


@pytest.mark.parametrize("answer", ["unchanged", "configured"])
def test_a_jobset_that_is_there_already_is_not_begun_again(cloud, answer):
    executable(cloud.bin / "kubectl", KUBECTL)
    ran = cloud.run("gke.sh", "run", *GKE_RECIPE, *GKE, FAIL="none", ANSWER=answer)
    assert ran.returncode == 1
    assert "run1 exists already" in ran.stderr
    assert "delete jobset run1" in ran.stderr


@pytest.mark.parametrize(("grace", "looks"), [(0, 6), (200, 16)])
def test_gke_waits_for_pods_to_end_as_long_as_they_may_take(cloud, grace, looks):
    executable(cloud.bin / "kubectl", KUBECTL)
    (cloud.path / "jobset").touch()
    flags = ("--name=run1", f"--grace={grace}")
    ran = cloud.run("gke.sh", "delete", *flags, FAIL="none", STAYS="1", POLL_S="0")
    assert ran.returncode == 1
    assert "this still exists" in ran.stderr
    assert cloud.calls.count(" get jobset ") == looks + 1  # and the last


# ---- Slurm --------------------------------------------------------------------------------------

SBATCH = """#!/usr/bin/env bash
echo "sbatch $*" >>"$FAKE_CLOUD/calls"
cat >"$FAKE_CLOUD/batch"
touch "$FAKE_CLOUD/asking"
sleep "${SBATCH_SECONDS:-0}"
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
    if cloud.checkout == ROOT:
        cloud.copy()  # the script makes a folder for logs in its checkout
    flags = (*SLURM, "--nodes=2", f"--python={python}", "--config.x=a b", *more)
    return cloud.run("slurm.sh", *flags, **environment)


def test_slurm_asks_for_one_process_a_node_and_a_signal_in_time(cloud):
    ran = submitted(cloud, "--partition=gpu", "--account=me", HF_TOKEN="s3cret")
    assert ran.returncode == 0, ran.stderr
    assert "scancel 4711" in ran.stdout
    batch = (cloud.path / "batch").read_text()
    asked = {line.removeprefix("#SBATCH ") for line in batch.splitlines() if "#SBATCH" in line}
    assert asked >= {
        *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=1:00:00"),
        *("--signal=TERM@600", "--requeue", "--partition=gpu", "--account=me"),
    }
    assert "s3cret" not in batch + cloud.calls + ran.stdout
    failed = submitted(cloud, SBATCH_STATUS="1")
    assert failed.returncode == 1
    assert "squeue" in failed.stderr


def test_slurm_takes_any_place_for_checkout_and_python_and_another_lead(cloud):
    checkout = cloud.copy("a checkout")
    ran = submitted(cloud, "--python=bin/bash", "--lead=900", cwd=cloud.path)
    assert ran.returncode == 0, ran.stderr
    batch = (cloud.path / "batch").read_text()
    (output,) = (line for line in batch.splitlines() if "--output" in line)
    assert shlex.split(output)[1:] == [f"--output={checkout}/runs/%x-%j.log"]
    assert f" {cloud.bin}/bash -m rlvlm_jax.main " in batch
    assert "#SBATCH --signal=TERM@900\n" in batch


@pytest.mark.parametrize("time", ["11", "10:01", "00:10:01", "1-0", "0-00:11", "0", "infinite"])
def test_slurm_takes_times_longer_than_the_lead(cloud, time):
    ran = cloud.run("slurm.sh", *SLURM, f"--time={time}", "--lead=600", "--dry-run")
    assert ran.returncode == 0, ran.stderr
    assert f"#SBATCH --time={time}\n" in ran.stdout


@pytest.mark.parametrize(("time", "lead"), [("10", 150), ("39:56", 599), ("1-0", 600), ("0", 600)])
def test_slurm_leaves_three_quarters_of_the_time_to_the_run(cloud, time, lead):
    ran = cloud.run("slurm.sh", *SLURM, f"--time={time}", "--dry-run")
    assert f"#SBATCH --signal=TERM@{lead}\n" in ran.stdout


def test_slurm_told_to_stop_while_submitting_says_how_to_find_the_job(cloud):
    executable(cloud.bin / "sbatch", SBATCH)
    (cloud.bin / "touch").symlink_to(shutil.which("touch"))
    cloud.copy()
    flags = (*SLURM, f"--python={cloud.bin}/bash")
    ran = cloud.begin("slurm.sh", *flags, SBATCH_SECONDS="0.5")
    cloud.until((cloud.path / "asking").exists)
    ran.send_signal(signal.SIGTERM)
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 1
    assert 'interrupted; "squeue --me --name=rlvlm_jax" shows whether a job exists' in output


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


# Waits, as do its child and the child of that.
PIP = """#!/usr/bin/env bash
echo $$ >>"$FAKE_CLOUD/pids"
[ "${DEPTH:-0}" -eq 2 ] || DEPTH=$((${DEPTH:-0} + 1)) "$0" &
for _ in $(seq 4000); do sleep 0.05; done
"""
VENV = f"""#!/usr/bin/env bash
mkdir -p .venv/bin
cat >.venv/bin/python <<'END'
{PROGRAM}END
cp "${{PIP:-TRUE}}" .venv/bin/pip
chmod +x .venv/bin/python .venv/bin/pip
"""


@pytest.fixture
def one_machine(cloud):
    """A checkout in which `python3 -m venv` makes the program that `exits` steers."""
    cloud.copy()
    executable(cloud.bin / "python3", VENV.replace("TRUE", shutil.which("true")))
    for name in ("chmod", "cp"):
        (cloud.bin / name).symlink_to(shutil.which(name))

    def start(*arguments, **environment):
        return cloud.begin("run.sh", *arguments, WORKER="here", **environment)

    return start


def test_dry_run_of_run_shows_where_it_installs_and_what_it_runs(one_machine, cloud):
    ran = one_machine("--dry-run", "cuda", "configs/tiny.py", "--workdir=runs/x")
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 0
    cd, _, install, main = commands(output)
    assert cd == ["cd", str(cloud.checkout)]
    assert install[-1] == "jax[cuda13]"
    assert main[1:] == ["-m", "rlvlm_jax.main", "--config=configs/tiny.py", "--workdir=runs/x"]
    assert cloud.starts("here") == 0


def test_a_recipe_beside_the_user_is_found_from_the_checkout(one_machine, cloud, monkeypatch):
    place = cloud.path / "mine"
    place.mkdir()
    (place / "own.py").write_text("")
    monkeypatch.chdir(place)
    for given in ("own.py:small", f"{place}/own.py:small"):
        output, _ = one_machine("--dry-run", "cpu", given, "--workdir=x").communicate(timeout=100)
        assert commands(output)[-1][3] == f"--config={place}/own.py:small"


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_run_that_is_told_to_stop_leaves_no_installation_going_on(
    one_machine, cloud, number, status
):
    executable(cloud.path / "pip", PIP)
    ran = one_machine("cpu", "configs/tiny.py", "--workdir=runs/x", PIP=str(cloud.path / "pip"))
    pids = cloud.path / "pids"
    cloud.until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    ran.send_signal(number)
    assert ran.wait(timeout=100) == status
    left = [int(pid) for pid in pids.read_text().split() if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    output, _ = ran.communicate(timeout=100)
    assert not left, output
    assert cloud.starts("here") == 0
