"""Whether a file is a whole picture, told without decoding its pixels.

Decoding is the better half of what a fetched picture costs. A file whose structure is whole may still
hold pixels that make no sense: the alignment, which decodes every picture, has a row for such a one.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from typing import TypeAlias

from ..vision.images import ImageError, Probe, decode, probe

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_CHUNK, _PNG_SUM = struct.Struct(">I4s"), struct.Struct(">I")
_HEAD = 2**16
_RUN, _RUN_BYTES = 4, 2**16
"""From so many chunks of one length on, each of at most so many bytes, their checksums are checked as one."""

Data: TypeAlias = "bytes | memoryview"


def check_whole(data: Data, max_pixels: int) -> Probe:
    """Format and upright size of a picture. Raises PictureError where it is none, or cut, or too large."""
    found = probe_header(data, max_pixels)
    if not ends_well(data):
        # What looks cut may be readable for all that, as a JPEG is that lacks but its end marker's tail.
        decode(bytes(data), max_pixels)
    return found


def probe_header(data: Data, max_pixels: int) -> Probe:
    """As `probe`, which for most pictures needs no copy of all their bytes. Raises PictureError."""
    head = bytes(data[:_HEAD])
    if len(head) < len(data) and head.startswith((_PNG, _JPEG)):
        with suppress(ImageError):
            return probe(head, max_pixels)
    return probe(bytes(data), max_pixels)


def may_be_cut(data: Data) -> bool:
    """Whether this looks like the beginning of a picture, or of anything, whose rest did not come."""
    return not data or (bytes(data[:8]).startswith((_PNG, _JPEG)) and not ends_well(data))


def ends_well(data: Data) -> bool:
    """Whether a JPEG has its end marker, or a PNG all chunks, each with its checksum.

    False for every other format.
    """
    view, start = memoryview(data), bytes(data[:8])
    if start == _PNG:
        return _png_ends(view)
    # Inside a scan FF is followed by 00 or a restart marker (ITU T.81, B.1.1.5): no end is taken for one.
    return start.startswith(_JPEG) and _last_end(view) > _first_scan(view)


def _png_ends(view: memoryview) -> bool:
    """PNG third edition, 5.3: length, type, content, CRC-32 of type and content."""
    position, size = len(_PNG), len(view)
    first, count, run = position, 0, -1
    while position + 12 <= size:
        length, kind = _PNG_CHUNK.unpack_from(view, position)
        if position + 12 + length > size:
            return False
        if length != run:
            if not _sums_right(view, first, count, run):
                return False
            first, count, run = position, 0, length
        count += 1
        position += 12 + length
        if kind == b"IEND":
            return _sums_right(view, first, count, run)
    return False


def _sums_right(view: memoryview, first: int, count: int, length: int) -> bool:
    """Whether `count` chunks of one length, from the byte `first` on, have the checksums that they tell.

    Encoders write chunks of 8 to 64 KB. To hash one by one costs either the interpreter's lock, held all the
    while, or giving it up and waiting for it again each time. So a run of them is hashed at once, and the
    CRC that it must have is worked out from the checksums in it: that of two pieces follows from those of
    each (Mark Adler, zlib, crc32_combine).
    """
    step = length + 12
    sums = range(first + 8 + length, first + count * step, step)
    if count < _RUN or length > _RUN_BYTES:
        return all(zlib.crc32(view[at - length - 4 : at]) == _PNG_SUM.unpack_from(view, at)[0] for at in sums)
    low, second, third, high = _carried(length + 4)
    crc32, told = zlib.crc32, _PNG_SUM.unpack_from
    value = 0
    for at in sums:
        value = low[value & 255] ^ second[value >> 8 & 255] ^ third[value >> 16 & 255] ^ high[value >> 24]
        # The checksum itself, and the next chunk's length.
        value = crc32(view[at : at + 8], value ^ told(view, at)[0])
    return value == crc32(view[first + 4 : sums[-1] + 8])


@lru_cache(maxsize=8)
def _carried(size: int) -> list[list[int]]:
    """What a CRC-32 becomes behind `size` more bytes, before theirs is added: for each of its four bytes,
    lowest first, a table of its values. The CRC is their sum (XOR), as it is linear."""
    zeros = bytes(size)
    none = zlib.crc32(zeros)
    tables = []
    for byte in range(4):
        table = [0]
        for bit in range(8 * byte, 8 * byte + 8):
            one = zlib.crc32(zeros, 1 << bit) ^ none
            table += [one ^ other for other in table]
        tables.append(table)
    return tables


def _last_end(view: memoryview) -> int:
    """Where a JPEG's last end marker is; -1 where there is none."""
    for start in (max(0, len(view) - _HEAD), 0):
        if (found := bytes(view[start:]).rfind(b"\xff\xd9")) >= 0:
            return start + found
    return -1


def _first_scan(data: memoryview) -> int:
    """Where a JPEG's first scan begins; its length where there is none.

    An end marker before it belongs to an embedded thumbnail.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        if data[position + 1] == 0xDA:
            return position
        # Fill bytes may stand before any marker (ITU T.81, B.1.1.2).
        if data[position + 1] == 0xFF:
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return len(data)
