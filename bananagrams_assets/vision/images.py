"""Pictures to and from bytes.

In memory a picture is uint8 RGB (H, W, 3), C-contiguous, upright. Ordinary JPEG goes through OpenCV,
which is a third faster; everything else goes through Pillow. Which of the two reads a file depends on
its bytes alone, and both give the same orientation.
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
"""(H, W), True where edited or known"""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read. Pillow knows many more formats, which few pictures on the web use."""
_READERS = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif")


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What files of these formats are called."""


class ImageError(BananagramsError, ValueError):
    """Bytes that give no usable picture; the message says what is wrong with them."""


@dataclass(frozen=True)
class Probe:
    """What a picture's header says: its format, and its size in px once it stands upright."""

    format: str
    width: int
    height: int


def probe(data: bytes, max_pixels: int) -> Probe:
    """Read the header alone. Raises PictureError for what is no picture or has more than `max_pixels`."""
    image = _open(data, max_pixels)
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    return Probe(image.format or "", width, height)


def decode(data: bytes, max_pixels: int) -> RGB:
    """The upright picture as uint8 RGB (H, W, 3): alpha over white, 16 bits to 8, the first frame of many.

    Raises PictureError for what is no picture, is broken or truncated, or has more than `max_pixels`
    by its header, before any pixel is decoded. Colour profiles are not applied.
    """
    image = _open(data, max_pixels)
    orientation = _orientation(image)
    rgb = _decode_jpeg(image, data)
    if rgb is None:
        rgb = _decode_any(image)
    return np.ascontiguousarray(_upright(rgb, orientation))


def encode_jpeg(rgb: RGB, quality: int) -> bytes:
    """JPEG bytes, `quality` 1..100."""
    return _encode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png_mask(mask: Mask, one_bit: bool) -> bytes:
    """A single-channel PNG of a bool (H, W) mask: one bit a pixel, or eight with 0 and 255."""
    if not one_bit:
        return _encode(".png", mask.astype(np.uint8) * 255, [])
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def decode_mask(data: bytes) -> Mask:
    """The bool (H, W) mask of a PNG of any depth: True from mid-grey up. Raises PictureError."""
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    if grey is None:
        raise ImageError(f"not a mask: {_beginning(data)}")
    return np.asarray(grey >= 128)


def fit(rgb: RGB, largest_side_px: int) -> RGB:
    """The picture with its longest side at most `largest_side_px`, averaged over areas; never enlarged."""
    width, height = fitted_size((rgb.shape[1], rgb.shape[0]), largest_side_px)
    return rgb if (height, width) == rgb.shape[:2] else resize(rgb, (width, height))


def fitted_size(size: tuple[int, int], largest_side_px: int) -> tuple[int, int]:
    """(width, height) shrunk to a longest side of at most `largest_side_px`, each at least 1."""
    scale = min(1.0, largest_side_px / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The picture at (width, height): averaged over areas where it shrinks, bilinear where it grows."""
    shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The lazily opened picture, its size checked.

    Pillow's own limit on pixels is a global of the process that warns first; opening through the
    format's reader leaves that alone and makes `max_pixels` the only limit.
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
        except Exception as error:  # readers raise every kind of error over bytes they do not expect
            raise ImageError(f"broken {name}: {_words(error)}") from error
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError(f"broken {name}: its size is {width} x {height}")
        if width * height > max_pixels:
            raise ImageError(
                f"too large: {width} x {height} is {width * height:,} pixels, the limit is {max_pixels:,}"
            )
        return image
    raise ImageError(f"not a picture: {_beginning(data)}")


@cache
def _register_readers() -> None:
    """Load Pillow's readers of FORMATS. All that it has, as by `Image.init`, takes twice as long."""
    for name in _READERS:
        # A Pillow that was built without a format's library may lack its reader.
        with suppress(ImportError):
            import_module(f"PIL.{name}ImagePlugin")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1..8 from the header; 1 where there is none or it makes no sense.

    Pillow turns TIFF upright itself. For PNG its own `getexif` would decode the pixels in search of a
    late chunk, which the format forbids (PNG third edition, 5.6: eXIf stands before IDAT).
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_jpeg(image: ImageFile.ImageFile, data: bytes) -> RGB | None:
    """Unturned RGB of an ordinary JPEG; None where Pillow has to judge.

    OpenCV fills what a truncated file lacks with grey and says nothing, so only files with their end
    marker are read here.
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
    """Where a JPEG's first scan begins: an end marker before it belongs to an embedded thumbnail."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _decode_any(image: ImageFile.ImageFile) -> RGB:
    """Unturned RGB of anything Pillow reads."""
    try:
        image.load()
        if image.mode.startswith("I;16"):
            grey = np.asarray(image).astype(np.uint32)
            return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise ImageError(f"{image.format} with 32-bit samples: their white is not known")
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
        return np.asarray(image.convert("RGB"))
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise every kind of error over bytes they do not expect
        raise ImageError(f"broken {image.format}: {_words(error)}") from error


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
    done, buffer = cv2.imencode(extension, image, parameters)
    if not done:
        raise ImageError(f"cannot be written as {extension[1:]}: array of shape {image.shape}")
    return buffer.tobytes()


def _beginning(data: bytes) -> str:
    if not data:
        return "the file is empty"
    text = data[:15].decode("utf-8", errors="replace").strip()
    if "�" in text or not text.isprintable():
        return f"starts with bytes {data[:8].hex(' ')}"
    return f"starts with {text!r}"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
