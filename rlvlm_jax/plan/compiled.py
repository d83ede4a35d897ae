# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles steps for devices that are not attached, and reads the compiled programs.

Memory is the compiler's own count. Collectives come from the optimised program's text: kind, bytes
per device, and how often the loops around them run, if the text says so. A branch counts as its
most expensive side, because only one side runs.
"""

import collections
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    "ragged-all-to-all",
)
_BITS = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 8),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 16),
    **dict.fromkeys(("f32", "s32", "u32"), 32),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 64),
    **dict.fromkeys(("s4", "u4"), 4),
}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?[\]})]) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\)|\{)?.*\{$")


class Collective(NamedTuple):
    """One instruction of the program that moves data between devices."""

    kind: str  # one of KINDS
    bytes: int  # the larger of input and output, per device
    devices: int  # participants
    depth: int  # number of loops around it
    times: float  # runs per iteration
    shape: str  # of the result
    where: str  # the model operation that it belongs to

    @property
    def sent(self) -> float:
        """Bytes that one device sends per run, with the usual ring algorithm."""
        share = (self.devices - 1) / self.devices
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        return self.bytes if self.kind == "collective-permute" else share * self.bytes


class Step(NamedTuple):
    """A compiled step; bytes are per device.

    Attributes:
        name: as in `compiled_steps.Steps`.
        seconds: compile time.
        cpu_seconds: compile time over all threads; the better measure on a busy machine.
        arguments: bytes of the arguments.
        outputs: bytes of the results.
        aliased: bytes of results that reuse the memory of arguments.
        temporaries: bytes of temporary arrays.
        peak: the largest sum of all these at one time, by the compiler.
        collectives: of the program.
        largest: (bytes, shape, operation) of the largest results, each shape once.
        problem: the compiler's message if memory is too small; then only `peak` and the times are
            set.
    """

    name: str
    seconds: float
    cpu_seconds: float
    arguments: float = 0
    outputs: float = 0
    aliased: float = 0
    temporaries: float = 0
    peak: float = 0
    collectives: tuple[Collective, ...] = ()
    largest: tuple[tuple[int, str, str], ...] = ()
    problem: str = ""


def compile_step(
    name: str,
    lowered: Any,
    devices: int,
    unstated: Sequence[int] = (),
    hlo: str | None = None,
    effort: float = 0.0,
) -> Step:
    """Compiles a lowered step and analyses the program.

    Args:
        name: of the step.
        lowered: from `compiled_steps.lower_steps`.
        devices: of the mesh.
        unstated: see `collectives`.
        hlo: directory to write the program's text to, None for none.
        effort: TPU compiler effort, from -1 to 1; a run uses 0.
    """
    options = {"exec_time_optimization_effort": effort} if effort else None
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        taken = time.perf_counter() - start, time.process_time() - cpu_start
        return Step(name, *taken, peak=needed_bytes(str(error)), problem=first_line(str(error)))
    taken = time.perf_counter() - start, time.process_time() - cpu_start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if hlo:
        Path(hlo).mkdir(parents=True, exist_ok=True)
        Path(hlo, f"{name}.txt").write_text(text)
    parsed = computations(text)
    return Step(
        name,
        *taken,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        collectives=tuple(collectives(parsed, devices, unstated)),
        largest=tuple(largest(parsed)),
    )


def first_line(problem: str) -> str:
    """Returns the first line of the compiler's message."""
    return problem.strip().splitlines()[0][:300]


def needed_bytes(problem: str) -> float:
    """Returns the bytes that the compiler's message says it needs, 0 if it names none."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMG]) of|temporaries \(([\d.]+)([KMG])\)", problem)
    if not match:
        return 0
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return float(number) * {"K": 2**10, "M": 2**20, "G": 2**30}[unit]


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape such as "f32[2,3]{1,0}", or of a tuple of shapes."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        if kind in _BITS:
            count = math.prod(int(size) for size in sizes.split(",") if size)
            total += (count * _BITS[kind] + 7) // 8
    return total


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    operation: str
    rest: str  # operands, attributes and metadata
    is_root: bool


def computations(text: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of every computation of an HLO module; "" is the entry."""
    parsed: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if line.startswith("}") and not line.startswith("}}"):  # "}}" ends a kernel's own text
            current = None
        elif current is None:
            head = _COMPUTATION.match(line)
            if head and not line.startswith("HloModule"):
                current = parsed.setdefault("" if head[1] else head[2], [])
        else:
            match = _INSTRUCTION.match(line)
            if match:
                root, name, shape, operation, rest = match.groups()
                current.append(Instruction(name, shape, operation, rest, bool(root)))
    return parsed


def _called(instruction: Instruction) -> list[str]:
    """Returns the computations that the instruction calls, loop bodies excluded."""
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if branches:
        return [name.strip().lstrip("%") for name in branches[1].split(",")]
    pattern = r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    return re.findall(pattern, instruction.rest)


