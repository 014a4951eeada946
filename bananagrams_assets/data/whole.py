"""Whether a file is a whole picture, told without decoding its pixels.

Decoding is the better half of what a fetched picture costs. A file whose structure is whole may still
hold pixels that make no sense: the alignment, which decodes every picture, has a row for such a one.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import TypeAlias

from ..vision.images import PictureError, Probe, decode, probe

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_CHUNK, _PNG_SUM = struct.Struct(">I4s"), struct.Struct(">I")
_HEAD = 2**16
_LARGE = 2**17
_LOCKED = 5120

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
        with suppress(PictureError):
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
    while position + 12 <= size:
        length, kind = _PNG_CHUNK.unpack_from(view, position)
        end = position + 8 + length
        if end + 4 > size or _crc32(view, position + 4, end) != _PNG_SUM.unpack_from(view, end)[0]:
            return False
        if kind == b"IEND":
            return True
        position = end + 4
    return False


def _crc32(view: memoryview, start: int, end: int) -> int:
    """zlib.crc32, which gives up the interpreter's lock for more than 5 KB.

    Encoders write chunks of 8 to 64 KB: for each of them the lock would cost more than the sum.
    """
    if end - start > _LARGE:
        return zlib.crc32(view[start:end])
    value = 0
    for at in range(start, end, _LOCKED):
        value = zlib.crc32(view[at : min(at + _LOCKED, end)], value)
    return value


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
