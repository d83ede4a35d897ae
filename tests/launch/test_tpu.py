# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""launch/tpu.sh: a slice from asking for it to giving it back, whatever happens in between."""

import json
import os
import select
import shlex
import shutil
import signal
import stat
import subprocess

import pytest
from launch_cases import (
    DELETE,
    PLACE,
    RECIPE,
    RECORD,
    SLICE,
    WITH_SIGINT,
    commands,
    executable,
)

pytestmark = pytest.mark.slow


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
    assert [without_directory(words) for words in once] == shown


@pytest.mark.parametrize("accelerator", ["v5e-8", "v5litepod-8"])
def test_v5e_has_another_name_in_gcloud(cloud, accelerator):
    ran = cloud.run("tpu.sh", "create", *PLACE, f"--accelerator={accelerator}", "--dry-run")
    assert ran.returncode == 0, ran.stderr
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite" in ran.stdout


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
    assert ran.stdout.split("\n")[:3] == [
        "queued-resource run1 ACTIVE",
        "tpu-vm run1 READY",
        "exit 0",
    ]

    ran = cloud.run("tpu.sh", "delete", *PLACE)
    assert ran.returncode == 0, ran.stderr
    assert cloud.exists == []
    assert "nothing named run1 exists" in ran.stderr
    ran = cloud.run("tpu.sh", "delete", *PLACE)  # and nothing to do is no fault
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_the_status_of_the_recipe_is_that_of_the_script(cloud, status):
    cloud.run("tpu.sh", "create", *SLICE)
    (cloud.path / "exits").write_text(f"{status}\n")
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert ran.returncode == status
    assert DELETE in ran.stderr


SUDO = (
    RECORD
    + """
case "$*" in
    tee*) cat >/dev/null ;;
    *install*) ln -s "$(command -v curl)" "$FAKE_CLOUD/worker_bin/gcsfuse" ;;
esac
"""
)


def test_a_bucket_is_mounted_on_each_worker(cloud):
    cloud.reset(workers=2)
    workers = cloud.path / "worker_bin"
    (workers / "ln").symlink_to(shutil.which("ln"))
    executable(workers / "sudo", SUDO)
    executable(workers / "curl", RECORD)
    executable(workers / "lsb_release", "#!/usr/bin/env bash\necho jammy\n")
    executable(workers / "mountpoint", "#!/usr/bin/env bash\nexit 1\n")
    ran = cloud.run("tpu.sh", "create", *SLICE, "--bucket=b")
    assert ran.returncode == 0, ran.stderr
    assert cloud.calls.count("sudo mkdir -p /mnt/b") == 2
    assert cloud.calls.count("gcsfuse --implicit-dirs --rename-dir-limit=200000 b /mnt/b") == 2
    assert cloud.calls.count("install gcsfuse") == 1  # it was there for the second


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
    assert "[gcs,wandb]" in (cloud.path / "installed").read_text()
    kept = [
        path
        for path in cloud.path.rglob("*")
        if path.is_file() and not path.is_symlink() and b"s3cret" in path.read_bytes()
    ]
    assert [path.name for path in kept] == ["seen-run1-0"]  # which the recipe itself wrote
    assert not list(cloud.path.glob("rlvlm_jax.*"))


def test_secrets_are_copied_with_mode_600(cloud):
    cloud.run("tpu.sh", "create", *SLICE)
    cloud.reset(**cloud.state)
    (cloud.path / "homes" / "run1-worker0").mkdir(parents=True)  # without the checkout: no start
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE, HF_TOKEN="s3cret")
    assert ran.returncode != 0
    copied = cloud.path / "homes" / "run1-worker0" / ".rlvlm_env"
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600


def test_a_second_run_on_the_same_slice_is_refused(cloud):
    cloud.reset("hang")
    cloud.run("tpu.sh", "create", *SLICE)
    first = cloud.begin("tpu.sh", "run", *PLACE, *RECIPE)
    cloud.until_ready()
    second = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert second.returncode == 1
    assert "already in progress here" in second.stderr
    assert cloud.starts() == 1
    cloud.run("tpu.sh", "stop", *PLACE)
    output, _ = first.communicate(timeout=100)
    assert first.returncode == 75
    assert "checkpoint written" in output


