"""Decode, encode and resize images.

A decoded image is uint8 RGB (H, W, 3), C-contiguous and upright. OpenCV decodes ordinary JPEG, a third
faster than Pillow, which decodes all other files. The choice depends only on the bytes of the file, and both
decoders give the same orientation.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from ..errors import BananagramsError

RGB: TypeAlias = NDArray[np.uint8]
"""(H, W, 3)"""
Mask: TypeAlias = NDArray[np.bool_]
"""(H, W), True for edited or valid pixels"""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Accepted formats. Pillow supports many more, but few images on the web use them."""
_READERS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""File name suffixes of these formats."""


class ImageError(BananagramsError, ValueError):
    """Bytes that do not decode to a usable image. The message states the fault."""


@dataclass(frozen=True)
class Probe:
    """Format and upright size in px, from an image's header."""

    format: str
    width: int
    height: int


def probe(data: bytes, max_pixels: int) -> Probe:
    """Read only the header. Raises ImageError if it is invalid or declares more than `max_pixels` pixels."""
    image = _open(data, max_pixels)
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    return Probe(image.format or "", width, height)


def decode(data: bytes, max_pixels: int) -> RGB:
    """Decode an image to upright uint8 RGB (H, W, 3).

    Alpha is composited over white, 16-bit levels become 8-bit, and only the first frame of an animation is
    decoded. Colour profiles are not applied. Raises ImageError if the bytes are not an image, are broken or
    truncated, or if the header declares more than `max_pixels` pixels (before any pixel is decoded).
    """
    image = _open(data, max_pixels)
    orientation = _orientation(image)
    rgb = _decode_jpeg(image, data)
    if rgb is None:
        rgb = _decode_any(image)
    return np.ascontiguousarray(_upright(rgb, orientation))


def encode_jpeg(rgb: RGB, quality: int) -> bytes:
    """Encode as JPEG with `quality` 1..100."""
    return _encode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png_mask(mask: Mask, one_bit: bool) -> bytes:
    """Encode a bool (H, W) mask as a single-channel PNG with 1 bit per pixel, or 8 bits (0 and 255)."""
    if not one_bit:
        return _encode(".png", mask.astype(np.uint8) * 255, [])
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def decode_mask(data: bytes) -> Mask:
    """Decode a PNG of any depth to a bool (H, W) mask, True from level 128. Raises ImageError."""
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if grey is None:
        raise ImageError(f"not a mask: {_describe_start(data)}")
    return np.asarray(grey >= 128)


def fit(rgb: RGB, largest_side_px: int) -> RGB:
    """Shrink an image to a longest side of at most `largest_side_px` by area averaging; never enlarge it."""
    width, height = fitted_size((rgb.shape[1], rgb.shape[0]), largest_side_px)
    return rgb if (height, width) == rgb.shape[:2] else resize(rgb, (width, height))


def fitted_size(size: tuple[int, int], largest_side_px: int) -> tuple[int, int]:
    """Return (width, height) shrunk to a longest side of at most `largest_side_px`, each at least 1."""
    scale = min(1.0, largest_side_px / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize to (width, height): area averaging if neither side grows, else bilinear interpolation."""
    shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image lazily and check its size.

    Pillow's own pixel limit is process-wide and warns before it raises. Opening through the format's reader
    bypasses it, so `max_pixels` is the only limit.
    """
    _register_readers()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None or accept(data[:16]) is not True:
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except MemoryError:
            raise
        except Exception as error:  # readers raise many error types for malformed bytes
            raise ImageError(f"broken {name}: {_one_line(error)}") from error
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError(f"broken {name}: its size is {width} x {height}")
        if width * height > max_pixels:
            raise ImageError(
                f"too large: {width} x {height} is {width * height:,} pixels, the limit is {max_pixels:,}"
            )
        return image
    raise ImageError(f"not a picture: {_describe_start(data)}")


@cache
def _register_readers() -> None:
    """Load Pillow's readers of FORMATS. `Image.init`, which loads all readers, takes twice as long."""
    for name in _READERS:
        # Pillow lacks the reader if it was built without the format's library.
        with suppress(ImportError):
            import_module(f"PIL.{name}ImagePlugin")


def _orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation 1..8 from the header; 1 if it is missing or invalid.

    Pillow rotates TIFF itself. `PngImageFile.getexif` would decode the pixels to find an eXIf chunk after
    IDAT, which the format forbids (PNG third edition, 5.6), so the base class's method is called.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block must not reject the image
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_jpeg(image: ImageFile.ImageFile, data: bytes) -> RGB | None:
    """Decode an ordinary JPEG with OpenCV, without rotation; return None if Pillow must decode it.

    OpenCV silently fills the missing part of a truncated file with grey, so it decodes only files that have
    an end marker.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    if data.find(b"\xff\xd9", _scan_start(data)) < 0:
        return None
    rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if rgb is None or rgb.shape != (image.height, image.width, 3):
        return None
    return np.asarray(rgb, np.uint8)


def _scan_start(data: bytes) -> int:
    """Return the offset of a JPEG's first scan. An end marker before it belongs to an embedded thumbnail."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _decode_any(image: ImageFile.ImageFile) -> RGB:
    """Decode any format with Pillow, without rotation."""
    try:
        image.load()
        if image.mode.startswith("I;16"):
            grey = np.asarray(image).astype(np.uint32)
            return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise ImageError(f"{image.format} with 32-bit samples: the level of white is unknown")
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
        return np.asarray(image.convert("RGB"))
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise many error types for malformed bytes
        raise ImageError(f"broken {image.format}: {_one_line(error)}") from error


def _upright(rgb: RGB, orientation: int) -> RGB:
    """Undo an EXIF orientation (CIPA DC-008, 4.6.4: tag 274)."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return rgb


def _encode(extension: str, image: Any, parameters: list[int]) -> bytes:
    encoded, buffer = cv2.imencode(extension, image, parameters)
    if not encoded:
        raise ImageError(f"cannot encode an array of shape {image.shape} as {extension[1:]}")
    return buffer.tobytes()


def _describe_start(data: bytes) -> str:
    if not data:
        return "the file is empty"
    text = data[:15].decode("utf-8", errors="replace").strip()
    if "�" in text or not text.isprintable():
        return f"starts with bytes {data[:8].hex(' ')}"
    return f"starts with {text!r}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
