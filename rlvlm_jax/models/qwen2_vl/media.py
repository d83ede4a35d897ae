# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images of Qwen2-VL and Qwen2.5-VL on the host: resized, cut into patches, laid out.

An image is resized to whole merge blocks within its pixel limits, and cut into patches. Patches
stay uint8: the model normalises them on the device. Letters in shapes: I patches of one prompt, C
bytes of one patch = 3 * patch_size**2. Uses NumPy and Pillow only.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from rlvlm_jax.data.images import ImageError
from rlvlm_jax.data.prompts import Encoded
from rlvlm_jax.errors import InputError
from rlvlm_jax.models.qwen2_vl.config import QwenVLConfig
from rlvlm_jax.models.qwen2_vl.positions import rope_positions
from rlvlm_jax.types import Array

MAX_ASPECT = 200  # longer images are refused: no resizing makes them fit
# Settings of preprocessor_config.json with a single supported value each.
_ONLY = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "do_pad": False,
    "resample": int(Image.Resampling.BICUBIC),
}


class Patches(NamedTuple):
    """The patches of all images of N prompts, image by image; of one prompt without the axis N."""

    pixels: Array  # uint8[N, I, C], channel-major pixels of one still frame, merge-block order
    coords: Array  # int32[N, I, 2], (row, column) of the patch in its image's grid
    image: Array  # int32[N, I], number of the image within the prompt from 1; 0 at padding
    window: Array  # int32[N, I], number of the attention window from 1; 0 at padding


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The image settings of a model; see `prompts.Media` for what step I asks of it.

    Attributes:
        patch_size: side of a patch, pixels.
        merge_size: patches along the side of the square that becomes one image token.
        min_pixels: smaller images are enlarged to at least this area.
        max_pixels: larger images are reduced to at most this area.
        window_size: side of an attention window, pixels; 0 = no windows.
    """

    image_token: ClassVar[str] = "<|image_pad|>"
    video_token: ClassVar[str] = "<|video_pad|>"
    reserved_tokens: ClassVar[tuple[str, ...]] = (
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
    )
    position_axes: ClassVar[int] = 3  # time, row, column

    patch_size: int = 14
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28
    window_size: int = 0

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{name}={value!r} of the image processor is not a positive whole number; "
                    "check preprocessor_config.json"
                )
        if self.min_pixels > self.max_pixels:
            raise InputError(
                f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}; change "
                "config.data.min_pixels, config.data.max_pixels or preprocessor_config.json"
            )

    @property
    def block(self) -> int:
        """Side of the square of pixels that becomes one image token."""
        return self.patch_size * self.merge_size

    @property
    def patch_bytes(self) -> int:
        """C, the bytes of one patch."""
        return 3 * self.patch_size**2

    @classmethod
    def from_files(
        cls, files: Mapping[str, str], min_pixels: int = 0, max_pixels: int = 0
    ) -> "ImageSpec":
        """Reads a model's settings.

        Args:
            files: name -> text. Uses preprocessor_config.json, or else the image processor's part
                of processor_config.json, and the vision part of config.json. The defaults are those
                of the family's published processor.
            min_pixels: replaces the model's own limit unless it is 0.
            max_pixels: the same.

        Raises:
            InputError: a file is not JSON, asks for an unsupported setting, or contradicts
                config.json.
        """
        name = "preprocessor_config.json"
        fields = _json_object(files, name)
        if not fields:
            name = "processor_config.json"
            fields = _json_object(files, name).get("image_processor") or {}
        for key, only in _ONLY.items():
            if fields.get(key) not in (None, only):
                raise InputError(f"{name}: {key}={fields[key]!r}; only {only!r} is supported")
        if not math.isclose(fields.get("rescale_factor") or 1 / 255, 1 / 255, rel_tol=1e-6):
            raise InputError(f"{name}: rescale_factor={fields['rescale_factor']!r}, not 1/255")
        size = fields.get("size") or {}
        settings = {
            "min_pixels": fields.get("min_pixels")
            or size.get("shortest_edge")
            or size.get("min_pixels"),
            "max_pixels": fields.get("max_pixels")
            or size.get("longest_edge")
            or size.get("max_pixels"),
            **{k: fields.get(k) for k in ("patch_size", "merge_size", "temporal_patch_size")},
        }
        settings = {key: value for key, value in settings.items() if value is not None}

        config = _json_object(files, "config.json")
        vision = config.get("vision_config") or {}
        if str(config.get("model_type", "")).startswith("qwen2_5_vl"):
            settings["window_size"] = vision.get("window_size", 112)
        same = {
            "patch_size": "patch_size",
            "spatial_merge_size": "merge_size",
            "temporal_patch_size": "temporal_patch_size",
        }
        for vision_key, key in same.items():
            value = vision.get(vision_key)
            if value is not None and value != settings.setdefault(key, value):
                raise InputError(
                    f"{name} has {key}={settings[key]}, but config.json has "
                    f"vision_config.{vision_key}={value}; they must agree"
                )
        settings.pop("temporal_patch_size", None)  # a still image has one frame
        spec = cls(**settings)
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        return dataclasses.replace(spec, **{name: value for name, value in limits.items() if value})

    @property
    def patches_per_token(self) -> int:
        """Patches of a merge block."""
        return self.merge_size**2

    @property
    def max_patches(self) -> int:
        """Patches of the largest image."""
        return self.max_pixels // self.patch_size**2

    def side(self, tokens: int) -> int:
        """Returns the pixels along a square image of this many tokens."""
        return math.isqrt(tokens) * self.block

    def fingerprint(self) -> str:
        """Returns a text that differs if an image may have another number of tokens."""
        return str((self.patch_size, self.merge_size, self.min_pixels, self.max_pixels))

    def count_tokens(self, width: int, height: int) -> int:
        """Returns the number of tokens in a prompt of an image of this size.

        Raises:
            ImageError: see `resized_size`.
        """
        return math.prod(resized_size(width, height, self)) // self.block**2

    def encode(self, ids: Sequence[int], images: Iterable[Image.Image], image_id: int) -> Encoded:
        """Encodes one prompt; see `prompts.Media`.

        Raises:
            ImageError: see `resized_size`.
        """
        cut = [patchify(image, self) for image in images]
        grids = [grid for _, grid in cut]
        counts = iter(rows * columns // self.patches_per_token for rows, columns in grids)
        repeats = [next(counts) if token == image_id else 1 for token in ids]
        tokens = np.repeat(np.asarray(ids, np.int32), repeats)
        coords, windows, used = [], [], 1
        for grid in grids:
            image_coords, window = patch_layout(*grid, self)
            coords.append(image_coords)
            windows.append(window + used)
            used += window.max() + 1
        numbers = [np.full(len(pixels), n, np.int32) for n, (pixels, _) in enumerate(cut, start=1)]
        parts = ([pixels for pixels, _ in cut], coords, numbers, windows)
        patches = Patches(*map(_join, parts, self._zeros(0)))
        positions = rope_positions(tokens, grids, image_id, self.merge_size)
        return Encoded(tokens, positions, patches, len(patches.image))

    def _zeros(self, *shape: int) -> Patches:
        """Returns padding: `shape` stands for [N, I], or for [I] of one prompt."""
        return Patches(
            pixels=np.zeros((*shape, self.patch_bytes), np.uint8),
            coords=np.zeros((*shape, 2), np.int32),
            image=np.zeros(shape, np.int32),
            window=np.zeros(shape, np.int32),
        )

    def pad(self, rows: Sequence[Patches | None], size: int) -> Patches:
        """Returns the patches of N prompts, padded on the right; None is a prompt without any."""
        patches = self._zeros(len(rows), size)
        for row, prompt in enumerate(rows):
            if prompt is not None:
                for padded, array in zip(patches, prompt, strict=True):
                    padded[row, : len(array)] = array
        return patches

    def rows(self, media: Patches) -> list[Patches]:
        """Returns the patches of each prompt without padding."""
        counts = np.count_nonzero(media.image, axis=1)
        return [Patches(*(x[row, :n] for x in media)) for row, n in enumerate(counts)]

    def size(self, media: Patches) -> int:
        """Returns I."""
        return media.image.shape[1]

    def pixels(self, row: Patches) -> np.ndarray:
        """Returns the pixels of one prompt's images."""
        return row.pixels

    def grids(self, media: Patches) -> list[tuple[int, int]]:
        """Returns (rows, columns) of patches of every image of N prompts."""
        return [grid for row in self.rows(media) for grid in image_grids(row)]


