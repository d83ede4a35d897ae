# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m rlvlm_jax.plan --config=configs/X.py[:ARG] --topology=v5p-32 [--config.key=value]`.

Compiles the run's own steps for hardware that is not attached. Prints, per device, memory by step
and by part, the largest arrays, collectives and their bytes. Predicts seconds and dollars. Needs
neither weights nor data. Exit status 0: the run fits; 2: it does not fit, or a flag is wrong.

The TPU compiler is in the package `libtpu`, the GPU compiler in `jax-cuda13-plugin` and
`jax-cuda13-pjrt`. The TPU compiler runs with the least effort. This takes a fraction of the time,
and the programs need a few percent more memory than a run's; `--effort=0` compiles a run's own
programs. cuDNN attention cannot be compiled without the cuDNN libraries; then the plan uses plain
attention, which needs more memory.
"""

import argparse
import json
import math
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlvlm_jax import cli
from rlvlm_jax import config as config_lib
from rlvlm_jax.errors import InputError
from rlvlm_jax.plan.topology import GIB, SOURCES, Topology, devices, parse

Report = dict[str, Any]
USAGE = (
    "usage: python -m rlvlm_jax.plan --config=configs/X.py[:ARG] --topology=v5p-32 "
    "[--config.key=value ...]; --help lists its other flags"
)


class Parser(argparse.ArgumentParser):
    """Reports a wrong flag in one sentence, like every command."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message}; {USAGE}")


def main(argv: Sequence[str]) -> int:
    """Plans a run; returns the exit status."""
    force_cpu()
    arguments, rest = read_flags(argv)
    topology = parse(arguments.topology)
    check_flags(arguments)
    config = read_config(rest)
    if not topology.is_tpu:
        # There is no GPU to time kernels on, so the compiler must not autotune.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0"
        fall_back_to_plain_attention(config)
    report = plan(config, topology, arguments)
    sys.stdout.write(table(report) + "\n")
    sys.stdout.flush()
    if arguments.out:
        write(Path(arguments.out), json.dumps(report, indent=1))
    if report["fits"]:
        return cli.DONE
    say(f"error: {topology.name} is too small: {report['advice']}")
    return cli.BAD_INPUT


def force_cpu() -> None:
    """Makes JAX run on the CPU without searching for a TPU or GPU; call it before importing JAX.

    Otherwise two plans at once would wait for each other's lock.
    """
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        CUDA_VISIBLE_DEVICES="-1",
    )


def read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own flags, and the `--config` flags."""
    parser = Parser(prog="rlvlm_jax.plan", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--topology", required=True, help="such as v5p-32, v6e-64, 8xH200")
    parser.add_argument("--out", help="write the whole report to this JSON file")
    parser.add_argument(
        "--prompt-tokens", type=int, default=0, help="P; 0 = the configured maximum"
    )
    parser.add_argument("--patches", type=int, default=0, help="I; 0 = the configured maximum")
    parser.add_argument("--mfu-train", type=float, default=0.4, help="fraction of peak FLOP/s")
    parser.add_argument("--mfu-prefill", type=float, default=0.4, help="the same for prefill")
    parser.add_argument(
        "--decode-bandwidth", type=float, default=0.6, help="fraction of memory bandwidth"
    )
    parser.add_argument(
        "--link-bandwidth", type=float, default=0.7, help="fraction of link bandwidth"
    )
    parser.add_argument("--price", type=float, default=0.0, help="dollars per chip-hour")
    parser.add_argument(
        "--effort", type=float, default=-1.0, help="TPU compiler effort, -1 to 1; a run uses 0"
    )
    parser.add_argument("--hlo", help="write the compiled programs' text to this directory")
    return parser.parse_known_args(list(argv))


def check_flags(arguments: argparse.Namespace) -> None:
    """Checks the flags before minutes of compiling.

    Raises:
        InputError: the message names the flag.
    """
    if arguments.out and Path(arguments.out).is_dir():
        raise InputError(f"--out={arguments.out} is a directory; name a file in it")
    if arguments.out and not Path(arguments.out).absolute().parent.is_dir():
        raise InputError(f"--out={arguments.out}: its directory does not exist")
    if arguments.hlo:
        hlo = Path(arguments.hlo).absolute()
        nearest = next(path for path in (hlo, *hlo.parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"--hlo={arguments.hlo}: {nearest} is a file; name a directory")
    for name in ("mfu_train", "mfu_prefill", "decode_bandwidth", "link_bandwidth"):
        share = getattr(arguments, name)
        if not 0 < share <= 1:
            flag = name.replace("_", "-")
            raise InputError(
                f"--{flag}={share} must be above 0 and at most 1, a fraction of the peak"
            )
    for name in ("prompt_tokens", "patches", "price"):
        number = getattr(arguments, name)
        if not 0 <= number < math.inf:
            raise InputError(f"--{name.replace('_', '-')}={number} must be 0 or more")
    if not -1 <= arguments.effort <= 1:
        raise InputError(f"--effort={arguments.effort} must be between -1 and 1")


def read_config(flags: Sequence[str]) -> Any:
    """Reads `--config` and its keys; the usage in errors is this command's."""
    try:
        config, _ = cli.parse_config([*flags, "--workdir=unused"], "rlvlm_jax.plan")
    except InputError as error:
        problem, hint, _ = str(error).partition("; usage: ")
        raise InputError(f"{problem}; {USAGE}" if hint else problem) from error
    return config


