"""Whether bytes are a whole picture."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bananagrams_assets.fetching.image_integrity import check_whole, ends_well, may_be_cut
from bananagrams_assets.vision.images import ImageError, Probe

SIDE = 320
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, kind, **options)
    return file.getvalue()


def png_of(pieces: list[bytes]) -> bytes:
    chunks = [*(b"IDAT" + piece for piece in pieces), b"IEND"]
    framed = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@given(
    st.lists(st.sampled_from([0, 1, 5_120, 9_000, 2**17 + 1]), max_size=3),
    st.integers(0, 2**32), st.integers(0, 2**32), st.integers(1, 255),
)  # fmt: skip
def test_a_png_is_whole_until_a_byte_is_missing_or_another(
    sizes: list[int], cut: int, at: int, flip: int
) -> None:
    data = png_of([bytes(size) for size in sizes])
    assert ends_well(data)
    assert ends_well(memoryview(data))
    assert not ends_well(data[: cut % len(data)])
    other = bytearray(data)
    other[at % len(data)] ^= flip
    assert not ends_well(bytes(other))


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([0, 1, 300, 8_192]), st.binary(max_size=8)), max_size=4
    ),
    st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 255)), max_size=3),
    st.binary(max_size=20),
)  # fmt: skip
def test_chunks_of_one_length_are_checked_like_any_others(
    runs: list[tuple[int, int, bytes]], flips: list[tuple[int, int]], behind: bytes
) -> None:
    pieces = [start + bytes(size) for count, size, start in runs for _ in range(count)]
    data = bytearray(png_of(pieces) + behind)
    for at, flip in flips:
        data[8 + at % (len(data) - 8)] ^= flip
    assert ends_well(bytes(data)) == chunks_are_right(bytes(data))


def chunks_are_right(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        chunk = data[position + 4 : end]
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(chunk)):
            return False
        if chunk.startswith(b"IEND"):
            return True
        position = end + 4
    return False


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_image_is_known_by_its_beginning_and_its_end(kind: str) -> None:
    data = encoded(kind, quality=100) if kind == "JPEG" else encoded(kind)
    assert len(data) > 2**17
    assert check_whole(memoryview(data), SIDE * SIDE) == Probe(kind, SIDE, SIDE)
    assert may_be_cut(data[:-5000])
    with pytest.raises(ImageError, match=r"broken|truncated"):
        check_whole(data[:-5000], SIDE * SIDE)
    with pytest.raises(ImageError, match="too large"):
        check_whole(data, SIDE * SIDE - 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_header_longer_than_usual_is_read_to_its_end(kind: str) -> None:
    profile = {"icc_profile": np.random.default_rng(1).bytes(200_000)}
    assert check_whole(encoded(kind, **profile), SIDE * SIDE) == Probe(kind, SIDE, SIDE)


def test_what_follows_the_end_of_a_jpeg_does_not_hide_it() -> None:
    data = encoded("JPEG")
    assert ends_well(data + bytes(300_000))
    assert not ends_well(data[:-2] + bytes(300_000))
