"""Whether a file is a whole picture, told without decoding its pixels.

Decoding is the better half of what a fetched picture costs. A file whose structure is whole may still
hold pixels that make no sense: the alignment, which decodes every picture, has a row for such a one.
"""

from __future__ import annotations

import zlib

from ..vision.images import Probe, decode, probe

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


def check_whole(data: bytes, max_pixels: int) -> Probe:
    """Format and upright size of a picture. Raises PictureError where it is none, or cut, or too large."""
    found = probe(data, max_pixels)
    if not ends_well(data):
        # What looks cut may be readable for all that, as a JPEG is that lacks but its end marker's tail.
        decode(data, max_pixels)
    return found


def may_be_cut(data: bytes) -> bool:
    """Whether this looks like the beginning of a picture, or of anything, whose rest did not come."""
    return not data or (data.startswith((_PNG, _JPEG)) and not ends_well(data))


def ends_well(data: bytes) -> bool:
    """Whether a JPEG has its end marker, or a PNG all chunks, each with its checksum.

    False for every other format.
    """
    if data.startswith(_PNG):
        return _png_ends(data)
    # Inside a scan FF is followed by 00 or a restart marker (ITU T.81, B.1.1.5): no end is taken for one.
    return data.startswith(_JPEG) and data.rfind(b"\xff\xd9") > _first_scan(data)


def _png_ends(data: bytes) -> bool:
    """PNG third edition, 5.3: length, type, content, CRC-32 of type and content."""
    view, position = memoryview(data), len(_PNG)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(view[position : position + 4], "big")
        if end + 4 > len(data) or zlib.crc32(view[position + 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        ):
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end + 4
    return False


def _first_scan(data: bytes) -> int:
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
