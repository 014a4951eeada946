"""What a stage leaves behind: the files it wrote, numbers for people, and a data version."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import Store

Say = Callable[[str], None]
"""Takes one line of progress for people."""


@dataclass(frozen=True)
class FileInfo:
    """An object in the store: its length in bytes, and its SHA-256 in hex or its digest of `members` (see
    `digests`)."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Product:
    """What a stage made.

    `files` maps store names to what was written, `stats` holds JSON-able numbers, `preview` is one small
    JPEG (at most 40 KB) and `content` the data version where the files' own digests will not do because
    they hold timings.
    """

    files: Mapping[str, FileInfo]
    stats: Mapping[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    content: str | None = None


class HashingWriter:
    """A binary file for sequential writing that counts and hashes what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._file.write(data)
        size = memoryview(data).nbytes
        self._sha256.update(data)
        self._bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._bytes

    def close(self) -> None:
        """Nothing: the store closes the file, once it knows that all went well."""

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def info(self) -> FileInfo:
        return FileInfo(self._bytes, self._sha256.hexdigest())


@contextmanager
def hashing_writer(store: Store, name: str) -> Iterator[HashingWriter]:
    """Create `name` in the store; `.info` of what is yielded is its FileInfo once all is written."""
    with store.create(name) as file:
        yield HashingWriter(file)


def write_file(store: Store, name: str, data: bytes) -> FileInfo:
    """Write one small object and return its FileInfo."""
    store.write(name, data)
    return FileInfo(len(data), hashlib.sha256(data).hexdigest())
