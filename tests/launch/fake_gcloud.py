# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Acts as gcloud: slices whose state is a file, workers that are directories.

`$FAKE_CLOUD` holds `state.json`, which lists what exists and what shall go wrong, and `calls`, one
line of JSON for each call. What is sent by ssh is really run by bash, in the worker's directory, by
the programs of `$FAKE_CLOUD/worker_bin`. Started once a call, so only what is quick to import.
"""

import json
import os
import signal
import sys
import time

CLOUD = os.environ["FAKE_CLOUD"]


def read(name):
    with open(os.path.join(CLOUD, name), encoding="utf-8") as file:
        return json.load(file)


def write(name, value):
    path = os.path.join(CLOUD, name)
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(f"{path}.{os.getpid()}", path)  # a test may be reading it


def end(message):
    sys.stderr.write(f"ERROR: {message}\n")
    sys.exit(1)


def flag(arguments, name, default=""):
    found = [a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}=")]
    return found[-1] if found else default


def home_of(node, worker):
    return os.path.join(CLOUD, "homes", f"{node}-worker{worker}")


def kill_run(home, signal_number):
    try:
        with open(os.path.join(home, "rlvlm_run", "pid"), encoding="utf-8") as file:
            os.kill(int(file.read()), signal_number)
    except (OSError, ValueError):
        pass  # nothing was started there, or it has ended


def take_away(state, nodes):
    import shutil  # slow to import, as subprocess below: only where it is needed

    for node in nodes:
        for worker in range(state["workers"]):
            kill_run(home_of(node, worker), signal.SIGKILL)
            shutil.rmtree(home_of(node, worker), ignore_errors=True)


def queued_resources(state, verb, arguments):
    queued, vms = state["queued"], state["vms"]
    if verb == "list":
        return "".join(f"{name}\t{entry['state']}\n" for name, entry in queued.items())
    name = arguments[0]
    if verb == "create":
        if name in queued:
            end(f"{name} exists already")
        count = int(flag(arguments, "node-count", "1"))
        nodes = [f"{name}-{i}" for i in range(count)] if count > 1 else [flag(arguments, "node-id")]
        if state["asking"]:  # it takes a while: hears of SIGTERM at once ("heeds") or never
            if state["asking"] == "ignores":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            write("asking", True)
            time.sleep(1 if state["asking"] == "ignores" else 100)
        queued[name] = {"state": "CREATING", "looks": 0, "nodes": nodes}
        return ""
    if name not in queued:
        end(f"{name}: NOT_FOUND")
    entry = queued[name]
    if verb == "delete":
        take_away(state, entry["nodes"])
        for node in entry["nodes"]:
            vms.pop(node, None)
        del queued[name]
        return ""
    assert verb == "describe"
    if "yaml" in flag(arguments, "format"):
        return "state:\n  failedData: {error: no machines are free}\n"
    road = ["WAITING_FOR_RESOURCES", *state["road"]]
    if entry["state"] not in ("SUSPENDED", "SUSPENDING", "FAILED", "DELETING"):
        entry["state"] = road[min(entry["looks"], len(road) - 1)]
        entry["looks"] += 1
    if entry["state"] == "ACTIVE":
        for node in entry["nodes"]:
            vms.setdefault(node, "READY")
    return entry["state"] + "\n"


def tpu_vm(state, verb, arguments):
    if verb == "list":
        asked = {n: name for name, e in state["queued"].items() for n in e["nodes"]}
        of = {**asked, **state.get("of", {})}
        return "".join(f"{n}\t{word}\t{of.get(n, '')}\n" for n, word in state["vms"].items())
    if verb == "delete":
        sys.stdin.read()  # as a program may
        if arguments[0] not in state["vms"]:
            end(f"{arguments[0]}: NOT_FOUND")
        del state["vms"][arguments[0]]
        return ""
    node = arguments[0]
    if verb == "scp":
        source, target = (a for a in arguments if not a.startswith("--"))
        node, path = target.split(":")
    if state["vms"].get(node) != "READY":
        end(f"{node} cannot be reached")
    chosen = flag(arguments, "worker", "0")
    workers = range(state["workers"]) if chosen == "all" else [int(chosen)]
    status = 0
    for worker in workers:
        home = home_of(node, worker)
        os.makedirs(home, exist_ok=True)
        if verb == "scp":
            import shutil

            shutil.copy(source, os.path.join(home, path))  # with its mode
            continue
        command = flag(arguments, "command")
        if " follow " in command and state["preempt_at_follow"] > 0:
            state["preempt_at_follow"] -= 1
            if state["preempt_at_follow"] == 0:
                take_away(state, state["vms"])
                for name in state["vms"]:
                    state["vms"][name] = state["vm_after_preemption"]
                for entry in state["queued"].values():
                    entry["state"] = state["after_preemption"]
                if state["after_preemption"] == "gone":
                    state["queued"], state["vms"] = {}, {}
                write("state.json", state)
                end("the connection was lost")
        write("state.json", state)
        environment = {
            "HOME": home,
            "PATH": os.path.join(CLOUD, "worker_bin"),
            "FAKE_CLOUD": CLOUD,
            "WORKER": f"{node}-{worker}",
        }
        import subprocess

        ran = subprocess.run(["bash", "-c", command], cwd=home, env=environment, check=False)
        status = status or ran.returncode
    if status:
        sys.exit(status)
    return ""


def main(arguments):
    with open(os.path.join(CLOUD, "calls"), "a", encoding="utf-8") as file:
        file.write(json.dumps(["gcloud", *arguments]) + "\n")
    state = read("state.json")
    assert arguments[:2] == ["compute", "tpus"], arguments
    assert flag(arguments, "project"), "every call names its project"
    assert flag(arguments, "zone"), "every call names its zone"
    group, verb, rest = arguments[2], arguments[3], arguments[4:]
    kind = f"{group} {verb}"
    if verb == "ssh":
        words = flag(rest, "command").split()
        kind += " " + (words[1] if words[0].endswith("worker.sh") else words[0])
    state["count"] += 1
    state["kinds"].append(kind)
    fault = state["fault"]  # {"at": n, "span": "once" | "kind" | "all", "when": "before" | "after"}
    fails = False
    if fault and state["count"] >= fault["at"]:
        fault.setdefault("kind", kind)  # of the n-th call
        fails = {
            "once": state["count"] == fault["at"],
            "kind": kind == fault["kind"],
            "all": True,
        }[fault["span"]]
    write("state.json", state)
    if fails and fault["when"] == "before":
        end("injected")
    answer = {"queued-resources": queued_resources, "tpu-vm": tpu_vm}[group](state, verb, rest)
    write("state.json", state)
    if fails:
        end("injected, after it was done")
    sys.stdout.write(answer)


main(sys.argv[1:])
