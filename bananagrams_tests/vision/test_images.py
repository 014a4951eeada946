from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageOps

from bananagrams_assets.vision.images import (
    ImageError,
    decode,
    decode_mask,
    encode_jpeg,
    encode_png_mask,
    fit,
    fitted_size,
    probe,
)
from bananagrams_tests.vision.images import textured

LIMIT = 10_000_000


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_every_exif_orientation_becomes_upright(image_format: str, orientation: int) -> None:
    image = Image.fromarray(textured(1, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, image_format, exif=exif, **({"quality": 95} if image_format != "TIFF" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode(data, LIMIT)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 2
    header = probe(data, LIMIT)
    assert (header.height, header.width) == decoded.shape[:2]


def test_invalid_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode(saved(Image.new("RGB", (6, 4)), "JPEG", exif=exif), LIMIT).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("image", "image_format", "expected"),
    [
        (Image.new("L", (3, 2), 200), "PNG", (200, 200, 200)),
        (Image.new("L", (3, 2), 200), "JPEG", (200, 200, 200)),
        (Image.new("1", (3, 2), 1), "PNG", (255, 255, 255)),
        (Image.new("I;16", (3, 2), 32896), "PNG", (128, 128, 128)),
        (Image.new("I;16", (3, 2), 65535), "TIFF", (255, 255, 255)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (0, 0, 0, 128)), "PNG", (127, 127, 127)),
        (Image.new("LA", (3, 2), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGB", (3, 2), (10, 20, 30)), "BMP", (10, 20, 30)),
        (Image.new("RGB", (3, 2), (10, 20, 30)), "GIF", (10, 20, 30)),
    ],
)
def test_modes_become_rgb(image: Image.Image, image_format: str, expected: tuple[int, int, int]) -> None:
    decoded = decode(saved(image, image_format), LIMIT)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert np.abs(decoded.astype(int) - expected).max() <= 2


def test_sixteen_bit_colour_keeps_its_levels() -> None:
    rows = b"".join(b"\0" + struct.pack(">9H", *([40000, 20000, 65535] * 3)) for _ in range(2))
    data = png_header(3, 2).replace(b"\x08\x02\x00\x00\x00", b"\x10\x02\x00\x00\x00", 1)
    header = data[12:29]
    body = zlib.compress(rows)
    data = (
        data[:12]
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", len(body))
        + b"IDAT"
        + body
        + struct.pack(">I", zlib.crc32(b"IDAT" + body))
        + data[data.index(b"IEND") - 4 :]
    )
    assert np.abs(decode(data, LIMIT).astype(int) - [156, 78, 255]).max() <= 1


def test_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 0, 0, 255])
    image.putpixel((0, 0), 0)
    decoded = decode(saved(image, "PNG", transparency=0), LIMIT)
    assert tuple(decoded[0, 0]) == (255, 255, 255)
    assert tuple(decoded[3, 3]) == (0, 0, 255)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_decoded(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = saved(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert tuple(decode(data, LIMIT)[0, 0]) == (255, 0, 0)


def test_every_format_has_a_reader_in_a_new_process() -> None:
    code = (
        "from PIL import Image\n"
        "from bananagrams_assets.vision.images import FORMATS, ImageError, probe\n"
        "try:\n"
        "    probe(b'none', 1)\n"
        "except ImageError:\n"
        "    print(*(name for name in FORMATS if name not in Image.OPEN))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "\n"


def test_one_pixel_image() -> None:
    assert decode(saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), LIMIT).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "not a picture: starts with '<!DOCTYPE html"),
        (b"", "the file is empty"),
        (b"\x00\x01\x02\x03\xff\xfe", "not a picture: starts with bytes 00 01 02"),
        (b"GIF89a", "broken GIF"),
        (b"\xff\xd8\xff", "broken JPEG"),
        (png_header(0, 5), "broken PNG"),
        (b"%PDF-1.7 and so on", "starts with '%PDF"),
    ],
)
def test_error_describes_bytes_that_are_not_an_image(data: bytes, message: str) -> None:
    for read in (probe, decode):
        with pytest.raises(ImageError, match=message.replace("(", r"\(")):
            read(data, LIMIT)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_image_is_rejected(image_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), image_format)
    with pytest.raises(ImageError, match=f"broken {image_format}"):
        decode(data[: int(len(data) * share)], LIMIT)


def test_end_marker_of_a_thumbnail_does_not_end_the_image() -> None:
    whole = saved(Image.fromarray(textured(3, 200, 160)), "JPEG")
    thumbnail = saved(Image.new("RGB", (8, 8)), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    data = whole[:2] + segment + whole[2:]
    assert decode(data, LIMIT).shape == (160, 200, 3)
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: len(data) // 2], LIMIT)


def test_decompression_bomb_is_rejected_by_its_header_without_a_warning() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (probe, decode):
            with pytest.raises(
                ImageError, match="50000 x 50000 is 2,500,000,000 pixels, the limit is 10,000,000"
            ):
                read(png_header(50_000, 50_000), LIMIT)
    assert before == Image.MAX_IMAGE_PIXELS


def test_pixel_limit_may_exceed_pillows_limit() -> None:
    assert probe(png_header(50_000, 50_000), 3_000_000_000).width == 50_000


@given(
    data=st.binary(max_size=300),
    image_format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]),
    offset=st.integers(0, 500),
)
def test_damaged_bytes_give_an_image_or_an_image_error(data: bytes, image_format: str, offset: int) -> None:
    whole = saved(Image.fromarray(textured(2, 16, 12)), image_format)
    damaged = whole[:offset] + data + whole[offset + len(data) :]
    with contextlib.suppress(ImageError):
        assert decode(damaged, LIMIT).ndim == 3


@given(
    mask=npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=40)), one_bit=st.booleans()
)
def test_mask_png_round_trip(mask: np.ndarray[Any, np.dtype[np.bool_]], one_bit: bool) -> None:
    data = encode_png_mask(mask, one_bit)
    assert np.array_equal(decode_mask(data), mask)
    assert Image.open(io.BytesIO(data)).mode == ("1" if one_bit else "L")


def test_invalid_mask_bytes_are_rejected() -> None:
    for data in (b"", b"nothing"):
        with pytest.raises(ImageError, match="not a mask"):
            decode_mask(data)


def test_jpeg_keeps_the_colours() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :32], image[:, 32:64], image[:, 64:] = (200, 30, 20), (20, 180, 40), (30, 60, 210)
    assert np.abs(decode(encode_jpeg(image, 95), LIMIT).astype(int) - image).mean() < 3


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), side=st.integers(1, 2000))
def test_fitted_size_keeps_the_aspect_ratio_and_never_enlarges(width: int, height: int, side: int) -> None:
    new = fitted_size((width, height), side)
    assert 1 <= new[0] <= width
    assert 1 <= new[1] <= height
    assert max(new) <= side
    if max(width, height) > side:
        assert abs(new[0] * height - new[1] * width) <= max(width, height)


def test_fit_averages_areas() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = fit(np.repeat(board[..., None].astype(np.uint8), 3, axis=2), 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 127).max() <= 1
