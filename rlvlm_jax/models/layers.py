# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The few pieces that the vision tower and the language model share.

Parameters are float32 and computation runs in `dtype`; norms are computed in float32 either way.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvlm_jax.models.exact_cpu import product, unit_rms
from rlvlm_jax.models.lora import LEAVES as LORA
from rlvlm_jax.types import Array

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}

# Products, and the kernels of attention, on TPU and on GPU.
EXPENSIVE = ("dot_general", "pallas_call", "dot_product_attention_fwd_wrapper")


def _is_expensive(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in EXPENSIVE


# What `model.remat` may name: which intermediate results of a layer the backward pass keeps, and
# not computes again. None keeps all. To compute sums, exponentials and the like again takes less
# time than to write and read them (measured on CPU), so only "none" keeps those.
REMAT_POLICIES = {
    "none": None,
    "elementwise": _is_expensive,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights
    "full": jax.checkpoint_policies.nothing_saveable,
}
INIT = nn.initializers.normal(0.02)


class Linear(nn.Module):
    """x weight^T + bias, the weight stored [out, in], as `product` wants it.

    Where the parameters hold a low-rank adapter, its share is added; see `lora`.

    Attributes:
        width: of the output.
        dtype: compute dtype.
        bias: whether there is one.
        out: dtype of the result, and of its sums; None for `dtype`.
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


def gathering(module: type[nn.Module], gather: Any) -> Any:
    """Returns the module class with its parameters passed through `gather`; None leaves it."""
    return nn.map_variables(module, "params", gather) if gather else module


def stacked(block: type[nn.Module], length: int, remat: str, gather: Any = None) -> Any:
    """Returns `block` as one scan over `length` layers, parameters stacked on axis 0.

    The block is called with (carry, slice of the scanned values, values equal for all layers) and
    returns (carry, output to stack).

    Args:
        block: Linen module class.
        length: number of layers.
        remat: one of `REMAT_POLICIES`.
        gather: what brings a layer's weights together before they are used, or None; the backward
            pass does so again where it computes the layer again.
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
        length=length,
    )
