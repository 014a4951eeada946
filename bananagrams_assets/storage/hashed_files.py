"""Write objects to a store and compute their length and SHA-256 on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .digests import Data
from .store import FileInfo, Store


class HashingWriter:
    """A binary file for sequential writing that counts and hashes the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: Data) -> int:
        self._file.write(data)
        self._sha256.update(data)
        size = memoryview(data).nbytes
        self._bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._bytes

    def close(self) -> None:
        """Do nothing: the store closes the file after a clean exit of its `with` block."""

    @property
    def closed(self) -> bool:
        return self._file.closed

    @property
    def info(self) -> FileInfo:
        return FileInfo(self._bytes, self._sha256.hexdigest())


@contextmanager
def hashing_writer(store: Store, name: str) -> Iterator[HashingWriter]:
    """Create `name` in the store; the writer's `.info` is its FileInfo after the last write."""
    with store.create(name) as file:
        yield HashingWriter(file)


def write_file(store: Store, name: str, data: bytes) -> FileInfo:
    """Write an object that fits in memory and return its FileInfo."""
    store.write(name, data)
    return FileInfo(len(data), hashlib.sha256(data).hexdigest())