def test_a_slice_that_exists_is_neither_taken_nor_deleted(cloud):
    cloud.run("tpu.sh", "create", *SLICE)
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE)
    assert ran.returncode == 1
    assert "exists already" in ran.stderr
    assert cloud.exists == ["run1", "run1"]
    assert cloud.starts() == 0


@pytest.mark.parametrize("more", [[], ["--slices=8"]], ids=str)
def test_machines_that_the_queue_has_forgotten_are_deleted(cloud, more):
    cloud.reset(
        vms=dict.fromkeys(("run1-0", "run1-1", "run1-7", "other"), "READY"),
        of={"run1-0": "run1", "run1-1": "run1", "run1-7": "else"},
    )
    ran = cloud.run("tpu.sh", "delete", *PLACE, *more)
    assert ran.returncode == 0, ran.stderr
    assert cloud.exists == ["run1-7", "other"]
    assert cloud.state["kinds"].count("tpu-vm delete") == 2
    assert cloud.state["kinds"].count("tpu-vm list") == 2  # the first try deleted both
    assert "nothing named run1 exists" in ran.stderr


@pytest.mark.parametrize("whole", [True, False])
def test_outside_of_a_git_checkout_the_files_are_copied_or_nothing_is_asked_for(cloud, whole):
    for name in ("git", "tar", "gzip"):
        (cloud.bin / name).unlink(missing_ok=True)
        (cloud.bin / name).symlink_to(shutil.which(name))
    checkout = cloud.copy()
    if whole:
        for name in ("LICENSE", "README.md", "pyproject.toml", "rlvlm_jax"):
            (checkout / name).touch()
    ran = cloud.run("tpu.sh", "create", *SLICE)
    assert "is no git checkout; its files are copied as they are" in ran.stderr
    if whole:
        assert ran.returncode == 0, ran.stderr
        assert (cloud.path / "installed").exists()
    else:
        assert ran.returncode == 1
        assert cloud.calls == ""


def test_a_recipe_that_is_not_committed_is_noticed_before_anything_is_asked_for(cloud):
    (cloud.path / "uncommitted").touch()
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE)
    assert ran.returncode == 2
    assert "configs/tiny.py is not in the last commit" in ran.stderr
    assert cloud.calls == ""


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


@pytest.mark.parametrize(
    ("queue", "machine"),
    [
        *(("SUSPENDED", "PREEMPTED"), ("ACTIVE", "PREEMPTED"), ("FAILED", "READY")),
        *(("ACTIVE", "STOPPED"), ("ACTIVE", "REPAIRING")),
        pytest.param("SUSPENDING", "PREEMPTED", marks=pytest.mark.slow),
        pytest.param("ACTIVE", "TERMINATED", marks=pytest.mark.slow),
    ],
)
def test_a_slice_that_is_taken_away_is_replaced(cloud, queue, machine):
    """Also while the queue still calls it ACTIVE and only its machines say what they are."""
    cloud.reset(
        "hang 0",
        preempt_at_follow=1,
        after_preemption=queue,
        vm_after_preemption=machine,
        workers=2,
    )
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--spot", HF_TOKEN="t")
    assert ran.returncode == 0, ran.stderr
    assert cloud.starts() == cloud.starts("run1-1") == 2
    given = (cloud.path / "arguments-run1-0").read_text().splitlines()[2:]
    assert given == ["--config=configs/tiny.py", *RECIPE[1:]]  # the same, so that it resumes
    assert "run 2, token t" in (cloud.path / "seen-run1-0").read_text()
    assert cloud.exists == []
    assert cloud.state["kinds"].count("queued-resources create") == 2
    assert cloud.state["kinds"].count("queued-resources delete") == 2


@pytest.mark.parametrize("queue", ["gone", "DELETING"])
def test_a_slice_that_somebody_deleted_is_not_asked_for_again(cloud, queue):
    machine = "STOPPING"  # on its way
    cloud.reset("hang 0", preempt_at_follow=1, after_preemption=queue, vm_after_preemption=machine)
    ran = cloud.run("tpu.sh", "all", *SLICE, *RECIPE, "--spot")
    assert ran.returncode == 1, ran.stderr
    assert "does not answer about the run" in ran.stderr
    assert cloud.state["kinds"].count("queued-resources create") == 1
    assert "nothing named run1 exists" in ran.stderr


