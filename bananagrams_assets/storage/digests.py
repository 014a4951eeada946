"""Digests of stored files.

A plain digest is the file's SHA-256 in hex. A **members** digest of a tar is `members:` followed by the
SHA-256 in hex of the tar with each member's content replaced by the SHA-256 of that content. It is as hard
to forge as a plain digest, and images whose SHA-256 is already known are not hashed twice. Readers may
ignore it: `sha256sum` and any tar tool can verify each image.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tarfile
from typing import IO, Protocol, TypeAlias

MEMBERS = "members:"

_BLOCK = 2**20
_SIZE = re.compile(rb"[ \0]*([0-7]+)[ \0]*")

Data: TypeAlias = "bytes | bytearray | memoryview"


class Digest(Protocol):
    """An incremental hash function."""

    def update(self, data: Data, /) -> None:
        """Hash more bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""


class MembersDigest:
    """The members digest of a tar that is passed as bytes or member by member."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._header = b""
        self._content = hashlib.sha256()
        self._left = self._padding = 0

    def add(self, header: bytes, sha256: str, padding: bytes) -> None:
        """Hash a complete member: its header, the SHA-256 in hex of its content, its padding."""
        self._sha256.update(header + bytes.fromhex(sha256) + padding)

    def update(self, data: Data) -> None:
        """Hash the next bytes of the tar."""
        view = memoryview(data)
        while view:
            if self._left:
                used = self._update_content(view[: self._left])
            elif self._padding:
                used = min(self._padding, len(view))
                self._sha256.update(view[:used])
                self._padding -= used
            else:
                used = self._update_header(bytes(view[: tarfile.BLOCKSIZE - len(self._header)]))
            view = view[used:]

    def hexdigest(self) -> str:
        result = self._sha256.copy()
        # A truncated tar ends within a member's content or header.
        result.update(self._content.digest() if self._left else self._header)
        return f"{MEMBERS}{result.hexdigest()}"

    def copy(self) -> MembersDigest:
        other = copy.copy(self)
        other._sha256, other._content = self._sha256.copy(), self._content.copy()
        return other

    def _update_header(self, data: bytes) -> int:
        self._header += data
        if len(self._header) == tarfile.BLOCKSIZE:
            self._sha256.update(self._header)
            # A block without a size, such as the two that end a tar, is followed by another header.
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
    """Return an empty digest of the same kind (plain or members) as `known`."""
    return MembersDigest() if known.startswith(MEMBERS) else hashlib.sha256()


def file_digest(file: IO[bytes], known: str = "") -> str:
    """Return the digest of the rest of a file, of the same kind (plain or members) as `known`."""
    digest = digest_like(known)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