def trip_count(parsed: dict[str, list[Instruction]], loop: Instruction) -> int | None:
    """Returns how often a while loop runs, None if the text does not say.

    Either XLA states the count, or the loop's only condition is a counter from 0 to a constant.
    """
    stated = re.search(r'known_trip_count[":{ ]+n[": ]+(\d+)', loop.rest)
    if stated:
        return int(stated[1])
    name = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    condition = parsed.get(name, [])
    roots = [i for i in condition if i.is_root]
    constants = {
        i.name: int(value[1])
        for i in condition
        if i.operation == "constant" and (value := re.match(r"(\d+)\)", i.rest))
    }
    if len(roots) != 1 or "direction=LT" not in roots[0].rest:
        return None
    limits = [constants[n] for n in re.findall(r"%?([\w.\-]+)", roots[0].rest) if n in constants]
    return limits[0] if len(limits) == 1 else None


def participants(rest: str, devices: int) -> int:
    """Returns the number of devices per group of a collective."""
    grid = re.search(r"replica_groups=\[(\d+),(\d+)\]", rest)
    if grid:
        return int(grid[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']*)'", named[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return len(listed[1].split(",")) if listed and listed[1] else devices


def collectives(
    parsed: dict[str, list[Instruction]], devices: int, unstated: Sequence[int] = ()
) -> Iterator[Collective]:
    """Yields the collectives of a program.

    The TPU compiler may split a collective over several fusions to overlap it with compute; such a
    collective counts once.

    Args:
        parsed: from `computations`.
        devices: of the mesh.
        unstated: trip counts, in order, of the loops whose count the text does not state; further
            such loops count as 1.
    """
    left = collections.deque(unstated)
    spread: set[str] = set()  # channels of the split collectives

    def within(name: str, times: float, depth: int) -> list[Collective]:
        ops: list[Collective] = []
        for i in parsed.get(name, ()):
            kind = i.operation.removesuffix("-start")
            if kind in KINDS:
                piece = re.search(r"channel_id=(\d+),.*\bchain_id=", i.rest)
                if piece and piece[1] in spread:
                    continue
                if piece:
                    spread.add(piece[1])
                inputs = shape_bytes(i.rest.split("), ")[0])
                # The result of a "-start" also contains its operands: take its largest part.
                result = shape_bytes(i.shape)
                if i.operation.endswith("-start"):
                    result = max((shape_bytes(part) for part in _parts(i.shape)), default=0)
                op_name = re.search(r'op_name="([^"]*)"', i.rest)
                ops.append(
                    Collective(
                        kind,
                        max(inputs, result),
                        participants(i.rest, devices),
                        depth,
                        times,
                        i.shape,
                        op_name[1] if op_name else "",
                    )
                )
            elif i.operation == "while":
                runs = trip_count(parsed, i)
                if runs is None:
                    runs = left.popleft() if left else 1
                body = re.search(r"body=%?([\w.\-]+)", i.rest)[1]
                ops += within(body, times * runs, depth + 1)
            elif i.operation == "conditional":
                sides = [within(side, times, depth) for side in _called(i)]
                ops += max(sides, key=sent_bytes, default=[])
            elif i.operation in ("call", "fusion", "async-start"):
                for called in _called(i):
                    ops += within(called, times, depth)
        return ops

    yield from within("", 1.0, 0)


def _parts(shape: str) -> list[str]:
    """Returns the shapes in a tuple's shape."""
    return [f"{kind}[{sizes}]" for kind, sizes in _SHAPE.findall(shape)]


def largest_gather(ops: Iterable[Collective]) -> tuple[int, str, str]:
    """Returns (bytes, shape, operation) of the largest all-gather; 0 bytes if there is none."""
    gathers = [(c.bytes, c.shape, c.where) for c in ops if c.kind == "all-gather"]
    return max(gathers, default=(0, "", ""))


def sent_bytes(ops: Iterable[Collective]) -> float:
    """Returns the bytes that one device sends per iteration."""
    return sum(op.sent * op.times for op in ops)


def largest(parsed: dict[str, list[Instruction]], count: int = 5) -> list[tuple[int, str, str]]:
    """Returns (bytes, shape, model operation) of the largest results of instructions.

    Instructions inside fusions are left out, because they allocate no array.
    """
    fused = {
        name
        for body in parsed.values()
        for i in body
        if i.operation == "fusion"
        for name in _called(i)
    }
    silent = ("parameter", "get-tuple-element", "tuple", "while", "bitcast", "conditional", "call")
    by_shape: dict[str, tuple[int, str, str]] = {}
    for name, body in parsed.items():
        if name in fused:
            continue
        for i in body:
            if i.operation in silent or i.shape.startswith("("):
                continue
            shape = i.shape.split("{")[0]
            op_name = re.search(r'op_name="([^"]*)"', i.rest)
            if shape not in by_shape:
                by_shape[shape] = (shape_bytes(i.shape), shape, op_name[1] if op_name else "")
    return sorted(by_shape.values(), reverse=True)[:count]
