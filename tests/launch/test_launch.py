# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The launch scripts, with gcloud, kubectl and sbatch that only act: no network, nothing paid."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
FAKE_GCLOUD = Path(__file__).parent / "fake_gcloud.py"
TOOLS = "awk basename bash cat dirname env grep mkdir mktemp pkill rm sed seq sleep".split()
WORKER_TOOLS = (
    "bash cat chmod dirname env grep gzip mkdir nohup rm seq setsid sleep tail tar touch tr".split()
)
SLICE = ["--project=p", "--zone=z", "--name=run1", "--accelerator=v5litepod-16"]
PLACE = SLICE[:3]
RECIPE = ["configs/tiny.py", "--workdir=/mnt/b/run1", "--config.data.train=a b"]
DELETE = "+ gcloud compute tpus queued-resources delete run1 --project=p --zone=z --force --quiet"

# The recipe: ends as the next line of $FAKE_CLOUD/exits says; "hang" waits to be told to stop.
PROGRAM = """#!/usr/bin/env bash
echo started >>"$FAKE_CLOUD/starts-$WORKER"
run="$(grep -c . "$FAKE_CLOUD/starts-$WORKER")"
printf '%s\\n' "$@" >"$FAKE_CLOUD/arguments-$WORKER"
echo "run $run, token ${HF_TOKEN:-none}" >>"$FAKE_CLOUD/seen-$WORKER"
read -r -d '' -a exits <"$FAKE_CLOUD/exits"
ends="${exits[run - 1]}"
echo "log of run $run"
if [ "$ends" = hang ]; then
    trap 'echo checkpoint written; exit 75' TERM
    for _ in $(seq 400); do sleep 0.05; done
    exit 1
fi
exit "$ends"
"""
UV = f"""#!/usr/bin/env bash
echo "uv $*" >>"$FAKE_CLOUD/installed"
if [ "$1" = venv ]; then
    mkdir -p .venv/bin
    cat >.venv/bin/python <<'END'
{PROGRAM}END
    chmod +x .venv/bin/python
fi
"""
PYTHON3 = f"""#!/usr/bin/env bash
mkdir -p "$HOME/.local/bin"
cat >"$HOME/.local/bin/uv" <<'OUTER'
{UV}OUTER
chmod +x "$HOME/.local/bin/uv"
"""
RECORD = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$FAKE_CLOUD/calls"\n'


