# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rotary positions (time, row, column) of a prompt's tokens.

Computed once, on the host, and passed along in `Prompts`, so that sampler and trainer cannot
disagree. Knows token ids and grids, neither text nor pixels.
"""

from collections.abc import Sequence

import numpy as np


def rope_positions(
    tokens: Sequence[int] | np.ndarray,
    grids: Sequence[tuple[int, int]],
    image_token_id: int,
    merge: int,
) -> np.ndarray:
    """Returns the three rotary positions of every token of one unpadded prompt.

    A text token takes the next whole number p on all three axes. The tokens of an image that
    begins at p take (p, p + row, p + column) of the merged grid, row by row. The text after it
    continues at p + max(rows, columns), one above the largest position used.

    Args:
        tokens: p ids, image tokens already repeated.
        grids: (rows, columns) of each image in patches, in the order of their tokens.
        image_token_id: the id of one merged patch.
        merge: patches along one side of a merged patch.

    Returns:
        int32[3, p].

    Raises:
        ValueError: the grids do not add up to the image tokens, or an image is interrupted.

    Source: Wang et al. 2024 (arXiv:2409.12191), multimodal rotary embedding; an image is one frame,
    so its time axis is constant.
    """
    tokens = np.asarray(tokens)
    is_image = tokens == image_token_id
    sizes = [rows // merge * (columns // merge) for rows, columns in grids]
    if is_image.sum() != sum(sizes):
        raise ValueError(f"{is_image.sum()} image tokens, but the grids {grids} ask for {sizes}")
    positions = np.zeros((3, len(tokens)), np.int32)
    images = iter(zip(grids, sizes, strict=True))
    here = following = 0  # index of the token; the position it would have as text
    while here < len(tokens):
        if is_image[here]:
            (rows, columns), size = next(images)
            if not is_image[here : here + size].all():
                raise ValueError(f"text inside the {size} tokens of an image, from token {here}")
            block = np.indices((rows // merge, columns // merge)).reshape(2, -1)
            positions[:, here : here + size] = following
            positions[1:, here : here + size] += block
            here, following = here + size, following + max(rows, columns) // merge
        else:
            end = here + int(np.argmax(is_image[here:])) if is_image[here:].any() else len(tokens)
            positions[:, here:end] = following + np.arange(end - here)
            here, following = end, following + end - here
    return positions
