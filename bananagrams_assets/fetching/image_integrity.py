"""Check that an image file is complete without decoding its pixels.

Decoding dominates the cost per image, so only the file structure is checked here. A file with a complete
structure may still hold undecodable pixels; `aligned_pairs` decodes every image and rejects such a pair.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from functools import lru_cache

from ..storage.digests import Data
from ..vision.images import ImageError, Probe, decode, probe

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_CHUNK, _PNG_CRC = struct.Struct(">I4s"), struct.Struct(">I")
_HEAD_BYTES = 2**16
_MIN_RUN, _MAX_RUN_CHUNK_BYTES = 4, 2**16
"""The CRCs of at least `_MIN_RUN` consecutive chunks of one length, each of at most `_MAX_RUN_CHUNK_BYTES`,
are checked together."""


def check_complete(data: Data, max_pixels: int) -> Probe:
    """Return format and upright size of a complete image.

    Raises ImageError for data that is no image, is truncated, or has more than `max_pixels`.
    """
    header = probe_header(data, max_pixels)
    if not has_end(data):
        # Decoders accept some files without an end, such as a JPEG that lacks only part of its end marker.
        decode(bytes(data), max_pixels)
    return header


def probe_header(data: Data, max_pixels: int) -> Probe:
    """Return `probe(data)`, for most images from a copy of the first 64 KiB only. Raises ImageError."""
    head = bytes(data[:_HEAD_BYTES])
    if len(head) < len(data) and head.startswith((_PNG, _JPEG)):
        with suppress(ImageError):
            return probe(head, max_pixels)
    return probe(bytes(data), max_pixels)


def may_be_truncated(data: Data) -> bool:
    """Return whether `data` is empty, or a PNG or JPEG without its end."""
    return not data or (bytes(data[:8]).startswith((_PNG, _JPEG)) and not has_end(data))


def has_end(data: Data) -> bool:
    """Return whether a JPEG has its end marker, or a PNG all chunks up to IEND with correct CRCs.

    False for every other format.
    """
    view, start = memoryview(data), bytes(data[:8])
    if start == _PNG:
        return _png_has_end(view)
    # Inside a scan FF is followed by 00 or a restart marker (ITU T.81, B.1.1.5), so FF D9 is an end marker.
    return start.startswith(_JPEG) and _last_end_marker(view) > _first_scan(view)


def _png_has_end(view: memoryview) -> bool:
    """Check chunk structure and CRCs (PNG third edition, 5.3: length, type, content, CRC-32 of type and
    content)."""
    position, size = len(_PNG), len(view)
    run_start, count, run_length = position, 0, -1
    while position + 12 <= size:
        length, kind = _PNG_CHUNK.unpack_from(view, position)
        if position + 12 + length > size:
            return False
        if length != run_length:
            if not _crcs_match(view, run_start, count, run_length):
                return False
            run_start, count, run_length = position, 0, length
        count += 1
        position += 12 + length
        if kind == b"IEND":
            return _crcs_match(view, run_start, count, run_length)
    return False


def _crcs_match(view: memoryview, start: int, count: int, length: int) -> bool:
    """Return whether `count` chunks of content length `length`, from byte `start` on, have correct CRCs.

    Encoders write chunks of 8 to 64 KB. Hashing them one by one either holds the GIL throughout or
    reacquires it for each chunk. A run of equal chunks is therefore hashed in one call, and the expected
    CRC is combined from the stored CRCs (Mark Adler, zlib, crc32_combine).
    """
    step = length + 12
    offsets = range(start + 8 + length, start + count * step, step)
    crc32, stored_crc = zlib.crc32, _PNG_CRC.unpack_from
    if count < _MIN_RUN or length > _MAX_RUN_CHUNK_BYTES:
        return all(
            crc32(view[offset - length - 4 : offset]) == stored_crc(view, offset)[0] for offset in offsets
        )
    table0, table1, table2, table3 = _shift_tables(length + 4)
    crc = 0
    for offset in offsets:
        crc = table0[crc & 255] ^ table1[crc >> 8 & 255] ^ table2[crc >> 16 & 255] ^ table3[crc >> 24]
        # The 8 bytes are the stored CRC and the length of the next chunk.
        crc = crc32(view[offset : offset + 8], crc ^ stored_crc(view, offset)[0])
    return crc == crc32(view[start + 4 : offsets[-1] + 8])


@lru_cache(maxsize=8)
def _shift_tables(size: int) -> list[list[int]]:
    """Return lookup tables that advance a CRC-32 by `size` bytes, before their own CRC is XORed in.

    There is one table of 256 values for each byte of the CRC, lowest byte first. CRC-32 is linear, so the
    advanced CRC is the XOR of the four values.
    """
    zeros = bytes(size)
    crc_of_zeros = zlib.crc32(zeros)
    tables = []
    for byte in range(4):
        table = [0]
        for bit in range(8 * byte, 8 * byte + 8):
            shifted = zlib.crc32(zeros, 1 << bit) ^ crc_of_zeros
            table += [shifted ^ value for value in table]
        tables.append(table)
    return tables


def _last_end_marker(view: memoryview) -> int:
    """Return the offset of a JPEG's last end marker, or -1."""
    for start in (max(0, len(view) - _HEAD_BYTES), 0):
        if (offset := bytes(view[start:]).rfind(b"\xff\xd9")) >= 0:
            return start + offset
    return -1


def _first_scan(data: memoryview) -> int:
    """Return the offset of a JPEG's first scan, or the data's length if there is none.

    An end marker before that offset belongs to an embedded thumbnail.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:
            return position
        # Fill bytes may precede any marker (ITU T.81, B.1.1.2).
        if data[position + 1] == 0xFF:
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)
