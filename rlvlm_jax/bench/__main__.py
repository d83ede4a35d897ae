# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m rlvlm_jax.bench [--peer=torch] [--case=4m-64,...] --out=bench.json`.

Times rollout, log-prob passes, update and the whole iteration against the device's measured limit.
`--peer=torch` times transformers and torch in the same run, on the same weights and prompts.
`--config=configs/X.py` takes model, data and sizes from a run's configuration.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvlm_jax import cli
from rlvlm_jax.errors import InputError

if TYPE_CHECKING:
    from rlvlm_jax.bench import limit
    from rlvlm_jax.bench.work import Workload

PARTS = ("rollout", "logprobs", "update")  # in this order they make an iteration
PEERS = ("torch",)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit status."""
    arguments, rest = read_flags(argv)
    out = check_out(arguments.out)
    config = None
    if rest:
        config, _ = cli.parse_config([*rest, "--workdir=unused"], "rlvlm_jax.bench")
    if arguments.peer:
        check_peer()
        # Both libraries share the device, so JAX must not allocate all of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Imported late: a bad flag is reported before JAX is loaded.
    import jax

    from rlvlm_jax.bench import work

    devices, gpu = jax.device_count(), jax.default_backend() == "gpu"
    cases = work.find(arguments.case or ",".join(work.ON_GPU if gpu else work.ON_CPU))
    report = about(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if config is not None:
            workloads = iter([work.of_run(config, Path(rest_name(rest)).stem, devices)])
        else:
            workloads = (work.built_in(case, Path(scratch), devices) for case in cases)
        for workload in workloads:
            report["cases"][workload.name] = time_case(workload, arguments)
            say(table(workload.name, report["cases"][workload.name]))
            write(out, json.dumps(report, indent=1))  # keeps finished cases if cut off
    return cli.DONE


def read_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own flags, and the `--config` flags."""
    parser = argparse.ArgumentParser(
        prog="rlvlm_jax.bench", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--peer", choices=PEERS, help="also time this library on the same work")
    parser.add_argument(
        "--case", help="built-in cases, comma-separated; default: depends on the device"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; medians are shown")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.repeats < 1:
        raise InputError(f"--repeats={arguments.repeats} must be at least 1")
    for argument in rest:
        if not argument.lstrip("-").startswith(("config", "noconfig")):
            raise InputError(
                f"unexpected argument {argument!r}; --help lists the flags; set configuration keys "
                "as --config.key=value"
            )
    if rest and arguments.case:
        raise InputError("--config sets the work itself; leave out --case")
    return arguments, rest


def rest_name(rest: Sequence[str]) -> str:
    """Returns the file that `--config=FILE[:ARG]` names."""
    return next(a for a in rest if a.lstrip("-").startswith("config=")).split("=", 1)[1]


def check_out(name: str) -> Path:
    """Returns the file to write; checks it before anything is timed.

    Raises:
        InputError: it is a directory, or its parent is not a writable directory.
    """
    out = Path(name)
    if not out.name or out.is_dir():
        raise InputError(f"--out={name} is a directory; name a file, such as bench.json")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(
            f"--out={name} cannot be written: {out.parent} is not a writable directory"
        )
    return out


def check_peer() -> None:
    """Checks that torch is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("--peer=torch needs PyTorch; install it, or leave --peer out")


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns date, device and versions: what the numbers depend on besides the work."""
    from rlvlm_jax import recorder

    environment = recorder.environment()
    if arguments.peer:
        environment["versions"]["torch"] = importlib.metadata.version("torch")
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        **environment,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "peer": arguments.peer,
        "repeats": arguments.repeats,
        "notes": [
            "seconds: every timed round, after one warm-up round; no compilation included",
            "compile_s: all steps of our side, timed separately; the peer compiles nothing",
            "tokens: rollout and iteration count new tokens, other parts prompts and responses",
            "ratio: median over rounds of the peer's seconds / ours in the same round",
            "the peer's iteration is the sum of its three parts; its loop runs them in sequence",
            "work: counted, see models/common/costs.py; bound_s: the least time the limit allows",
            "limit: the faster of two measurements, before and after the case",
            "logprobs: old and reference pass; ours skips the old pass in float32, because the "
            "sampler's log-probs are then exact",
            "values that were not measured are absent",
        ],
        "cases": {},
    }


def time_case(workload: "Workload", arguments: argparse.Namespace) -> dict[str, Any]:
    """Times every part of one workload, alternating ours and the peer's within each round.

    Args:
        workload: model, configuration, prompts.
        arguments: the flags.

    Returns:
        The case's entry in the JSON file.
    """
    from rlvlm_jax.bench import limit, ours

    dtype = workload.config.model.dtype
    before = limit.measure(dtype)
    say(f"{workload.name}: compiling")
    own_side = ours.start(workload)
    seconds = {part: [] for part in (*PARTS, "iteration")}
    peer_seconds: dict[str, list[float]] = {}
    peer_side, peer_diff = None, None
    if arguments.peer:
        from rlvlm_jax.bench import peer

        peer_side = peer.start(workload)
        peer_seconds = {part: [] for part in (*PARTS, "iteration")}
    own_side.rollout()
    own_side.logprobs()
    own_diff = own_side.logprob_diff()
    if peer_side is not None:
        peer_diff = peer.largest_logprob_diff(peer_side, *own_side.responses())
    for number in range(arguments.repeats + 1):
        say(
            f"{workload.name}: round {number} of {arguments.repeats}"
            if number
            else f"{workload.name}: warm-up"
        )
        times = {}
        for part in PARTS:
            times[part] = [getattr(own_side, part)()]
            if peer_side is not None:
                times[part].append(getattr(peer_side, part)())
        times["iteration"] = [own_side.iteration()]
        if peer_side is not None:
            times["iteration"].append(sum(times[part][1] for part in PARTS))
        if number:
            for part, (own, *other) in times.items():
                seconds[part].append(own)
                if other:
                    peer_seconds[part] += other
    device = limit.fastest(before, limit.measure(dtype))
    parts = {}
    for part, phases in limit.counted(workload).items():
        parts[part] = summary(part, workload, seconds[part], peer_seconds.get(part), phases, device)
    result = {
        "sizes": sizes(workload),
        "limit": device._asdict(),
        "compile_s": own_side.compile_s,
        "parts": parts,
    }
    if own_diff:
        result["sampler_trainer_gap_nats"] = own_diff
    if peer_diff is not None:
        result["largest_difference_to_peer_nats"] = peer_diff
    return result


def sizes(workload: "Workload") -> dict[str, Any]:
    """Returns the sizes of the work."""
    from rlvlm_jax.bench import work

    c, model = workload.config, workload.session.source.config
    return {
        "parameters": work.parameters(model),
        "dtype": c.model.dtype,
        "prompts": c.rollout.prompts,
        "samples": c.rollout.samples,
        "prompt_tokens": workload.batch.tokens.shape[1],
        "image_tokens": int(
            ((workload.batch.tokens == model.image_token_id) & workload.batch.mask)[0].sum()
        ),
        "new_tokens": c.rollout.max_tokens,
        "minibatch": c.train.minibatch,
    }


def summary(
    part: str,
    workload: "Workload",
    seconds: list[float],
    peer_seconds: list[float] | None,
    phases: dict[str, Any],
    device: "limit.Limit",
) -> dict[str, Any]:
    """Returns the JSON entry of one part of a case; see the notes in `about`.

    Args:
        part: its name.
        workload: model, configuration, prompts.
        seconds: ours, one per round.
        peer_seconds: the peer's, in the same rounds, or None.
        phases: the counted work.
        device: the device's measured limit.
    """
    from rlvlm_jax.bench import limit

    c = workload.config
    rows, new = c.rollout.prompts * c.rollout.samples, c.rollout.max_tokens
    prompt = int(workload.batch.mask.sum()) * c.rollout.samples
    tokens = rows * new if part in ("rollout", "iteration") else rows * new + prompt
    median = statistics.median(seconds)
    bound = limit.bound_s(phases, device)
    timing: dict[str, Any] = {
        "seconds": seconds,
        "median_s": median,
        "tokens": tokens,
        "tokens_per_s": tokens / median,
        "work": {name: phase._asdict() for name, phase in phases.items()},
        "bound_s": bound,
        "share_of_limit": bound / median,
    }
    if peer_seconds:
        their_median = statistics.median(peer_seconds)
        timing["peer"] = {
            "seconds": peer_seconds,
            "median_s": their_median,
            "tokens_per_s": tokens / their_median,
        }
        pairs = zip(peer_seconds, seconds, strict=True)
        timing["ratio"] = statistics.median(peer / own for peer, own in pairs)
    return timing


def table(name: str, case: dict[str, Any]) -> str:
    """Formats a case for the terminal."""
    s = case["sizes"]
    lines = [
        f"{name}: {s['parameters'] / 1e6:.1f}M parameters, {s['dtype']}, {s['prompts']} x "
        f"{s['samples']}, {s['prompt_tokens']} ({s['image_tokens']}) + {s['new_tokens']} tokens; "
        f"compiled in {case['compile_s']:.1f} s",
        f"  {'part':<10}{'ours s':>9}{'tok/s':>10}{'peer s':>9}{'tok/s':>10}{'ratio':>8}"
        f"{'of limit':>10}",
    ]
    for part, timing in case["parts"].items():
        peer = timing.get("peer")
        comparison = f"{'-':>9}{'-':>10}{'-':>8}"
        if peer:
            comparison = f"{peer['median_s']:>9.3f}{peer['tokens_per_s']:>10,.0f}"
            comparison += f"{timing['ratio']:>7.2f}x"
        lines.append(
            f"  {part:<10}{timing['median_s']:>9.3f}{timing['tokens_per_s']:>10,.0f}{comparison}"
            f"{timing['share_of_limit']:>10.1%}"
        )
    return "\n".join(lines)


def say(line: str) -> None:
    """Prints a line and flushes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write(out: Path, text: str) -> None:
    """Writes a file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out={out} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    cli.exit_with(main)