def resized_size(width: int, height: int, spec: ImageSpec) -> tuple[int, int]:
    """Returns the (width, height) in pixels to which an image is resized.

    Both are whole merge blocks, rounded from the original size. An area outside the limits is first
    scaled to the limit, with the same aspect ratio, then rounded towards the inside.

    Raises:
        ImageError: one side is over 200 times the other.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            "image_too_long",
            f"an image of {width} x {height} pixels has an aspect ratio over {MAX_ASPECT}; crop it",
        )
    block = spec.block
    sides = [round(side / block) * block for side in (width, height)]  # half to even
    area = width * height
    if math.prod(sides) > spec.max_pixels:
        shrink = math.sqrt(area / spec.max_pixels)
        sides = [max(1, math.floor(s / shrink / block)) * block for s in (width, height)]
    elif math.prod(sides) < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / area)
        sides = [math.ceil(s * grow / block) * block for s in (width, height)]
    return sides[0], sides[1]


def image_grids(patches: Patches) -> list[tuple[int, int]]:
    """Returns (rows, columns) of patches of each image of one prompt without padding."""
    numbers = range(1, patches.image.max(initial=0) + 1)
    sizes = [patches.coords[patches.image == number].max(axis=0) + 1 for number in numbers]
    return [(int(rows), int(columns)) for rows, columns in sizes]


def hf_inputs(config: QwenVLConfig, patches: Patches) -> dict[str, np.ndarray]:
    """Returns what transformers' model takes for the images of one prompt; {} if it has none.

    Returns:
        pixel_values float32[i, 3 * frames * patch_size**2], normalised like the image processor,
        and image_grid_thw int[images, 3].
    """
    if not len(patches.image):
        return {}
    vision = config.vision
    mean, std = (np.array(x)[:, None, None] for x in (vision.image_mean, vision.image_std))
    still = patches.pixels.reshape(-1, 3, 1, vision.patch_size**2) / 255.0
    frames = np.repeat((still - mean) / std, vision.temporal_patch_size, axis=2)
    return {
        "pixel_values": np.float32(frames.reshape(len(frames), -1)),
        "image_grid_thw": np.array([(1, *grid) for grid in image_grids(patches)]),
    }


def patchify(image: Image.Image, spec: ImageSpec) -> tuple[np.ndarray, tuple[int, int]]:
    """Cuts an image into patches.

    Args:
        image: upright, RGB.
        spec: sizes and limits.

    Returns:
        (patches uint8[i, C], (rows, columns) of the grid of patches). Order: merge blocks row by
        row; the patches of a block row by row; within a patch: channel, row, column.

    Raises:
        ImageError: see `resized_size`.
    """
    size = resized_size(*image.size, spec)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))  # uint8[H, W, 3]
    p, m = spec.patch_size, spec.merge_size
    rows, columns = size[1] // p, size[0] // p
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1), (rows, columns)


def patch_layout(rows: int, columns: int, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates and windows of the patches of one image, in `patchify`'s order.

    Returns:
        (coords int32[i, 2], window int32[i] from 0, all 0 without windows). Windows start at the
        top left, so those at the right and bottom edges may be smaller.
    """
    m = spec.merge_size
    grid = np.indices((rows, columns), np.int32).reshape(2, rows // m, m, columns // m, m)
    coords = grid.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
    if not spec.window_size:
        return coords, np.zeros(len(coords), np.int32)
    side = spec.window_size // spec.block * m  # of a window, patches
    across = -(-columns // side)
    return coords, coords[:, 0] // side * across + coords[:, 1] // side


def _join(arrays: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """Joins arrays along their first axis, in the dtype of an empty array of the same kind."""
    return np.concatenate([empty, *arrays], dtype=empty.dtype)


def _json_object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """Returns the object in a file, or an empty one if there is no file."""
    try:
        content = json.loads(files.get(name) or "{}")
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} holds a {type(content).__name__}; expected an object")
    return content
