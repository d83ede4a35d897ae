# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Opens images: any source becomes an upright RGB image on white.

The header of an image alone tells its size. Apart from callers of `rlvlm_jax.VLM`, no other code
opens images for the model. What becomes of the pixels is up to the model family.
"""

import io
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image

from rlvlm_jax.errors import InputError

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


class ImageError(InputError):
    """An image that cannot be used.

    Attributes:
        kind: "missing_image", "unreadable_image", "image_too_long" or "image_too_large".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


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
