# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The device mesh and the sharding of arrays on it.

The mesh has four axes. At rest, prompts and sequences are sharded over `data`, `fsdp`, `sequence`.
In passes over full sequences, rows are sharded over `data` and `fsdp`, tokens over `sequence`.
Parameters are sharded over `fsdp` and `tensor`. A model gives their shardings as (regular
expression, PartitionSpec) rules; each parameter must match exactly one. GSPMD infers the rest.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlvlm_jax.errors import InputError

AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = ("data", "fsdp", "sequence")  # shard prompts and sequences at rest and in decoding
PASS_ROWS = ("data", "fsdp")  # shard rows in passes over full sequences, and streams
BATCH, PASS = PartitionSpec(ROWS), PartitionSpec(PASS_ROWS)
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(
    data: int,
    fsdp: int,
    tensor: int,
    devices: Sequence[Any] | None = None,
    *,
    sequence: int = 1,
) -> Mesh:
    """Returns the mesh over the first data * fsdp * sequence * tensor devices.

    Raises:
        InputError: there are fewer devices, or several processes do not use all of theirs.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = (data, fsdp, sequence, tensor)
    num_devices = math.prod(shape)
    axes = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if jax.process_count() > 1 and num_devices != len(devices):
        raise InputError(
            f"config.mesh asks for {axes} = {num_devices} devices, "
            f"but the {jax.process_count()} processes have {len(devices)} together; use all of them"
        )
    if num_devices > len(devices):
        raise InputError(
            f"config.mesh asks for {axes} = {num_devices} devices, "
            f"but this program sees {len(devices)} ({devices[0].device_kind}); make their product "
            f"{len(devices)} or less"
        )
    arranged = _arranged(shape, devices[:num_devices], num_devices == len(devices))
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: Sequence[int], devices: list[Any], all_of_them: bool) -> np.ndarray:
    """Returns devices in a mesh's shape; on TPUs, mesh neighbours are physical neighbours.

    On other platforms devices stay in order, process by process, so that the last axes are within a
    host. If there are several TPU slices, the outer part of one axis spans them: of the first axis,
    from `data` on, whose size the number of slices divides.

    Raises:
        InputError: the number of slices divides no axis.
    """
    if devices[0].platform != "tpu" or not all_of_them:
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    for index, size in enumerate(shape):
        if size % slices == 0:
            outer = [slices if axis == index else 1 for axis in range(len(shape))]
            inner = [size // parts for size, parts in zip(shape, outer, strict=True)]
            return mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, allow_split_physical_axes=True
            )
    sizes = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    raise InputError(
        f"config.mesh {sizes} does not divide over {slices} slices; make config.mesh.data or "
        "config.mesh.fsdp a multiple of them"
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is prompts or sequences."""
    return NamedSharding(mesh, BATCH)


def pass_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is a micro-batch's rows or streams."""
    return NamedSharding(mesh, PASS)


def put_plan(plan: Any, mesh: Any) -> Any:
    """Moves a `packing.Plan` of the passes onto the mesh; streams are sharded."""
    return jax.tree.map(put, plan, plan_shardings(plan, mesh))


def plan_shardings(plan: Any, mesh: Mesh) -> Any:
    """Returns the shardings that `put_plan` gives; also of ShapeDtypeStructs."""

    def leaf_sharding(leaf: Any) -> NamedSharding:
        if leaf.ndim < 3:  # counts and rows
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(None,) * (leaf.ndim - 2), *PASS))

    return jax.tree.map(leaf_sharding, plan)


def path_name(path: Sequence[Any]) -> str:
    """Returns a pytree path of dictionary keys as "a/b/c"."""
    return "/".join(str(entry.key) for entry in path)


