# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Machines that are directories, and scripts run with nothing but fakes on their PATH."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
FAKE_GCLOUD = Path(__file__).parent / "fake_gcloud.py"
TOOLS = """
    awk basename bash cat dirname env grep mkdir mktemp pgrep rm sed seq sleep
"""
WORKER_TOOLS = """
    basename bash cat chmod dirname env grep gzip id mkdir nohup rm seq setsid sleep tail tar touch
    tr
"""
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
    echo ready >"$FAKE_CLOUD/ready-$WORKER"
    for _ in $(seq 4000); do sleep 0.05; done
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
GIT = """#!/usr/bin/env bash
for argument in "$@"; do
    case "$argument" in
        --output=*) file="${argument#*=}" ;;
        cat-file) [ ! -e "$FAKE_CLOUD/uncommitted" ] || exit 128 ;;
    esac
done
[ -z "${file:-}" ] || PATH="$PATH:NEEDED" tar -czf "$file" -C "$2" launch/worker.sh
"""
RECORD = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$FAKE_CLOUD/calls"\n'


# Tests in the background of a shell are started with SIGINT ignored, which bash would not undo;
# Python ignores SIGPIPE.
WITH_SIGINT = [
    *(sys.executable, "-I", "-S", "-c"),
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.signal(signal.SIGPIPE, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]


def executable(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def tools(directory, names):
    directory.mkdir()
    for name in names.split():
        (directory / name).symlink_to(shutil.which(name))


class Cloud:
    """Directories in place of machines, and scripts run with nothing else on their PATH."""

    def __init__(self, path):
        self.path = path
        self.bin = path / "bin"
        self.checkout = ROOT
        path.mkdir()
        tools(self.bin, TOOLS)
        tools(path / "worker_bin", WORKER_TOOLS)
        executable(path / "worker_bin" / "python3", PYTHON3)
        executable(
            self.bin / "gcloud",
            f'#!/usr/bin/env bash\nexec {sys.executable} -I -S {FAKE_GCLOUD} "$@"\n',
        )
        needed = f"{Path(shutil.which('tar')).parent}:{Path(shutil.which('gzip')).parent}"
        executable(self.bin / "git", GIT.replace("NEEDED", needed))
        self.reset()

    def reset(self, exits="0", **changes):
        shutil.rmtree(self.path / "homes", ignore_errors=True)
        for pattern in ("starts-*", "seen-*", "ready-*", "arguments-*", "installed", "calls"):
            for file in self.path.glob(pattern):
                file.unlink()
        state = {
            "queued": {},
            "vms": {},
            "workers": 1,
            "road": ["PROVISIONING", "ACTIVE"],
            "preempt_at_follow": 0,
            "after_preemption": "SUSPENDED",
            "vm_after_preemption": "PREEMPTED",
            "asking": None,
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

    def copy(self, name="checkout"):
        """Copies the scripts and a recipe to a directory, and runs them from there; returns it."""
        self.checkout = self.path / name
        shutil.copytree(ROOT / "launch", self.checkout / "launch", dirs_exist_ok=True)
        (self.checkout / "configs").mkdir(exist_ok=True)
        shutil.copy(ROOT / "configs" / "tiny.py", self.checkout / "configs")
        return self.checkout

    def command(self, script, *arguments):
        return [str(self.bin / "bash"), str(self.checkout / "launch" / script), *arguments]

    def run(self, script, *arguments, cwd=None, **more):
        return subprocess.run(
            self.command(script, *arguments),
            cwd=cwd,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def begin(self, script, *arguments, **more):
        return subprocess.Popen(
            [*WITH_SIGINT, *self.command(script, *arguments)],
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
        """Waits for it, for minutes: the machine may be busy."""
        for _ in range(6000):
            if happened():
                return
            time.sleep(0.02)
        raise AssertionError("it did not happen")

    def until_ready(self, worker="run1-0"):
        """Waits until a recipe that hangs can be told to stop."""
        self.until((self.path / f"ready-{worker}").exists)

    def end(self):
        """Ends what was left running."""
        for file in self.path.glob("homes/*/rlvlm_run/pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                continue


def is_alive(pid):
    """Whether a process runs; one that has ended may still wait for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def commands(text):
    """The commands of a dry run, as lists of words, their here-documents left out."""
    assert text
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    assert all(line.startswith("+ ") for line in lines), text
    return [shlex.split(line[2:]) for line in lines]