def check_mesh(config: Any, topology: Topology) -> int:
    """Resolves the mesh and returns its number of devices; prints a note if chips stay unused.

    Raises:
        InputError: a run over several hosts would not use all chips.
    """
    config_lib.resolve_mesh(config, topology.chips)
    used, chips = math.prod(config.mesh.values()), topology.chips
    if 1 < used < chips and topology.hosts > 1:
        raise InputError(
            f"config.mesh takes {used} of the {chips} chips of {topology.name}, but a run over "
            f"several hosts ({topology.hosts} or more here) must use all chips; set one axis to "
            "-1, such as --config.mesh.fsdp=-1"
        )
    if 0 < used < chips:
        say(
            f"the plan uses {used} of the {chips} chips of {topology.name}; a run over several "
            "hosts must use all of them"
        )
    return used


def fall_back_to_plain_attention(config: Any) -> None:
    """Plans XLA's attention if cuDNN's cannot be compiled, and says so."""
    import importlib.util

    try:
        there = importlib.util.find_spec("nvidia.cudnn") is not None
    except ModuleNotFoundError:
        there = False
    if config.model.attention == "auto" and not there:
        config.model.attention = "plain"
        say(
            "cuDNN is not installed here, so the plan uses 'plain' attention, which needs more "
            "memory and time than the 'cudnn' attention of a GPU run; to plan that, pip install "
            "nvidia-cudnn-cu13 nvidia-cublas nvidia-cuda-runtime nvidia-cuda-nvrtc"
        )


def plan(config: Any, topology: Topology, arguments: argparse.Namespace) -> Report:
    """Lowers, compiles and analyses the steps; returns the whole report."""
    from rlvlm_jax.plan import advice, compiled, predict, work
    from rlvlm_jax.sampling.sampler import CHUNK

    count = check_mesh(config, topology)
    effort = arguments.effort if topology.is_tpu else 0.0
    planned = work.lower(config, devices(topology), arguments.prompt_tokens, arguments.patches)
    s = planned.sizes
    chunks = [size // CHUNK for size in predict.blocks(s)]
    steps: dict[str, compiled.Step] = {}
    for name in list(planned.steps):
        unstated = chunks if name in ("sample", "evaluate") else ()
        lowered = planned.steps.pop(name)
        step = compiled.compile_step(name, lowered, count, unstated, arguments.hlo, effort)
        steps[name] = step
        say(f"compiled {name} in {step.seconds:.0f} s")
    # The steps of an iteration pass prompts, features and responses on to the trajectory's.
    passed_on = steps["trajectory"].arguments if "trajectory" in steps else 0.0
    persistent = sum(planned.state_bytes.values()) + passed_on
    memory = topology.chip.memory
    rows = {}
    for name, step in steps.items():
        own = step.arguments + step.outputs - step.aliased + step.temporaries
        elsewhere = max(0.0, persistent - step.arguments)
        total = (step.peak if step.problem else own) + elsewhere
        rows[name] = {
            "compile_s": round(step.seconds, 1),
            "compile_cpu_s": round(step.cpu_seconds, 1),
            "arguments": step.arguments,
            "outputs": step.outputs,
            "aliased": step.aliased,
            "temporaries": step.temporaries,
            "peak": step.peak,
            "kept_beside": elsewhere,
            "total": total,
            "peak_total": step.peak + elsewhere,
            "fits": not step.problem and total <= memory,
            "problem": step.problem,
            "largest": step.largest,
            "collectives": by_kind(step),
            "sent": compiled.sent_bytes(step.collectives),
            "largest_gather": compiled.largest_gather(step.collectives),
        }
    assumed = predict.Assumed(
        arguments.mfu_train,
        arguments.mfu_prefill,
        arguments.decode_bandwidth,
        arguments.link_bandwidth,
    )
    sent = {name: row["sent"] for name, row in rows.items() if name != "evaluate"}
    phases = predict.seconds(s, topology, sent, assumed)
    dollars = arguments.price or topology.chip.dollars
    fits = all(row["fits"] for row in rows.values())
    worst = max(rows, key=lambda name: rows[name]["total"])
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "memory": memory,
        "model": planned.source,
        "mesh": dict(s.config.mesh),
        "attention": planned.attention,
        "layout": s.layout,
        "prompt_tokens": s.bucket[0],
        "patches": s.bucket[1],
        "responses": s.config.rollout.prompts * s.config.rollout.samples,
        "response_tokens": s.config.rollout.max_tokens,
        "lowering_s": round(planned.lowering_s, 1),
        "effort": effort,
        "compile_s": round(sum(step.seconds for step in steps.values()), 1),
        "compile_cpu_s": round(sum(step.cpu_seconds for step in steps.values()), 1),
        "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "state": planned.state_bytes,
        "passed_on": passed_on,
        "steps": rows,
        "flops": {name: phase.executed for name, phase in predict.count_work(s).items()},
        "assumed": assumed._asdict(),
        "seconds": phases,
        "price": dollars,
        **predict.summary(s, topology, phases, dollars),
        "fits": fits,
        "advice": "" if fits else advice.advise(s, topology, worst),
    }


