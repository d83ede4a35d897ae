# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The device mesh, and where each array lies on it.

Three axes: `data` and `fsdp` divide the sequences of a batch, `fsdp` and `tensor` divide the
parameters. A model states its parameters' places as (regular expression, PartitionSpec) rules;
exactly one rule must fit each parameter. Everything else follows by GSPMD.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Batch

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # the leading axis of prompts and of sequences
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh over the first data * fsdp * tensor devices.

    Raises:
        InputError: there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else list(devices)
    wanted = data * fsdp * tensor
    if wanted > len(devices):
        raise InputError(
            f"config.mesh asks for data={data} x fsdp={fsdp} x tensor={tensor} = {wanted} devices, "
            f"but this program sees {len(devices)} ({devices[0].device_kind}); make their product "
            f"{len(devices)} or less"
        )
    return jax.make_mesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is prompts or sequences."""
    return NamedSharding(mesh, BATCH)


def put_plan(plan: Any, mesh: Any) -> Any:
    """Moves a `packing.Plan` onto the mesh, its streams divided like the rows of a batch."""
    return jax.device_put(plan, plan_shardings(plan, mesh))


def plan_shardings(plan: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a `packing.Plan` of arrays or ShapeDtypeStructs."""

    def place(leaf: Any) -> NamedSharding:
        if leaf.ndim < 3:  # the counts
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*(None,) * (leaf.ndim - 2), *BATCH))

    return jax.tree.map(place, plan)


def path_name(path: Sequence[Any]) -> str:
    """Returns a pytree path of dictionary keys as "a/b/c"."""
    return "/".join(str(entry.key) for entry in path)


def param_shardings(shapes: Any, rules: Rules, mesh: Mesh) -> Any:
    """Places every parameter by the one rule that fits its path.

    Args:
        shapes: nested dict of arrays or ShapeDtypeStructs.
        rules: (regular expression searched in "a/b/c", PartitionSpec).
        mesh: with the axes `AXES`.

    Returns:
        The same tree of NamedSharding.

    Raises:
        InputError: lists every parameter that no rule or several rules fit, and every dimension
            that its mesh axes do not divide.
    """
    problems: list[str] = []

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_name(path)
        found = [spec for pattern, spec in rules if re.search(pattern, name)]
        if len(found) != 1:
            problems.append(f"{name} fits {len(found)} sharding rules, expected 1")
            return replicated(mesh)
        (spec,) = found
        for size, axes in zip(leaf.shape, spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[axis] for axis in names)
            if size % parts:
                problems.append(f"{name}: dimension {size} is not divisible by {names} = {parts}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(place, shapes)
    if problems:
        raise InputError(
            "parameters do not fit config.mesh: "
            + "; ".join(problems[:5])
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    return shardings


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns ShapeDtypeStructs that carry their shardings."""
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Moves a pytree of host arrays onto the mesh, divided along their leading axis."""
    return jax.device_put(batch, batch_sharding(mesh))


def batch_shapes(prompts: int, p: int, i: int, patch_bytes: int, mesh: Mesh) -> Batch:
    """Returns ShapeDtypeStructs of a batch on the mesh: P tokens and I patches a prompt."""

    def shape(*inner: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prompts, *inner), dtype, sharding=batch_sharding(mesh))

    return Batch(
        tokens=shape(p),
        mask=shape(p, dtype=bool),
        positions=shape(3, p),
        patches=shape(i, patch_bytes, dtype=np.uint8),
        patch_coords=shape(i, 2),
        patch_image=shape(i),
        patch_window=shape(i),
    )


def to_host(tree: Any) -> Any:
    """Returns the pytree as numpy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
