# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding constraints on weights and hidden states while they are used.

`sharding` defines how parameters are sharded between steps. Without constraints, the compiler may
gather activations, or the whole output layer for every chunk of logits, although it would be enough
to gather one layer's weights or to exchange a few rows. So this module constrains what matters:

* Full sequences: rows are sharded over `data` and `fsdp`, their tokens over `sequence`. Keys and
  values are gathered over `sequence`, so that each device attends for its own tokens.
* The weights of one layer at a time are gathered over `fsdp` in the compute dtype just before full
  sequences use them. Their gradients are scattered again at once.
* Logits: the vocabulary is sharded over `fsdp`, `sequence` and `tensor`, and each device has the
  hidden states of all rows of the chunk. No device has the whole output layer or its gradient.
* Decoding, `config.rollout.layout`: "train" keeps the sharding at rest, so every token gathers all
  weights; "replicated" stores them whole on each device; "tensor" shards each over `fsdp`,
  `sequence` and `tensor` along heads, MLP width or vocabulary, and moves the rows of one token
  instead. Attention and the cache stay sharded by rows.

Without a mesh every function here returns its input.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlvlm_jax.sharding import PASS_ROWS, ROWS
from rlvlm_jax.types import Array, Params

LAYOUTS = ("auto", "train", "tensor", "replicated")
MAX_REPLICATED = 2**30  # bytes of weights up to which "auto" replicates them on every device
# Mesh axes of decoding's weights and of logits. The outermost is `tensor`, as for weights at rest,
# so that resharding is one exchange within each tensor-parallel part.
WEIGHTS = ("tensor", "fsdp", "sequence")
FREE = PartitionSpec.UNCONSTRAINED


