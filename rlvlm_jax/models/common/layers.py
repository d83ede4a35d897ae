# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that the vision tower and the language model share.

Parameters are float32, computation runs in `dtype`, norms are always computed in float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp

from rlvlm_jax.models.common.exact_cpu import product, unit_rms
from rlvlm_jax.models.common.lora import LEAVES as LORA
from rlvlm_jax.types import Array, Params

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}

# Matrix products, and the attention kernels on TPU and GPU.
EXPENSIVE = ("dot_general", "pallas_call", "dot_product_attention_fwd_wrapper")


def _is_expensive(primitive: jax.extend.core.Primitive, *_: object, **__: object) -> bool:
    return primitive.name in EXPENSIVE


# The values of `model.remat`: which intermediate results of a layer are saved for the backward pass
# instead of recomputed. None saves all. Recomputing elementwise operations takes less time than
# writing and reading their results (measured on CPU), so only "none" saves those.
REMAT_POLICIES = {
    "none": None,
    "elementwise": _is_expensive,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights
    "full": jax.checkpoint_policies.nothing_saveable,
}
Gather = Callable[[Params], Params] | None  # see `ActivationSharding.gather`
INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """x weight^T + bias; the weight is stored [out, in], as `product` takes it.

    If the parameters contain a low-rank adapter, its output is added; see `lora`.

    Attributes:
        width: of the output.
        dtype: compute dtype.
        bias: whether there is one.
        out: dtype of the result and of accumulation; None for `dtype`.
    """

    width: int
    dtype: Any
    bias: bool
    out: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., M, in] to [..., M, out]."""
        weight = self.param("weight", INIT, (self.width, x.shape[-1])).astype(self.dtype)
        x, out = x.astype(self.dtype), self.out or self.dtype
        y = product(x, weight, out)
        if self.has_variable("params", "lora_a"):
            a, b, scale = (self.get_variable("params", name) for name in LORA)
            low = product(product(x, a.astype(self.dtype), self.dtype), b.astype(self.dtype), out)
            y += scale.astype(out) * low
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.width,)).astype(out)
        return y


class RMSNorm(nn.Module):
    """x * scale / sqrt(mean(x^2) + epsilon), in float32.

    Attributes:
        epsilon: added to the mean square.
        dtype: of the result.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., M, D] to the same."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return (unit_rms(x.astype(jnp.float32), self.epsilon) * scale).astype(self.dtype)


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)).

    Attributes:
        width: hidden width F.
        out: output width.
        act: key of `ACTIVATIONS`.
        bias: whether the three layers have one.
        dtype: compute dtype.
    """

    width: int
    out: int
    act: str
    bias: bool
    dtype: Any

    def setup(self) -> None:
        """Declares the three layers."""
        self.gate = Linear(self.width, self.dtype, self.bias)
        self.up = Linear(self.width, self.dtype, self.bias)
        self.down = Linear(self.out, self.dtype, self.bias)

    def __call__(self, x: Array) -> Array:
        """Maps [..., D] to [..., out]."""
        return self.down(ACTIVATIONS[self.act](self.gate(x)) * self.up(x))


def gathering(module: type[nn.Module], gather: Gather) -> Callable[..., nn.Module]:
    """Returns the module class with parameters passed through `gather`, unchanged if None."""
    return nn.map_variables(module, "params", gather) if gather else module


def stacked(
    block: type[nn.Module], length: int, remat: str, gather: Gather = None
) -> Callable[..., nn.Module]:
    """Returns `block` as one scan over `length` layers, parameters stacked on axis 0.

    The block takes (carry, slice of the scanned values, values shared by all layers) and returns
    (carry, output to stack).

    Args:
        block: Linen module class.
        length: number of layers.
        remat: one of `REMAT_POLICIES`.
        gather: function that gathers a layer's weights before use, or None; the backward pass
            calls it again if it recomputes the layer.
    """
    block = gathering(block, gather)
    policy = REMAT_POLICIES[remat]
    if policy:
        block = nn.remat(block, prevent_cse=False, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        check_constancy_invariants=False,  # it would trace the block twice
        length=length,
    )