def by_kind(step: Any) -> dict[str, dict[str, float]]:
    """Returns kind -> instructions, runs, bytes sent per device, and those sent outside loops."""
    totals: dict[str, dict[str, float]] = {}
    for op in step.collectives:
        row = totals.setdefault(op.kind, dict.fromkeys(("count", "runs", "sent", "outside"), 0))
        row["count"] += 1
        row["runs"] += op.times
        row["sent"] += op.sent * op.times
        if not op.depth and op.times == 1:  # the update's optimizer steps are a loop too
            row["outside"] += op.sent
    return totals


def table(report: Report) -> str:
    """Formats the report as text."""

    def gib(value: float) -> str:
        return f"{value / GIB:.2f}"

    lines = [
        f"{report['topology']}: {report['chips']} chips of {gib(report['memory'])} GiB, mesh "
        + " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items()),
        f"model: {report['model']}; attention {report['attention']}; rollout.layout "
        f"{report['layout']}",
        f"batch: prompts of {report['prompt_tokens']} tokens and {report['patches']} patches, "
        f"{report['responses']} responses of {report['response_tokens']} tokens",
        f"lowered in {report['lowering_s']} s, compiled in {report['compile_s']} s "
        f"({report['compile_cpu_s']} s of CPU time), "
        f"{gib(report['host_peak'])} GiB of host memory",
        "",
        "GiB per device      compile s  arguments  outputs  temporaries  kept beside    total   "
        "peak",
    ]
    for name, row in report["steps"].items():
        lines.append(
            f"{name:<19} {row['compile_s']:9.1f}  {gib(row['arguments']):>9}  "
            f"{gib(row['outputs']):>7}  {gib(row['temporaries']):>11}  "
            f"{gib(row['kept_beside']):>11}  {gib(row['total']):>7}  "
            f"{gib(row['peak_total']):>5}" + ("" if row["fits"] else "  does not fit")
        )
        if row["problem"]:
            lines.append(f"  {row['problem']}")
    lines.append(
        "total: arguments, outputs, temporaries with gaps between them, and what is kept beside; "
        "peak: the most alive at once, by the compiler"
    )
    parts = ", ".join(f"{name} {gib(size)}" for name, size in report["state"].items())
    lines.append(f"state: {parts}; passed from step to step: {gib(report['passed_on'])}")
    lines.append("")
    for name, row in report["steps"].items():
        if row["largest"]:
            shown = ", ".join(f"{shape} {gib(size)}" for size, shape, _ in row["largest"][:3])
            lines.append(f"largest in {name}: {shown}")
    lines.append("")
    for name, row in report["steps"].items():
        size, shape, _ = row["largest_gather"]
        if size:
            lines.append(
                f"{name}: largest all-gather, inside or outside loops: {shape} {gib(size)}"
            )
        for kind, counts in row["collectives"].items():
            lines.append(
                f"{name}: {kind} {counts['count']:.0f} in the text, {counts['runs']:.0f} runs, "
                f"{gib(counts['sent'])} GiB sent per device, {gib(counts['outside'])} outside loops"
            )
    parts = ", ".join(f"{name} {value / 1e12:.4g}" for name, value in report["flops"].items())
    lines += ["", f"TFLOP per iteration: {parts}"]
    parts = ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items())
    shares = ", ".join(f"{name} {value:.0%}" for name, value in report["assumed"].items())
    lines += [
        f"seconds predicted: {parts} (assumed fractions of the peak: {shares})",
        f"{report['iteration_s']:.0f} s per iteration, {report['tokens_per_s']:.0f} response "
        f"tokens per second, MFU {report['mfu']:.1%}, ${report['dollars_per_1000']:.0f} for 1,000 "
        f"iterations at ${report['price']:.2f} per chip-hour",
        f"({SOURCES})",
        "it fits" if report["fits"] else f"it does not fit: {report['advice']}",
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    """Writes a line to stderr and flushes."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write(path: Path, text: str) -> None:
    """Writes a file atomically.

    Raises:
        InputError: it cannot be written.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise InputError(f"--out={path} cannot be written: {error.strerror}") from error
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    cli.exit_with(main)
