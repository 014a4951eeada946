"""Temporary files, one per shard, to group records by shard on disk instead of in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .store import StoreError

_BUFFER_BYTES = 2**22


class ShardFiles:
    """One append-only file per shard in `folder`; at most 4 MiB of appended data wait in memory.

    The data of one shard lies in one file, so that reading it in another order stays fast even if all
    shards together exceed the machine's memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._buffered: dict[str, list[bytes]] = {}
        self._buffered_bytes = 0

    def append(self, shard: str, data: bytes) -> int:
        """Append to a shard's file and return the offset of `data` in it.

        Raises StoreError if the disk cannot take the data.
        """
        offset = self._sizes.get(shard, 0)
        self._sizes[shard] = offset + len(data)
        self._buffered.setdefault(shard, []).append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > _BUFFER_BYTES:
            self._flush()
        return offset

    @contextmanager
    def reader(self, shard: str) -> Iterator[Callable[[int, int], bytes]]:
        """Yield a function (offset, size) → bytes that reads from a shard's file. Raises StoreError."""
        self._flush()
        with (self._folder / shard).open("ab+", buffering=0) as file:
            # One sequential pass fills the page cache, so that later reads in another order are fast.
            file.seek(0)
            while file.read(2**20):
                pass
            yield lambda offset, size: os.pread(file.fileno(), size, offset)

    def _flush(self) -> None:
        for shard, chunks in self._buffered.items():
            path = self._folder / shard
            try:
                with path.open("ab") as file:
                    file.writelines(chunks)
            except OSError as error:
                raise StoreError(
                    f"{path}: {error.strerror or error}; records are sorted in this folder; set TMPDIR to "
                    "use another one"
                ) from error
        self._buffered.clear()
        self._buffered_bytes = 0
