# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Turns images into patches, prompts into arrays, and several prompts into one static shape.

The heart of step I. It opens an image, flattens it onto white, resizes it to whole merge blocks
within its pixel limits, and cuts it into patches. Patches stay uint8: the model normalises them on
the device. The header of an image alone determines its number of tokens. Knows nothing of data sets
and configuration. Apart from callers of `rlvlm_jax.VLM`, no other code opens images for the model.
"""

import dataclasses
import io
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image

from rlvlm_jax.data.positions import rope_positions
from rlvlm_jax.data.tokenizer import Tokenizer
from rlvlm_jax.errors import InputError
from rlvlm_jax.types import Prompts

MAX_ASPECT = 200  # longer images are refused: no resizing makes them fit
MAX_OPENED_PIXELS = 89_478_485  # Pillow's own limit; beyond it, small files unpack to gigabytes

_UPRIGHT = {  # EXIF orientation -> the transpose that makes the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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


class ImageError(InputError):
    """An image that cannot be used.

    Attributes:
        kind: "missing_image", "unreadable_image", "image_too_long" or "image_too_large".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The image settings of a model.

    Attributes:
        patch_size: side of a patch, pixels.
        merge_size: patches along the side of the square that becomes one image token.
        temporal_patch_size: frames of a patch; a still image repeats its one frame.
        min_pixels: smaller images are enlarged to at least this area.
        max_pixels: larger images are reduced to at most this area.
        window_size: side of an attention window, pixels; 0 = no windows.
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel, of pixels in [0, 1].
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28
    window_size: int = 0
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels"):
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
    def from_directory(cls, directory: str | Path) -> "ImageSpec":
        """Reads the files of a Hugging Face directory; see `from_files`."""
        names = ("preprocessor_config.json", "processor_config.json", "config.json")
        paths = [Path(directory, name) for name in names]
        return cls.from_files({p.name: p.read_text("utf-8") for p in paths if p.is_file()})

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> "ImageSpec":
        """Reads a model's settings.

        Args:
            files: name -> text. Uses preprocessor_config.json, or else the image processor's part
                of processor_config.json, and the vision part of config.json. The defaults are those
                of the family's published processor.

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
            **{k: tuple(fields[k]) for k in ("image_mean", "image_std") if fields.get(k)},
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
        return cls(**settings)


@dataclasses.dataclass(frozen=True)
class VisionTokens:
    """Ids of the vision tokens; None if the tokenizer has no such token."""

    image: int | None
    vision_start: int | None
    vision_end: int | None
    vision_pad: int | None
    video: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> "VisionTokens":
        """Looks up the ids by their names, the same in the whole model family."""
        return cls(
            image=tokenizer.token_id("<|image_pad|>"),
            vision_start=tokenizer.token_id("<|vision_start|>"),
            vision_end=tokenizer.token_id("<|vision_end|>"),
            vision_pad=tokenizer.token_id("<|vision_pad|>"),
            video=tokenizer.token_id("<|video_pad|>"),
        )


@dataclasses.dataclass
class Encoded:
    """One prompt, not yet padded: p tokens, i patches of all its images."""

    tokens: np.ndarray  # int32[p]
    positions: np.ndarray  # int32[3, p]
    patches: np.ndarray  # uint8[i, C]
    coords: np.ndarray  # int32[i, 2], (row, column) in the patch's own image
    image: np.ndarray  # int32[i], number of the image from 1
    window: np.ndarray  # int32[i], number of the attention window from 1, over all images


# ---- images -------------------------------------------------------------------------------


def open_image(source: Any) -> Image.Image:
    """Opens an image and reads its header, not its pixels.

    Args:
        source: path or file:// address, encoded bytes, an object whose `read()` gives encoded
            bytes, or an open image.

    Raises:
        ImageError: the file does not exist, is not an image, or is far too large.
    """
    image = source if isinstance(source, Image.Image) else _open_encoded(source)
    width, height = image.size
    if width * height > MAX_OPENED_PIXELS:
        if image is not source:
            image.close()
        raise ImageError(
            "image_too_large",
            f"image {_name(source)} has {width} x {height} pixels; "
            f"at most {MAX_OPENED_PIXELS} are opened, reduce the file",
        )
    return image


def _open_encoded(source: Any) -> Image.Image:
    if isinstance(source, str | Path):
        path = local_path(source)
        if not path.is_file():
            raise ImageError("missing_image", f"image file {path} does not exist")
        file: Any = path
    elif not isinstance(source, bytes) and not hasattr(source, "read"):
        raise ImageError(
            "unreadable_image",
            f"an image is of type {type(source).__name__}; expected a path, bytes, an open file or "
            "a PIL image",
        )
    else:
        file = io.BytesIO(source if isinstance(source, bytes) else source.read())
    try:
        return Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", f"image {_name(source)}: {error}") from error
    except Exception as error:  # decoders of foreign bytes raise anything
        raise ImageError(
            "unreadable_image", f"image {_name(source)} cannot be read: {error}"
        ) from error


def local_path(source: str | Path) -> Path:
    """Returns the path of a path or a file:// address.

    Raises:
        ImageError: any other kind of address; nothing is fetched.
    """
    text = str(source)
    if "://" not in text:
        return Path(source)
    parts = urlsplit(text)
    if parts.scheme != "file":
        raise ImageError("missing_image", f"image {text} is not a local file; download it first")
    return Path(unquote(parts.netloc + parts.path))


def _name(source: Any) -> str:
    """Returns the name of an image for messages."""
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"in memory ({source.mode})"
    return str(source)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, without reading pixels; 1 is upright.

    Returns 1 for TIFF files, which Pillow rotates itself.
    """
    data = image.info.get("exif")
    if not data or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return exif.get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1  # the EXIF data is damaged, the image itself is not


