# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The few pieces that the vision tower and the language model share.

Parameters are float32 and computation runs in `dtype`; norms are computed in float32 either way.

On CPU the usual products, sums and norms round a token otherwise when it runs alone, as in the
sampler, than when it runs among others, as in the trainer: the order of a sum depends on the shape.
`product`, `row_sum` and `RMSNorm` are written so that it does not. Measured in float32 on a model
of 135M trained weights: the largest difference between the sampler's and the trainer's
log-probability of a token falls from 3.1e-5 nats to 0.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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


def product(x: Array, y: Array, dtype: Any, turned: bool = False) -> Array:
    """Returns x y^T: [..., M, D] of x [..., M, C] and y [..., D, C] or [D, C], in `dtype`.

    In this form, both contracted along their last axis, a row of the result has on CPU the same
    bits whatever the number of rows, which a contraction along the first axis of `y` does not give
    (measured for widths of 192 to 2048). So a token comes out alike alone, in the sampler, and
    among others, in the trainer. A single row would take another path; it is computed twice.

    With `turned`, `y` lies as [..., C, D]. That is faster where there are few rows, and for several
    `y` at once has the same bits where D is a multiple of 64; see `cache`.
    """
    return _product(x, y, dtype, turned) if turned or y.ndim > 2 else _by_weight(x, y, dtype)


def _product(x, y, dtype, turned=False):
    rows = x.shape[-2] if y.ndim > 2 else x.size // x.shape[-1]
    if rows == 1:
        x = jnp.concatenate([x, x], axis=-2)
    equation = "...mc,...cd->...md" if turned else "...mc,...dc->...md"
    result = jnp.einsum(equation, x, y, preferred_element_type=dtype)
    return result[..., :1, :] if rows == 1 else result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_weight(x, y, dtype):
    """`product` with one matrix, whose gradient turns the narrower of its two factors around.

    The gradient [D, C] is a product along the rows, for which XLA on CPU first copies one factor
    the other way round, and takes the wider one where it is given the choice. A float32 result of
    bfloat16 factors, as the logits are, sends its gradient back in bfloat16.
    """
    return _product(x, y, dtype)


def _by_weight_forward(x, y, dtype):
    return _product(x, y, dtype), (x, y)


def _by_weight_backward(dtype, factors, g):
    del dtype
    x, y = factors
    g = g.astype(y.dtype)
    of_x = jnp.einsum("...md,dc->...mc", g, y, preferred_element_type=x.dtype)
    rows, pulled = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if rows.shape[1] < pulled.shape[1]:
        of_y = jnp.einsum("mc,md->cd", rows, pulled, preferred_element_type=y.dtype).T
    else:
        of_y = jnp.einsum("md,mc->dc", pulled, rows, preferred_element_type=y.dtype)
    return of_x, of_y


_by_weight.defvjp(_by_weight_forward, _by_weight_backward)


def row_sum(x: Array) -> Array:
    """Sums float32[..., M, S] along the last axis: float32[..., M, 1].

    On CPU a reduction adds in an order that depends on the loop it is compiled into, so that the
    sampler's sum and the trainer's differ; as a product with (eight) rows of ones it does not.
    """

    def by_product(x):
        return product(x, jnp.ones((8, x.shape[-1]), x.dtype), x.dtype)[..., :1]

    def by_reduction(x):
        return jnp.sum(x, axis=-1, keepdims=True)

    return jax.lax.platform_dependent(x, cpu=by_product, default=by_reduction)


class Linear(nn.Module):
    """x weight^T + bias, the weight stored [out, in] for the sake of `product`.

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

    Written as sqrt(D) / sqrt(sum(x^2) + D epsilon). The usual reciprocal root of a mean has, on
    CPU, other last bits in a vectorised loop than in its remainder, so that a token's norm depends
    on how many tokens there are; exact roots and quotients do not. The maximum, without effect,
    keeps the compiler from making a reciprocal root of it again.

    Attributes:
        epsilon: added to the mean square.
        dtype: of the result.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., M, D] to the same."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        x = x.astype(jnp.float32)
        total = row_sum(jnp.square(x)) + width * self.epsilon
        root = jnp.maximum(jnp.sqrt(total), jnp.finfo(jnp.float32).tiny)
        return (x * (width**0.5 / root) * scale).astype(self.dtype)


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
