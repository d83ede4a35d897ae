# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Turns prompts into arrays, and several prompts into one static shape.

The heart of step I. What an image becomes is up to the model family; `Media` is what this module
asks of it. Knows nothing of data sets and configuration.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from rlvlm_jax.data.images import load_pixels
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Array, Prompts


class Encoded(NamedTuple):
    """One prompt, not yet padded: p tokens, i patches of all its images."""

    tokens: np.ndarray  # int32[p], image tokens repeated
    positions: np.ndarray  # int32[A, p]
    media: Any  # arrays of the family
    patches: int  # i


class Media(Protocol):
    """How a model family turns images into tokens and arrays. Host only: NumPy and Pillow.

    The media of one prompt is a pytree of arrays, such as pixels [i, C]; i is the number of its
    patches, whatever the family calls so. The media of N prompts has the same arrays padded to
    [N, I, ...]; it is `Prompts.media`. No other code looks inside.

    Attributes:
        image_token: text that stands for an image in a rendered prompt.
        video_token: text that stands for a video, which is refused.
        reserved_tokens: texts of the other vision tokens; like the two above never sampled.
        position_axes: A, the axes of a token's position.
        patches_per_token: patches that become one image token.
        max_patches: patches of the largest image.
    """

    image_token: str
    video_token: str
    reserved_tokens: tuple[str, ...]
    position_axes: int
    patches_per_token: int
    max_patches: int

    def count_tokens(self, width: int, height: int) -> int:
        """Returns the tokens of an image of this size in pixels; raises ImageError."""
        ...

    def side(self, tokens: int) -> int:
        """Returns the pixels along a square image of this many tokens; a benchmark draws it."""
        ...

    def encode(self, ids: Sequence[int], images: Iterable[Image.Image], image_id: int) -> Encoded:
        """Encodes one prompt; raises ImageError.

        Args:
            ids: of the text, with `image_id` once per image.
            images: upright, RGB, in order; each is decoded when it is taken.
            image_id: id of `image_token`.
        """
        ...

    def pad(self, rows: Sequence[Any], size: int) -> Any:
        """Returns the media of N prompts, padded to I = `size` patches; None is a prompt of none.

        Raises:
            ValueError: a prompt has more patches.
        """
        ...

    def rows(self, media: Any) -> list[Any]:
        """Returns the media of each prompt without padding: the inverse of `pad`."""
        ...

    def size(self, media: Any) -> int:
        """Returns I of the media of N prompts."""
        ...

    def pixels(self, row: Any) -> np.ndarray:
        """Returns all pixels of one prompt's images."""
        ...

    def grids(self, media: Any) -> list[Any]:
        """Returns the size of every image of N prompts, as the family's costs take it."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that differs if some image might have another number of tokens."""
        ...


def encode_prompt(
    text: str, images: Sequence[Any], tokenizer: Tokenizer, media: Media, name: str = "prompt"
) -> Encoded:
    """Turns a rendered prompt and its images into arrays.

    Args:
        text: the prompt, with one image token per image, in order. Each becomes as many as its
            image has.
        images: sources for `images.open_image`.
        tokenizer: the model's tokenizer.
        media: of the model.
        name: the prompt's id, for messages.

    Raises:
        ImageError: an image cannot be used.
        InputError: the numbers of image tokens and images differ, or there is a video.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError(f"{name}: the prompt is empty")
    check_placeholders(ids, len(images), tokenizer, media, name)
    return media.encode(ids, map(load_pixels, images), tokenizer.token_id(media.image_token))


def check_placeholders(
    ids: Sequence[int], images: int, tokenizer: Tokenizer, media: Media, name: str
) -> None:
    """Checks that a prompt has one image token per image, and no video.

    Raises:
        InputError: it does not; names the prompt and both numbers.
    """
    image, video = map(tokenizer.token_id, (media.image_token, media.video_token))
    num_placeholders = sum(token == image for token in ids)
    if num_placeholders != images:
        raise InputError(
            f"{name}: {images} images, but {num_placeholders} {media.image_token} in its text; the "
            "rendered prompt must hold exactly one for each image (is the chat template made for "
            "images?)"
        )
    if video is not None and video in ids:
        raise InputError(f"{name}: its text holds {media.video_token}; video is not supported")


def collate(
    encoded: Sequence[Encoded | None], p: int, i: int, pad_id: int, media: Media
) -> Prompts:
    """Pads prompts to one static shape: tokens on the left, media as the family does.

    Args:
        encoded: N prompts; None is an empty row, all padding.
        p: P, tokens per prompt.
        i: I, patches per prompt.
        pad_id: fills the padding of the tokens.
        media: of the model.

    Returns:
        Prompts of NumPy arrays.

    Raises:
        ValueError: a prompt does not fit.
    """
    n = len(encoded)
    tokens = np.full((n, p), pad_id, np.int32)
    mask = np.zeros((n, p), bool)
    positions = np.zeros((n, media.position_axes, p), np.int32)
    for row, prompt in enumerate(encoded):
        if prompt is None:
            continue
        length = len(prompt.tokens)
        if length > p or prompt.patches > i:
            raise ValueError(
                f"a prompt of {length} tokens and {prompt.patches} patches does not fit into "
                f"P={p}, I={i}"
            )
        tokens[row, p - length :] = prompt.tokens
        mask[row, p - length :] = True
        positions[row, :, p - length :] = prompt.positions
    rows = [None if prompt is None else prompt.media for prompt in encoded]
    return Prompts(tokens, mask, positions, media.pad(rows, i))


def pad_prompts(prompts: Prompts, p: int, i: int, pad_id: int, media: Media) -> Prompts:
    """Returns the same prompts in a larger shape: P tokens, I patches. Host arrays."""
    left = p - prompts.tokens.shape[1]

    def pad(array: Array, value: int = 0) -> Array:
        widths = [(0, 0)] * (array.ndim - 1)
        return np.pad(array, [*widths, (left, 0)], constant_values=value)

    return Prompts(
        pad(prompts.tokens, pad_id),
        pad(prompts.mask),
        pad(prompts.positions),
        media.pad(media.rows(prompts.media), i),
    )