def image_size(source: Any) -> tuple[int, int]:
    """Returns (width, height) of the upright image in pixels; reads the header only.

    Raises:
        ImageError: see `open_image`.
    """
    image = open_image(source)
    width, height = image.size
    is_rotated = _orientation(image) in (5, 6, 7, 8)
    if image is not source:
        image.close()
    return (height, width) if is_rotated else (width, height)


def flatten(image: Image.Image) -> Image.Image:
    """Returns the image as RGB, transparent pixels blended onto white.

    Figures are often black lines on a transparent background: without the alpha channel they would
    be black on black. 16-bit grey is reduced to 8 bits. Grey without a fixed range is stretched
    over its own range. Pillow would clip both to white.
    """
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.float32) / 257.0
        return Image.fromarray(np.rint(pixels).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        pixels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = pixels.min(), pixels.max()
        scaled = (pixels - low) * (255.0 / (high - low)) if high > low else pixels * 0.0 + 255.0
        return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # Pillow cannot convert it directly
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def load_pixels(source: Any) -> Image.Image:
    """Decodes an image and returns it upright, as RGB on white; the first frame of several.

    Applies the EXIF orientation, as transformers does for files.

    Raises:
        ImageError: see `open_image`; or the body is damaged or truncated.
    """
    image = open_image(source)
    transpose = _UPRIGHT.get(_orientation(image))
    try:
        rgb = flatten(image)
    except Exception as error:  # decoders of foreign bytes raise anything
        raise ImageError(
            "unreadable_image", f"image {_name(source)} cannot be decoded: {error}"
        ) from error
    finally:
        if image is not source:
            image.close()
    return rgb if transpose is None else rgb.transpose(transpose)


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


def count_image_tokens(width: int, height: int, spec: ImageSpec) -> int:
    """Returns the number of tokens in a prompt of an image of this size.

    Raises:
        ImageError: see `resized_size`.
    """
    return math.prod(resized_size(width, height, spec)) // spec.block**2


def process_image(image: Any, spec: ImageSpec) -> tuple[np.ndarray, tuple[int, int]]:
    """Cuts an image into patches.

    Args:
        image: any source for `open_image`, of any mode; transparent pixels become white.
        spec: sizes and limits.

    Returns:
        (patches uint8[i, C], (rows, columns) of the grid of patches). Order: merge blocks row by
        row; the patches of a block row by row; within a patch: channel, row, column.

    Raises:
        ImageError: see `open_image` and `resized_size`.
    """
    rgb = load_pixels(image)
    size = resized_size(*rgb.size, spec)
    pixels = np.asarray(rgb.resize(size, Image.Resampling.BICUBIC))  # uint8[H, W, 3]
    p, m = spec.patch_size, spec.merge_size
    rows, columns = size[1] // p, size[0] // p
    blocks = pixels.reshape(rows // m, m, p, columns // m, m, p, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1), (rows, columns)


def patch_layout(rows: int, columns: int, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates and windows of the patches of one image, in `process_image`'s order.

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


# ---- prompts --------------------------------------------------------------------------------


def encode_prompt(
    text: str, images: Sequence[Any], tokenizer: Tokenizer, spec: ImageSpec, name: str = "prompt"
) -> Encoded:
    """Turns a rendered prompt and its images into arrays.

    Args:
        text: the prompt, with one image token per image, in order. This function repeats each one
            to the number of tokens of its image.
        images: sources for `open_image`.
        tokenizer: the model's tokenizer.
        spec: the model's image settings.
        name: the prompt's id, for messages.

    Raises:
        ImageError: an image cannot be used.
        InputError: the numbers of image tokens and images differ, or there is a video.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError(f"{name}: the prompt is empty")
    vision = VisionTokens.from_tokenizer(tokenizer)
    check_placeholders(ids, len(images), vision, name)
    pieces, grids = [], []
    for image in images:
        patches, grid = process_image(image, spec)
        pieces.append(patches)
        grids.append(grid)
    counts = iter(rows * columns // spec.merge_size**2 for rows, columns in grids)
    repeats = [next(counts) if token == vision.image else 1 for token in ids]
    tokens = np.repeat(np.asarray(ids, np.int32), repeats)
    layouts = [patch_layout(*grid, spec) for grid in grids]
    windows, used = [], 1
    for _, window in layouts:
        windows.append(window + used)
        used += window.max() + 1
    numbers = [np.full(len(patches), n, np.int32) for n, patches in enumerate(pieces, start=1)]
    return Encoded(
        tokens=tokens,
        positions=rope_positions(tokens, grids, vision.image, spec.merge_size),
        patches=_join(pieces, (0, spec.patch_bytes), np.uint8),
        coords=_join([coords for coords, _ in layouts], (0, 2), np.int32),
        image=_join(numbers, (0,), np.int32),
        window=_join(windows, (0,), np.int32),
    )


def check_placeholders(ids: Sequence[int], images: int, vision: VisionTokens, name: str) -> None:
    """Checks that a prompt has one image token per image, and no video.

    Raises:
        InputError: it does not; names the prompt and both numbers.
    """
    num_placeholders = sum(token == vision.image for token in ids)
    if num_placeholders != images:
        raise InputError(
            f"{name}: {images} images, but {num_placeholders} <|image_pad|> in its text; the "
            "rendered prompt must hold exactly one for each image (is the chat template made for "
            "images?)"
        )
    if vision.video is not None and vision.video in ids:
        raise InputError(f"{name}: its text holds <|video_pad|>; video is not supported")


def collate(
    encoded: Sequence[Encoded | None],
    p: int,
    i: int,
    pad_id: int,
    patch_bytes: int | None = None,
) -> Prompts:
    """Pads prompts to one static shape: tokens on the left, patches on the right.

    Args:
        encoded: N prompts; None is an empty row, all padding.
        p: P, tokens per prompt.
        i: I, patches per prompt.
        pad_id: fills the padding of the tokens.
        patch_bytes: C; None if at least one prompt is not None.

    Returns:
        Prompts of NumPy arrays.

    Raises:
        ValueError: a prompt does not fit.
    """
    n = len(encoded)
    if patch_bytes is None:
        patch_bytes = next(prompt.patches.shape[1] for prompt in encoded if prompt is not None)
    batch = Prompts(
        tokens=np.full((n, p), pad_id, np.int32),
        mask=np.zeros((n, p), bool),
        positions=np.zeros((n, 3, p), np.int32),
        patches=np.zeros((n, i, patch_bytes), np.uint8),
        patch_coords=np.zeros((n, i, 2), np.int32),
        patch_image=np.zeros((n, i), np.int32),
        patch_window=np.zeros((n, i), np.int32),
    )
    for row, prompt in enumerate(encoded):
        if prompt is None:
            continue
        length, count = len(prompt.tokens), len(prompt.patches)
        if length > p or count > i:
            raise ValueError(
                f"a prompt of {length} tokens and {count} patches does not fit into P={p}, I={i}"
            )
        batch.tokens[row, p - length :] = prompt.tokens
        batch.mask[row, p - length :] = True
        batch.positions[row, :, p - length :] = prompt.positions
        batch.patches[row, :count] = prompt.patches
        batch.patch_coords[row, :count] = prompt.coords
        batch.patch_image[row, :count] = prompt.image
        batch.patch_window[row, :count] = prompt.window
    return batch


def _join(arrays: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Joins arrays along their first axis; without arrays, returns one of shape `empty`."""
    return np.concatenate([np.zeros(empty, dtype), *arrays], dtype=dtype)


def _json_object(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """Returns the object in a file, or an empty one if there is no file."""
    try:
        content = json.loads(files.get(name) or "{}")
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name} holds a {type(content).__name__}; expected an object")
    return content
