from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bananagrams_assets.fetching.image_integrity import check_complete, has_end, may_be_truncated
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
def test_a_truncated_or_corrupted_png_is_detected(sizes: list[int], cut: int, offset: int, flip: int) -> None:
    data = png_of([bytes(size) for size in sizes])
    assert has_end(data)
    assert has_end(memoryview(data))
    assert not has_end(data[: cut % len(data)])
    corrupted = bytearray(data)
    corrupted[offset % len(data)] ^= flip
    assert not has_end(bytes(corrupted))


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([0, 1, 300, 8_192]), st.binary(max_size=8)), max_size=4
    ),
    st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 255)), max_size=3),
    st.binary(max_size=20),
)  # fmt: skip
def test_runs_of_equal_chunks_match_a_chunk_by_chunk_check(
    runs: list[tuple[int, int, bytes]], flips: list[tuple[int, int]], trailing: bytes
) -> None:
    pieces = [start + bytes(size) for count, size, start in runs for _ in range(count)]
    data = bytearray(png_of(pieces) + trailing)
    for offset, flip in flips:
        data[8 + offset % (len(data) - 8)] ^= flip
    assert has_end(bytes(data)) == crcs_match(bytes(data))


def crcs_match(data: bytes) -> bool:
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
def test_large_images_are_checked_by_header_and_end(kind: str) -> None:
    data = encoded(kind, quality=100) if kind == "JPEG" else encoded(kind)
    assert len(data) > 2**17
    assert check_complete(memoryview(data), SIDE * SIDE) == Probe(kind, SIDE, SIDE)
    assert may_be_truncated(data[:-5000])
    with pytest.raises(ImageError, match=r"broken|truncated"):
        check_complete(data[:-5000], SIDE * SIDE)
    with pytest.raises(ImageError, match="too large"):
        check_complete(data, SIDE * SIDE - 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_header_over_64_kib_is_read(kind: str) -> None:
    profile = {"icc_profile": np.random.default_rng(1).bytes(200_000)}
    assert check_complete(encoded(kind, **profile), SIDE * SIDE) == Probe(kind, SIDE, SIDE)


def test_trailing_bytes_do_not_hide_the_end_of_a_jpeg() -> None:
    data = encoded("JPEG")
    assert has_end(data + bytes(300_000))
    assert not has_end(data[:-2] + bytes(300_000))