def executable(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def tools(directory, names):
    directory.mkdir()
    for name in names:
        (directory / name).symlink_to(shutil.which(name))


class Cloud:
    """Directories in place of machines, and scripts run with nothing else on their PATH."""

    def __init__(self, path):
        self.path = path
        self.bin = path / "bin"
        path.mkdir()
        tools(self.bin, TOOLS)
        tools(path / "worker_bin", WORKER_TOOLS)
        executable(path / "worker_bin" / "python3", PYTHON3)
        executable(
            self.bin / "gcloud",
            f'#!/usr/bin/env bash\nexec {sys.executable} -I -S {FAKE_GCLOUD} "$@"\n',
        )
        tar, gzip = shutil.which("tar"), Path(shutil.which("gzip")).parent
        executable(
            self.bin / "git",
            '#!/usr/bin/env bash\nfor a in "$@"; do case "$a" in --output=*) file="${a#*=}" ;; esac\n'
            'done\n[ -z "${file:-}" ] || '
            f'PATH="$PATH:{gzip}" {tar} -czf "$file" -C "$2" launch/worker.sh\n',
        )
        self.reset()

    def reset(self, exits="0", **changes):
        for name in ("homes",):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for pattern in ("starts-*", "seen-*", "arguments-*", "installed", "calls"):
            for file in self.path.glob(pattern):
                file.unlink()
        state = {
            "queued": {},
            "vms": {},
            "workers": 1,
            "road": ["PROVISIONING", "ACTIVE"],
            "preempt_at_follow": 0,
            "after_preemption": "SUSPENDED",
            "count": 0,
            "kinds": [],
            "fault": None,
        }
        (self.path / "state.json").write_text(json.dumps({**state, **changes}))
        (self.path / "exits").write_text(exits + "\n")

    def environment(self, **more):
        return {
            "PATH": str(self.bin),
            "HOME": str(self.path),
            "TMPDIR": str(self.path),
            "FAKE_CLOUD": str(self.path),
            "POLL_S": "0.01",
            **more,
        }

    def command(self, script, *arguments):
        return [str(self.bin / "bash"), str(ROOT / "launch" / script), *arguments]

    def run(self, script, *arguments, **more):
        return subprocess.run(
            self.command(script, *arguments),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def begin(self, script, *arguments, **more):
        return subprocess.Popen(
            self.command(script, *arguments),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def state(self):
        return json.loads((self.path / "state.json").read_text())

    @property
    def exists(self):
        return [*self.state["queued"], *self.state["vms"]]

    @property
    def calls(self):
        file = self.path / "calls"
        return file.read_text() if file.exists() else ""

    def starts(self, worker="run1-0"):
        file = self.path / f"starts-{worker}"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def until(self, happened):
        for _ in range(600):
            if happened():
                return
            time.sleep(0.02)
        raise AssertionError("it did not happen within 12 seconds")


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path / "cloud")
    yield made
    for file in made.path.glob("homes/*/rlvlm_run/pid"):
        try:
            os.kill(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


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
        *[("tpu.sh", ["create", *without(SLICE, f"--{x}")], f"--{x}=") for x in ("project", "zone")],
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


# ---- what would be done -------------------------------------------------------------------------


def commands(text):
    """The commands of a dry run, as lists of words, their here-documents left out."""
    assert text
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    assert all(line.startswith("+ ") for line in lines), text
    return [shlex.split(line[2:]) for line in lines]


@pytest.mark.parametrize("command", ["create", "run", "logs", "status", "stop", "delete", "all"])
def test_dry_run_of_tpu_shows_all_and_runs_nothing(cloud, command):
    shutil.rmtree(cloud.bin / "gcloud", ignore_errors=True)
    for name in ("gcloud", "git", "mktemp", "sleep"):
        (cloud.bin / name).unlink()
    arguments = [*(RECIPE if command in ("run", "all") else []), "--dry-run"]
    arguments += SLICE if command in ("create", "all") else PLACE
    ran = cloud.run("tpu.sh", command, *arguments, HF_TOKEN="s3cret", WANDB_API_KEY="s3cret2")
    assert (ran.returncode, ran.stderr) == (0, "")
    shown = commands(ran.stdout)
    assert {words[0] for words in shown} <= {"gcloud", "git"}
    assert cloud.calls == ""
    assert "s3cret" not in ran.stdout
    starts = [word for words in shown for word in words if "worker.sh start" in word]
    assert len(starts) == (command in ("run", "all"))
    if starts:
        # A worker's shell splits --command again: the space in a value must survive that.
        assert shlex.split(starts[0].removeprefix("--command="))[2:] == [
            *("--config=configs/tiny.py", "--workdir=/mnt/b/run1", "--config.data.train=a b")
        ]
        assert "--scp-flag=-p" in ran.stdout
    assert (DELETE in ran.stdout.splitlines()) == (command in ("delete", "all"))


def test_dry_run_shows_the_commands_that_a_run_makes(cloud):
    """But for how often it looks whether the slice is there."""
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--spot")
    assert ran.returncode == 0, ran.stderr
    made = [json.loads(line) for line in cloud.calls.splitlines()]
    once = [words for i, words in enumerate(made) if words not in made[max(0, i - 1) : i]]
    shown = commands(cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--spot", "--dry-run").stdout)

    def without_directory(words):
        return [word.rsplit("/", 1)[-1] if "rlvlm_jax." in word else word for word in words]

    shown = [without_directory(words) for words in shown if words[0] == "gcloud"]
    # At the end the script itself looks once more what is left.
    assert [without_directory(words) for words in once] == [*shown, *shown[-2:]]


# ---- a slice, from asking for it to giving it back ----------------------------------------------


def test_create_run_logs_status_delete(cloud):
    cloud.reset(workers=2)
    ran = cloud.run("tpu.sh", "create", *SLICE, "--spot", "--valid-until=2h")
    assert ran.returncode == 0, ran.stderr
    assert "run1 is PROVISIONING" in ran.stderr
    assert "costs money until it is deleted" in ran.stderr  # also when all went well
    assert DELETE in ran.stderr
    create = next(json.loads(x) for x in cloud.calls.splitlines() if '"create"' in x)
    for word in (
        *("--node-id=run1", "--accelerator-type=v5litepod-16", "--spot"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--valid-until-duration=2h"),
    ):
        assert word in create
    assert (cloud.path / "installed").read_text().count("jax[tpu]") == 2  # on each worker

    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE, HF_TOKEN="s3cret 'x'")
    assert ran.returncode == 0, ran.stderr
    assert "log of run 1" in ran.stdout
    for worker in ("run1-0", "run1-1"):
        assert cloud.starts(worker) == 1
        given = (cloud.path / f"arguments-{worker}").read_text().splitlines()
        assert given == ["-m", "rlvlm_jax.main", "--config=configs/tiny.py", *RECIPE[1:]]
        assert (cloud.path / f"seen-{worker}").read_text() == "run 1, token s3cret 'x'\n"

    ran = cloud.run("tpu.sh", "logs", *PLACE)
    assert (ran.returncode, ran.stdout) == (0, "log of run 1\n")
    ran = cloud.run("tpu.sh", "status", *PLACE)
    assert ran.stdout.split("\n")[:3] == ["queued-resource run1 ACTIVE", "tpu-vm run1 READY", "exit 0"]

    ran = cloud.run("tpu.sh", "delete", *PLACE)
    assert ran.returncode == 0, ran.stderr
    assert cloud.exists == []
    assert "nothing named run1 is left" in ran.stderr
    ran = cloud.run("tpu.sh", "delete", *PLACE)  # and nothing to do is no fault
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_the_status_of_the_recipe_is_that_of_the_script(cloud, status):
    cloud.run("tpu.sh", "create", *SLICE)
    (cloud.path / "exits").write_text(f"{status}\n")
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert ran.returncode == status
    assert DELETE in ran.stderr


def test_several_slices_are_one_run(cloud):
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--slices=2")
    assert ran.returncode == 0, ran.stderr
    assert '"--node-count=2", "--node-prefix=run1"' in cloud.calls
    assert cloud.starts("run1-0-0") == cloud.starts("run1-1-0") == 1
    assert cloud.exists == []


def test_secrets_are_in_no_command_and_no_file_that_stays(cloud):
    cloud.run("tpu.sh", "create", *SLICE, WANDB_API_KEY="s3cret")
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE, HF_TOKEN="s3cret", WANDB_API_KEY="s3cret")
    assert ran.returncode == 0, ran.stderr
    assert "token s3cret" in (cloud.path / "seen-run1-0").read_text()
    assert "s3cret" not in cloud.calls + ran.stdout + ran.stderr
    assert "[wandb]" in (cloud.path / "installed").read_text()
    kept = [
        path
        for path in cloud.path.rglob("*")
        if path.is_file() and not path.is_symlink() and b"s3cret" in path.read_bytes()
    ]
    assert [path.name for path in kept] == ["seen-run1-0"]  # which the recipe itself wrote
    assert not list(cloud.path.glob("rlvlm_jax.*"))


def test_secrets_are_copied_with_mode_600(cloud):
    cloud.run("tpu.sh", "create", *SLICE)
    cloud.reset(**{**cloud.state, "fault": None})
    (cloud.path / "homes" / "run1-worker0").mkdir(parents=True)  # without the checkout: no start
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE, HF_TOKEN="s3cret")
    assert ran.returncode != 0
    copied = cloud.path / "homes" / "run1-worker0" / ".rlvlm_env"
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600


def test_a_second_run_on_the_same_slice_is_refused(cloud):
    cloud.reset("hang")
    cloud.run("tpu.sh", "create", *SLICE)
    first = cloud.begin("tpu.sh", "run", *PLACE, *RECIPE)
    cloud.until(lambda: cloud.starts() == 1)
    second = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert second.returncode == 1
    assert "going on here already" in second.stderr
    assert cloud.starts() == 1
    cloud.run("tpu.sh", "stop", *PLACE)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 75
    assert "checkpoint written" in output


def test_a_slice_that_exists_is_neither_taken_nor_deleted(cloud):
    cloud.run("tpu.sh", "create", *SLICE)
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE)
    assert ran.returncode == 1
    assert "exists already" in ran.stderr
    assert cloud.exists == ["run1", "run1"]
    assert cloud.starts() == 0


@pytest.mark.parametrize("word", ["FAILED", "SUSPENDED"])
def test_a_slice_that_will_not_come_says_why(cloud, word):
    cloud.reset(road=[word])
    ran = cloud.run("tpu.sh", "create", *SLICE)
    assert ran.returncode == (75 if word == "SUSPENDED" else 1)
    assert "no machines are free" in ran.stdout
    assert f"queued-resource run1 {word}" in ran.stderr
    assert DELETE in ran.stderr


def test_waiting_for_a_slice_is_bounded(cloud):
    cloud.reset(road=[])
    ran = cloud.run("tpu.sh", "create", *SLICE, WAIT_S="1")
    assert ran.returncode == 1
    assert "still WAITING_FOR_RESOURCES" in ran.stderr
    assert DELETE in ran.stderr


# ---- pre-emption and being stopped --------------------------------------------------------------


@pytest.mark.parametrize("queue", ["SUSPENDED", "SUSPENDING", "ACTIVE"])
def test_a_slice_that_is_taken_away_is_replaced(cloud, queue):
    """Also while the queue still calls it ACTIVE and only its machines say PREEMPTED."""
    cloud.reset("hang 0", preempt_at_follow=1, after_preemption=queue, workers=2)
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--spot", HF_TOKEN="t")
    assert ran.returncode == 0, ran.stderr
    assert cloud.starts() == cloud.starts("run1-1") == 2
    given = (cloud.path / "arguments-run1-0").read_text().splitlines()[2:]
    assert given == ["--config=configs/tiny.py", *RECIPE[1:]]  # the same, so that it resumes
    assert "run 2, token t" in (cloud.path / "seen-run1-0").read_text()
    assert cloud.exists == []
    assert cloud.state["kinds"].count("queued-resources create") == 2
    assert cloud.state["kinds"].count("queued-resources delete") == 2


def test_run_alone_says_that_the_slice_was_taken_away(cloud):
    cloud.reset("hang", preempt_at_follow=1)
    cloud.run("tpu.sh", "create", *SLICE)
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert ran.returncode == 75
    assert "pre-empted" in ran.stderr
    assert DELETE in ran.stderr


@pytest.mark.parametrize(
    ("exits", "status", "starts"),
    [("75 75 0", 0, 3), ("75 1", 1, 2), ("75 2", 2, 2), ("75 75 75 75", 75, 3), ("1", 1, 1)],
)
def test_all_begins_again_on_75_only_and_a_limited_number_of_times(cloud, exits, status, starts):
    cloud.reset(exits)
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--retries=2")
    assert (ran.returncode, cloud.starts()) == (status, starts)
    assert cloud.exists == []


def test_keep_keeps_and_says_so(cloud):
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--keep")
    assert ran.returncode == 0, ran.stderr
    assert cloud.exists == ["run1", "run1"]
    assert DELETE in ran.stderr


def test_stop_writes_a_checkpoint_and_is_not_taken_for_a_pre_emption(cloud):
    cloud.reset("hang 0")
    ran = cloud.begin("tpu.sh", "all", *SLICE, *RECIPE)
    cloud.until(lambda: cloud.starts() == 1)
    stopping = cloud.run("tpu.sh", "stop", *PLACE)
    assert stopping.returncode == 0, stopping.stderr
    output, _ = ran.communicate(timeout=60)
    assert ran.returncode == 75, output
    assert "checkpoint written" in output
    assert cloud.starts() == 1
    assert cloud.exists == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_answered_at_once_and_says_what_exists(cloud, number, status):
    cloud.reset("hang")
    ran = cloud.begin("tpu.sh", "all", *SLICE, *RECIPE)
    cloud.until(lambda: cloud.starts() == 1)
    ran.send_signal(number)
    output, _ = ran.communicate(timeout=10)  # the recipe would run for 20 seconds
    assert ran.returncode == status
    assert "queued-resource run1 ACTIVE" in output
    assert DELETE in output
    assert cloud.run("tpu.sh", "status", *PLACE).stdout.endswith("running\n")  # it goes on there


def test_an_interruption_while_waiting_for_the_slice(cloud):
    cloud.reset(road=[])
    ran = cloud.begin("tpu.sh", "create", *SLICE, POLL_S="30")
    cloud.until(lambda: "WAITING" in str(cloud.state["queued"]))
    ran.send_signal(signal.SIGTERM)
    output, _ = ran.communicate(timeout=10)
    assert ran.returncode == 143
    assert "queued-resource run1 WAITING_FOR_RESOURCES" in output
    assert DELETE in output


# ---- a failure at each call ---------------------------------------------------------------------


def check_what_is_left(cloud, output, context):
    """What exists is named with the command that deletes it, and nothing else is claimed."""
    if cloud.exists:
        assert "run1" in output, context
        named = DELETE in output
        if "queued-resource run1" not in output and not cloud.state["queued"]:
            named = named or "+ gcloud compute tpus tpu-vm delete run1" in output
        assert named, context
        assert "still exists" in output or "may still be there" in output, context
    else:
        assert "still exists" not in output, context


def calls_of(cloud, prepare, arguments):
    prepare()
    before = cloud.state["count"]
    ran = cloud.run("tpu.sh", *arguments)
    assert ran.returncode == 0, ran.stderr
    return before, cloud.state["kinds"][before:]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("span", ["once", "kind", "all"])
@pytest.mark.parametrize("command", ["create", "run", "delete", "all"])
def test_a_failure_at_any_call_leaves_nothing_unsaid(cloud, command, span, when):
    """The n-th call fails: once; it and all later ones of its kind; or everything from there on.

    "after": what was asked for is done all the same, only the answer is lost.
    """

    def prepare():
        cloud.reset(road=["ACTIVE"])
        if command in ("run", "delete"):
            assert cloud.run("tpu.sh", "create", *SLICE).returncode == 0

    arguments = {
        "create": ["create", *SLICE],
        "run": ["run", *PLACE, *RECIPE],
        "delete": ["delete", *PLACE],
        "all": ["all", *SLICE, *RECIPE],
    }[command]
    before, kinds = calls_of(cloud, prepare, arguments)
    assert len(kinds) >= 6
    seen = set()
    for n, kind in enumerate(kinds, start=1):
        if span == "kind" and kind in seen:
            continue  # later calls of a kind fail with the first
        seen.add(kind)
        prepare()
        state = cloud.state
        fault = {"at": before + n, "span": span, "when": when}
        (cloud.path / "state.json").write_text(json.dumps({**state, "fault": fault}))
        ran = cloud.run("tpu.sh", *arguments, HF_TOKEN="s3cret")
        output = ran.stdout + ran.stderr
        context = f"call {n} ({kind}) fails {span}, {when}: {ran.returncode}\n{output}"
        check_what_is_left(cloud, output, context)
        assert "s3cret" not in output + cloud.calls
        if ran.returncode == 0:
            # Only where a passing fault was overcome, or where the deed was done.
            assert span == "once" or kind in ("tpu-vm ssh follow", "queued-resources delete")
            if command in ("all", "delete"):
                assert cloud.exists == [], context
            if command in ("all", "run"):
                assert cloud.starts() == 1, context
            if command == "create":
                assert (cloud.path / "installed").exists(), context


# ---- GKE ----------------------------------------------------------------------------------------


def rendered(cloud, *more):
    ran = cloud.run("gke.sh", "render", *GKE_RECIPE, *GKE, *more)
    assert ran.returncode == 0, ran.stderr
    return yaml.safe_load(ran.stdout)


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_manifest_has_what_a_slice_needs(cloud):
    manifest = rendered(cloud, "--config.x=a \"b\" c\\d # e: f'", "--secret=tokens", "--restarts=3")
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
        "--config.x=a \"b\" c\\d # e: f'",
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
    assert ran.returncode == (fail == "apply")
    assert (delete in ran.stderr) == (fail != "apply")
    if fail == "apply":
        assert "nothing named run1 is left" in ran.stderr
        return
    assert ("may still run" if fail == "get" else "this still exists") in ran.stderr
    assert yaml.safe_load((cloud.path / "jobset").read_text())["kind"] == "JobSet"
    ran = cloud.run("gke.sh", "delete", "--name=run1", FAIL=fail)
    if fail == "none":
        assert ran.returncode == 0, ran.stderr
        assert "nothing named run1 is left" in ran.stderr
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
        env=cloud.environment(SRUN_STATUS=str(status), SLURM_JOB_ID="4711", SLURM_CPUS_ON_NODE="96"),
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


@pytest.fixture
def one_machine(cloud):
    """A checkout in which `python3 -m venv` makes the program that `exits` steers."""
    checkout = cloud.path / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    venv = f"#!/usr/bin/env bash\nmkdir -p .venv/bin\ncat >.venv/bin/python <<'END'\n{PROGRAM}END\n"
    executable(
        cloud.bin / "python3", venv + "cp {sleep} .venv/bin/pip\n".format(sleep=shutil.which("true"))
    )
    for name in ("chmod", "cp"):
        (cloud.bin / name).symlink_to(shutil.which(name))
    with (cloud.bin / "python3").open("a") as file:
        file.write("chmod +x .venv/bin/python .venv/bin/pip\n")

    def start(*arguments, **environment):
        return subprocess.Popen(
            [str(cloud.bin / "bash"), str(checkout / "launch" / "run.sh"), *arguments],
            env=cloud.environment(WORKER="here", **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_dry_run_of_run_shows_three_commands(one_machine, cloud):
    ran = one_machine("--dry-run", "cuda", "configs/tiny.py", "--workdir=runs/x")
    output, _ = ran.communicate(timeout=30)
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
    output, _ = ran.communicate(timeout=60)
    assert (ran.returncode, cloud.starts("here")) == (status, starts), output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_told_to_stop_stops_with_a_checkpoint(one_machine, cloud, number):
    cloud.reset("hang 0")
    ran = one_machine("cpu", "configs/tiny.py", "--workdir=runs/x", RETRIES="5")
    # It has set its trap by the time its log says so; the log is the pipe, so wait a moment.
    cloud.until(lambda: (cloud.path / "seen-here").exists())
    time.sleep(0.3)
    ran.send_signal(number)
    output, _ = ran.communicate(timeout=30)
    assert "checkpoint written" in output
    assert (ran.returncode, cloud.starts("here")) == (75, 1), output
