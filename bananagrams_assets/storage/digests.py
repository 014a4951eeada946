"""What a file's bytes are told by.

A plain digest is SHA-256 in hex. A tar of pictures whose own SHA-256 is known anyway has a digest of
**members**, `members:` and SHA-256 in hex over the tar with each member's content replaced by its SHA-256:
as hard to forge, and no byte is hashed twice. The tar may be read without knowing it, as by `sha256sum`
and any tar tool for each of its pictures.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tarfile
from typing import IO, Protocol, TypeAlias

MEMBERS = "members:"

_READ = 2**20
_SIZE = re.compile(rb"[ \0]*([0-7]+)[ \0]*")

Data: TypeAlias = "bytes | bytearray | memoryview"


class Digest(Protocol):
    """What hashes bytes as they come."""

    def update(self, data: Data, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


class MembersDigest:
    """The digest of members of a tar, given as its bytes or member by member."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._header = b""
        self._content = hashlib.sha256()
        self._left = self._padding = 0

    def add(self, header: bytes, sha256: str, padding: bytes) -> None:
        """Take a whole member: its header, the SHA-256 in hex of its content, its padding."""
        self._sha256.update(header + bytes.fromhex(sha256) + padding)

    def update(self, data: Data) -> None:
        """Take bytes of the tar, in order."""
        view = memoryview(data)
        while view:
            if self._left:
                taken = self._update_content(view[: self._left])
            elif self._padding:
                taken = min(self._padding, len(view))
                self._sha256.update(view[:taken])
                self._padding -= taken
            else:
                taken = self._update_header(bytes(view[: tarfile.BLOCKSIZE - len(self._header)]))
            view = view[taken:]

    def hexdigest(self) -> str:
        rest = self._sha256.copy()
        # Of a tar that is cut.
        rest.update(self._content.digest() if self._left else self._header)
        return f"{MEMBERS}{rest.hexdigest()}"

    def copy(self) -> MembersDigest:
        other = copy.copy(self)
        other._sha256, other._content = self._sha256.copy(), self._content.copy()
        return other

    def _update_header(self, data: bytes) -> int:
        self._header += data
        if len(self._header) == tarfile.BLOCKSIZE:
            self._sha256.update(self._header)
            # Where there is no size, as in the blocks that end a tar, the next block is taken for a header.
            if size := _SIZE.fullmatch(self._header[124:136]):
                self._left = int(size[1], 8)
                self._padding = -self._left % tarfile.BLOCKSIZE
                self._content = hashlib.sha256()
                if not self._left:
                    self._sha256.update(self._content.digest())
            self._header = b""
        return len(data)

    def _update_content(self, data: memoryview) -> int:
        self._content.update(data)
        self._left -= len(data)
        if not self._left:
            self._sha256.update(self._content.digest())
        return len(data)


def digest_like(known: str) -> Digest:
    """A digest of no bytes yet, of the kind that `known` is of."""
    return MembersDigest() if known.startswith(MEMBERS) else hashlib.sha256()


def digest_of(file: IO[bytes], known: str) -> str:
    """The digest, of the kind that `known` is of, of all that is left to read."""
    digest = digest_like(known)
    while block := file.read(_READ):
        digest.update(block)
    return digest.hexdigest()