class ActivationSharding(NamedTuple):
    """The mesh, None for one device, and the sharding of decoding's weights."""

    mesh: Mesh | None = None
    layout: str = "train"  # "train", "tensor" or "replicated"

    def rows(self, x: Array) -> Array:
        """Shards the leading axis, prompts or sequences, as at rest."""
        return self._constrain(x, ROWS, *[FREE] * (x.ndim - 1)) if self._divides(x, 0, ROWS) else x

    def look_up(self, table: Array, tokens: Array, dtype: Any) -> Array:
        """Returns the rows of an embedding [V, D] for tokens [N, T] of full sequences: [N, T, D].

        Each device looks up its own channels for all rows, then an all-to-all exchanges channels
        for rows. Otherwise the compiler may gather the table.
        """
        unsharded = self.mesh is None or self.mesh.shape["fsdp"] == 1
        if unsharded or not self._divides(tokens, 0, PASS_ROWS):
            return table[tokens].astype(dtype)
        table = self._constrain(table, "tensor", "fsdp")  # as at rest; its gradient too
        x = table[self._constrain(tokens, "data", None)].astype(dtype)
        x = self._constrain(x, "data", None, "fsdp")
        return self._constrain(x, PASS_ROWS, None, None)

    def tokens(self, x: Array) -> Array:
        """Shards hidden states [N, G, T, D] of full sequences by rows and by tokens."""
        return self._constrain_pass(
            x, 2, "sequence" if self._divides(x, 2, ("sequence",)) else None
        )

    def gather_tokens(self, x: Array, axis: int) -> Array:
        """Gathers full sequences [N, ...] along `axis`, their tokens."""
        return self._constrain_pass(x, axis, None)

    def replicate(self, x: Array) -> Array:
        """Replicates rows over the axes that shard decoding's weights."""
        if self.layout != "tensor" or not self._divides(x, 0, ("data",)):
            return x
        x = jax.lax.optimization_barrier(x)  # else the wider dtype it was cast from may travel
        return self._constrain(x, "data", *[None] * (x.ndim - 1))

    def columns(self, x: Array) -> Array:
        """Shards the last axis like the decoding weights that produce or consume it."""
        if self.layout != "tensor" or not self._divides(x, 0, ("data",)):
            return x
        return self._constrain(x, "data", *[None] * (x.ndim - 2), self._weight_axes(x.shape[-1]))

    def columns_to_rows(self, x: Array) -> Array:
        """Shards a product with decoding weights by columns and then by rows."""
        return self.rows(self.columns(x))

    def cached(self, x: Array) -> Array:
        """Shards keys or values [N, K, ...] by rows and, if `tensor` divides them, by heads."""
        if not self._divides(x, 0, ROWS):
            return x
        heads = "tensor" if self._divides(x, 1, ("tensor",)) else None
        return self._constrain(x, ROWS, heads, *[None] * (x.ndim - 2))

    def replicate_for_logits(self, hidden: Array) -> Array:
        """Replicates hidden states [B, c, D] over the axes that shard the vocabulary."""
        if not self._divides(hidden, 0, ("data",)):
            return hidden
        return self._constrain(hidden, "data", *[None] * (hidden.ndim - 1))

    def logits(self, logits: Array) -> Array:
        """Shards logits [B, c, V] by vocabulary."""
        if not self._divides(logits, 0, ("data",)):
            return logits
        axes = self._weight_axes(logits.shape[-1])
        return self._constrain(logits, "data", *[None] * (logits.ndim - 2), axes)

    def output_layer(self, weight: Array) -> Array:
        """Shards an output layer [V, D] by vocabulary."""
        if self.mesh is None:
            return weight
        return self._constrain_weight(weight, self._weight_axes(weight.shape[0]), None)

    def decoder_weight(self, weight: Array, rule: PartitionSpec) -> Array:
        """Shards a weight of the decoder as `layout` says.

        Args:
            weight: in the compute dtype.
            rule: the parameter's, see `sharding`.
        """
        if self.mesh is None or self.layout == "train":
            return weight
        if self.layout == "replicated":
            return self._constrain(weight)
        return self._constrain_weight(
            weight,
            *(
                self._weight_axes(size) if axes == "tensor" else None
                for size, axes in zip(weight.shape, rule, strict=False)
            ),
        )

    def gather(
        self, rules: Sequence[tuple[str, PartitionSpec]], prefix: str, stacked: bool, dtype: Any
    ) -> Callable[[Params], Params] | None:
        """Returns a function that gathers a module's weights over `fsdp`; None on one device.

        Args:
            rules: (regular expression, PartitionSpec) of all parameters.
            prefix: path of the module, such as "language/layers/".
            stacked: whether the rules' first axis is layers; the function then takes one layer.
            dtype: compute dtype, in which the weights travel.
        """
        if self.mesh is None:
            return None

        def gather_leaf(path: Sequence[Any], x: Array) -> Array:
            name = prefix + "/".join(e.key for e in path if e.key != "params")
            (rule,) = [tuple(spec) for pattern, spec in rules if re.search(pattern, name)]
            rule = rule[1:] if stacked else rule
            if "fsdp" not in rule:
                return x
            whole = [None if axes == "fsdp" else axes for axes in rule]
            sharded, gathered = (
                NamedSharding(self.mesh, PartitionSpec(*spec)) for spec in (rule, whole)
            )
            return _gathered(x.astype(dtype), gathered, sharded)

        return lambda params: jax.tree_util.tree_map_with_path(gather_leaf, params)

    def _weight_axes(self, size: int) -> tuple[str, ...] | None:
        """The largest group of `WEIGHTS` that divides an axis."""
        for axes in (WEIGHTS, WEIGHTS[:2], ("fsdp",), ("tensor",)):
            if size % math.prod(self.mesh.shape[axis] for axis in axes) == 0:
                return axes
        return None

    def _constrain_weight(self, weight: Array, *axes: tuple[str, ...] | None) -> Array:
        """Shards a weight in two steps, each of which the compiler can do and undo efficiently.

        In a single step it would gather the whole weight on each device.
        """
        if WEIGHTS in axes:
            weight = self._constrain(
                weight, *(WEIGHTS[:2] if names == WEIGHTS else names for names in axes)
            )
        return self._constrain(weight, *axes)

    def _divides(self, x: Array, axis: int, axes: tuple[str, ...]) -> bool:
        if self.mesh is None:
            return False
        return x.shape[axis] % math.prod(self.mesh.shape[name] for name in axes) == 0

    def _constrain_pass(self, x: Array, axis: int, name: str | None) -> Array:
        """Shards rows, and tokens over `name`; no constraint without a `sequence` axis."""
        if self.mesh is None or self.mesh.shape["sequence"] == 1:
            return x
        spec = [FREE] * x.ndim
        spec[0] = PASS_ROWS if self._divides(x, 0, PASS_ROWS) else FREE
        spec[axis] = name
        return self._constrain(x, *spec)

    def _constrain(self, x: Array, *spec: object) -> Array:
        sharding = NamedSharding(self.mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, gathered, sharded):
    """Shards x as `gathered` and its gradient as `sharded`; autodiff alone would gather both."""
    del sharded
    return jax.lax.with_sharding_constraint(x, gathered)


def _gathered_forward(x, gathered, sharded):
    return _gathered(x, gathered, sharded), None


def _gathered_backward(gathered, sharded, _, g):
    del gathered
    return (jax.lax.with_sharding_constraint(g, sharded),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def choose(layout: str, mesh: Mesh, decoder_bytes: int) -> ActivationSharding:
    """Returns the activation sharding of a run.

    Args:
        layout: one of `LAYOUTS`; "auto" is "replicated" for at most `MAX_REPLICATED` bytes of
            weights and "tensor" for more.
        mesh: of the run.
        decoder_bytes: of the language model in the compute dtype.
    """
    if layout == "auto":
        layout = "replicated" if decoder_bytes <= MAX_REPLICATED else "tensor"
    return ActivationSharding(mesh if mesh.size > 1 else None, layout)