def param_shardings(shapes: Any, rules: Rules, mesh: Mesh) -> Any:
    """Returns the sharding of every parameter by the one rule that matches its path.

    Args:
        shapes: nested dict of arrays or ShapeDtypeStructs.
        rules: (regular expression searched in "a/b/c", PartitionSpec).
        mesh: with the axes `AXES`.

    Returns:
        The same tree of NamedSharding.

    Raises:
        InputError: a parameter matches no rule or several, or mesh axes do not divide a dimension;
            the message lists up to five problems.
    """
    problems: list[str] = []

    def leaf_sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_name(path)
        specs = [spec for pattern, spec in rules if re.search(pattern, name)]
        if len(specs) != 1:
            problems.append(f"{name} fits {len(specs)} sharding rules, expected 1")
            return replicated(mesh)
        (spec,) = specs
        for size, axes in zip(leaf.shape, spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[axis] for axis in names)
            if size % parts:
                problems.append(f"{name}: dimension {size} is not divisible by {names} = {parts}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(leaf_sharding, shapes)
    if problems:
        raise InputError(
            "parameters do not fit config.mesh: "
            + "; ".join(problems[:5])
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    return shardings


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns ShapeDtypeStructs with these shardings."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards a host array that every process has whole; each process keeps its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Moves a pytree of host arrays onto the mesh, sharded along the leading axis."""
    return jax.tree.map(lambda x: put(np.asarray(x), batch_sharding(mesh)), batch)


def put_rows(batch: Any, count: int, mesh: Mesh) -> Any:
    """Moves a pytree of host arrays onto the mesh; each process has only its own rows.

    Args:
        batch: the rows `rows_here(mesh, count)` of each array.
        count: number of rows of all processes.
        mesh: over which rows are sharded.
    """
    rows = rows_here(mesh, count)
    if len(rows) == count:
        return put_batch(batch, mesh)

    def put(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            first = int(np.searchsorted(rows, start))
            return x[first : first + stop - start]

        shape = (count, *x.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh), part)

    return jax.tree.map(put, batch)


def _holders(mesh: Mesh, count: int) -> dict[tuple[int, int], list[int]]:
    """Returns {(start, stop) of each shard of an axis: the processes that hold it}."""
    processes: dict[tuple[int, int], set[int]] = {}
    for device, index in batch_sharding(mesh).devices_indices_map((count,)).items():
        start, stop, _ = index[0].indices(count)
        processes.setdefault((start, stop), set()).add(device.process_index)
    return {part: sorted(processes[part]) for part in sorted(processes)}


def rows_here(mesh: Mesh, count: int) -> np.ndarray:
    """Returns int[], the rows of a sharded axis that this process holds, in order."""
    process = jax.process_index()
    parts = [
        np.arange(*part) for part, holders in _holders(mesh, count).items() if process in holders
    ]
    return np.concatenate([np.zeros(0, int), *parts])


def rows_owned(mesh: Mesh, count: int) -> np.ndarray:
    """Returns int[], the rows that this process owns; each row has one owner.

    If several processes hold the same rows, each owns an equal run of them.
    """
    process = jax.process_index()
    owned = [np.zeros(0, int)]
    for (start, stop), holders in _holders(mesh, count).items():
        if process in holders:
            owned.append(
                np.array_split(np.arange(start, stop), len(holders))[holders.index(process)]
            )
    return np.concatenate(owned)


def take_here(tree: Any, rows: np.ndarray) -> Any:
    """Returns these rows of arrays on the mesh as NumPy arrays.

    Args:
        tree: of arrays sharded as by `batch_sharding`.
        rows: int[], a subset of `rows_here`.
    """

    def take(x: Any) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)[rows]
        parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        local_rows = [start + np.arange(parts[start].shape[0]) for start in sorted(parts)]
        local = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
        return local[np.searchsorted(np.concatenate(local_rows), rows)]

    return jax.tree.map(take, tree)


def batch_shapes(batch: Any, count: int, mesh: Mesh) -> Any:
    """Returns ShapeDtypeStructs on the mesh of a batch of `count` rows like those of `batch`."""
    rows = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=rows), batch
    )


def shape_key(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of all arrays: which compiled program a batch runs through."""
    return tuple(x.shape for x in jax.tree.leaves(batch))


def to_host(tree: Any) -> Any:
    """Returns the pytree as full NumPy arrays; all processes must call it together."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            leaf.copy_to_host_async()
    return jax.tree.map(fetch, tree)