def test_run_alone_says_that_the_slice_was_taken_away(cloud):
    cloud.reset("hang", preempt_at_follow=1)
    cloud.run("tpu.sh", "create", *SLICE)
    ran = cloud.run("tpu.sh", "run", *PLACE, *RECIPE)
    assert ran.returncode == 75
    assert "preempted" in ran.stderr
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
    cloud.until_ready()
    stopping = cloud.run("tpu.sh", "stop", *PLACE)
    assert stopping.returncode == 0, stopping.stderr
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 75, output
    assert "checkpoint written" in output
    assert cloud.starts() == 1
    assert cloud.exists == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_answered_at_once_and_says_what_exists(cloud, number, status):
    cloud.reset("hang")
    ran = cloud.begin("tpu.sh", "all", *SLICE, *RECIPE)
    cloud.until(lambda: "worker.sh follow" in cloud.calls)
    ran.send_signal(number)
    output, _ = ran.communicate(timeout=100)  # the recipe would run for 200 seconds
    assert ran.returncode == status
    assert "queued-resource run1 ACTIVE" in output
    assert DELETE in output
    assert cloud.run("tpu.sh", "status", *PLACE).stdout.endswith("running\n")  # it goes on there


def test_an_interruption_while_waiting_for_the_slice(cloud):
    cloud.reset(road=[])
    ran = cloud.begin("tpu.sh", "create", *SLICE, POLL_S="300")
    cloud.until(lambda: "WAITING" in str(cloud.state["queued"]))
    ran.send_signal(signal.SIGTERM)
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 143
    assert "queued-resource run1 WAITING_FOR_RESOURCES" in output
    assert DELETE in output


@pytest.mark.parametrize("hearing", ["ignores", "heeds"])
def test_an_interruption_while_asking_for_the_slice(cloud, hearing):
    """What gcloud still does is waited for; what it does not answer may come all the same."""
    cloud.reset(road=[], asking=hearing)
    ran = cloud.begin("tpu.sh", "all", *SLICE, *RECIPE)
    cloud.until((cloud.path / "asking").exists)
    ran.send_signal(signal.SIGTERM)
    output, _ = ran.communicate(timeout=100)
    assert ran.returncode == 143, output
    expected = {
        "ignores": "queued-resource run1 CREATING",
        "heeds": "nothing named run1 exists yet, but it was being asked for: it may still be there",
    }
    assert expected[hearing] in output
    assert DELETE in output


@pytest.mark.parametrize("command", ["create", "all"])
def test_a_request_that_got_no_answer_may_still_come(cloud, command):
    cloud.reset(fault={"at": 3, "span": "once", "when": "before"})
    ran = cloud.run("tpu.sh", command, *SLICE, *(RECIPE if command == "all" else []))
    assert cloud.state["kinds"][2] == "queued-resources create"
    assert ran.returncode == 1
    assert "nothing named run1 exists yet" in ran.stderr
    assert "nothing named run1 exists\n" not in ran.stderr
    assert DELETE in ran.stderr


@pytest.mark.parametrize(
    ("number", "status", "terminal"),
    [(signal.SIGINT, 130, True), (signal.SIGINT, 130, False), (signal.SIGPIPE, 141, False)],
)
def test_a_report_outlives_its_reader(cloud, number, status, terminal):
    """As Ctrl-C ends "tee" in "2>&1 | tee log" too: it looks all the same, and tells the screen."""
    cloud.reset(road=[])
    reader, writer = os.pipe()
    screen, keyboard = os.openpty()
    take = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); " if terminal else ""
    *python, program = WITH_SIGINT
    ran = subprocess.Popen(
        [*python, take + program, *cloud.command("tpu.sh", "create", *SLICE)],
        env=cloud.environment(POLL_S="300"),
        stdin=keyboard if terminal else subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        start_new_session=True,
    )
    os.close(writer)
    seen = b""
    while b"run1 is WAITING" not in seen:
        more = os.read(reader, 1000)
        assert more, seen
        seen += more
    os.close(reader)
    ran.send_signal(number)
    assert ran.wait(timeout=100) == status
    assert cloud.state["kinds"][-2:] == ["queued-resources list", "tpu-vm list"]
    said = b""
    while select.select([screen], [], [], 0)[0]:
        said += os.read(screen, 1000)
    assert (DELETE in said.decode()) == terminal, said
    os.close(screen)
    os.close(keyboard)
