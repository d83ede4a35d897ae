# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of each pass of a model, counted from its sizes.

XLA counts the body of a loop once, however often it runs, so layers and tokens are counted here.
Only matrix products count, two FLOPs per multiplication; norms, activations and softmax do not.
There are two counts. `needed` is what the mathematics requires: a causal query attends to the keys
up to itself, and a prompt runs once for its samples. `executed` adds masked scores and
recomputation. Bytes are the minimum that must move: weights once per pass, keys and values;
activations are not counted. The decoder counted here is dense: attention with grouped heads and a
gated MLP. This module has numbers only, no arrays.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Config = Any  # with the decoder's sizes, see `model.Config`
GRADIENT = 2  # a backward pass has two products for each one of the forward pass


class Work(NamedTuple):
    """The cost of one pass."""

    needed: float  # FLOPs
    executed: float  # FLOPs
    bytes: float  # moved between memory and processor, at least


def total(works: Iterable[Work]) -> Work:
    """Returns the sum of several passes."""
    nothing = Work(0.0, 0.0, 0.0)
    return Work(*(float(sum(values)) for values in zip(nothing, *works, strict=True)))


class Costs(NamedTuple):
    """The counts of a family: of its images, and of its decoder by the functions below."""

    encode_images: Callable[..., Work]  # (config, images or None, padded, prompts, size)
    layer_weights: Callable[..., int]
    head_weights: Callable[..., int]
    prefill: Callable[..., Work]
    decode: Callable[..., Work]
    forward: Callable[..., Work]
    gradient: Callable[..., Work]


def layer_weights(config: Config) -> int:
    """Returns the size of the decoder's matrices, without embedding and head."""
    queries = config.heads * config.head_size
    keys = config.kv_heads * config.head_size
    return config.layers * config.width * (2 * queries + 2 * keys + 3 * config.mlp_width)


def head_weights(config: Config) -> int:
    """Returns the size of the output matrix, tied to the embedding or not."""
    return config.width * config.vocab_size


def _decoder(config: Config, tokens: float, pairs: float) -> float:
    """Returns the FLOPs of `tokens` tokens through the layers with `pairs` (query, key) pairs."""
    heads = config.layers * config.heads * config.head_size
    return 2.0 * layer_weights(config) * tokens + 4.0 * heads * pairs


def _cached(config: Config, tokens: float, size: int) -> float:
    """Returns the bytes of the keys and values of `tokens` tokens."""
    return 2.0 * config.layers * config.kv_heads * config.head_size * tokens * size


def logits(config: Config, tokens: float) -> float:
    """Returns the FLOPs of the logits of `tokens` tokens."""
    return 2.0 * head_weights(config) * tokens


def prefill(config: Config, prompts: int, length: int, size: int) -> Work:
    """Counts one pass over N prompts of P tokens that stores their keys and values.

    Args:
        config: the model's.
        prompts: N.
        length: P.
        size: bytes of a number in the compute type.
    """
    tokens = prompts * length
    return Work(
        _decoder(config, tokens, prompts * length * (length + 1) / 2),
        _decoder(config, tokens, prompts * length**2),
        layer_weights(config) * size + _cached(config, tokens, size),
    )


def decode(
    config: Config,
    prompts: int,
    samples: int,
    length: int,
    steps: int,
    size: int,
    blocks: Sequence[int] = (),
) -> Work:
    """Counts sampling `steps` tokens for each of N * G responses, their logits included.

    A step reads the weights once, each prompt's keys and values once for its samples, and each
    response's own. The last token is drawn but not run.

    Args:
        config: the model's.
        prompts: N.
        samples: G.
        length: P.
        steps: R.
        size: bytes of a number in the compute type.
        blocks: slots of each block of the cache. As many steps are executed as there are slots,
            and each attends to all slots of the blocks started by then. Empty for one block of R.
    """
    rows, blocks = prompts * samples, blocks or (steps,)
    slots = sum(blocks)
    attended = sum(size * sum(blocks[: number + 1]) for number, size in enumerate(blocks))
    own_pairs = (steps - 1) * steps / 2  # (query, key) pairs within a response, itself included
    needed = _decoder(config, rows * (steps - 1), rows * ((steps - 1) * length + own_pairs))
    executed = _decoder(config, rows * slots, rows * (slots * length + attended))
    weights = ((steps - 1) * layer_weights(config) + steps * head_weights(config)) * size
    read = (steps - 1) * prompts * length + rows * own_pairs
    return Work(
        needed + logits(config, rows * steps),
        executed + logits(config, rows * slots),
        weights + _cached(config, read + rows * (steps - 1), size),
    )


def forward(
    config: Config,
    prompts: int,
    samples: int,
    length: int,
    steps: int,
    size: int,
    copies: float = 1.0,
) -> Work:
    """Counts log-probabilities of N * G complete responses of R tokens.

    Args:
        config: the model's.
        prompts: N.
        samples: G.
        length: P.
        steps: R.
        size: bytes of a number in the compute type.
        copies: how often a prompt is executed: 1 if all its samples share one pass, G if each has
            its own.
    """
    rows = prompts * samples
    needed = _decoder(
        config,
        prompts * length + rows * steps,
        prompts * length * (length + 1) / 2 + rows * (steps * length + steps * (steps + 1) / 2),
    )
    executed = _decoder(
        config,
        copies * prompts * length + rows * steps,
        copies * prompts * length**2 + rows * steps * (length + steps),
    )
    head = logits(config, rows * steps)
    weights = (layer_weights(config) + head_weights(config)) * size
    return Work(needed + head, executed + head, float(weights))


def gradient(
    config: Config, passed: Work, tokens: float, passes: int, remat: bool, size: int
) -> Work:
    """Counts a forward and backward pass of the decoder, all of it trained.

    Args:
        config: the model's.
        passed: the forward pass alone, from `forward`.
        tokens: response tokens; the backward pass recomputes their logits.
        passes: micro-batches; each reads the weights in both directions and adds to the gradient.
        remat: whether the backward pass recomputes the layers.
        size: bytes of a number in the compute type.
    """
    again = passed.executed if remat else logits(config, tokens)
    weights = layer_weights(config) + head_weights(config)
    return Work(
        passed.needed * (1 + GRADIENT),
        passed.executed * (1 + GRADIENT) + again,
        float(passes * weights * (2 * size + 4)),  # the gradient is float32
    )


def optimizer_step(trained: int, steps: int) -> Work:
    """Counts `steps` steps of AdamW on float32 parameters; only bytes count.

    Parameters and both moments are read and written, the gradient is read.

    Args:
        trained: number of trained parameters.
        steps: optimizer steps.
    """
    return Work(0.0, 0.0, float(steps * trained * 4 * (2 * 3 + 1)))


def no_images(*_: Any) -> Work:
    """Counts nothing: a family has its own function."""
    return Work(0.0, 0.0, 0.0)


DENSE = Costs(no_images, layer_weights, head_weights, prefill, decode, forward, gradient)
