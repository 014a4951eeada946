"""Rows sorted into shards on disk: appended in any order, read back by shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .store import StoreError

_WAITING = 2**22


class Buckets:
    """A file for each shard in `folder`; at most 4 MiB wait in memory to be written.

    All that is read of one shard lies in one file, so that reading it in another order stays quick where
    everything together is larger than the machine's memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends: dict[str, int] = {}
        self._waiting: dict[str, list[bytes]] = {}
        self._bytes = 0

    def add(self, shard: str, data: bytes) -> int:
        """Append to a shard and return where it lies there. Raises StoreError where the disk is full."""
        place = self._ends.get(shard, 0)
        self._ends[shard] = place + len(data)
        self._waiting.setdefault(shard, []).append(data)
        self._bytes += len(data)
        if self._bytes > _WAITING:
            self._flush()
        return place

    @contextmanager
    def reading(self, shard: str) -> Iterator[Callable[[int, int], bytes]]:
        """A function that reads so many bytes at a place of this shard."""
        self._flush()
        with (self._folder / shard).open("ab+", buffering=0) as file:
            # In order once, so that what is then read in another order comes from the system's cache.
            file.seek(0)
            while file.read(2**20):
                pass
            yield lambda place, size: os.pread(file.fileno(), size, place)

    def _flush(self) -> None:
        for shard, chunks in self._waiting.items():
            path = self._folder / shard
            try:
                with path.open("ab") as file:
                    file.writelines(chunks)
            except OSError as error:
                raise StoreError(
                    f"{path}: {error.strerror or error}; records are sorted there, TMPDIR names another place"
                ) from error
        self._waiting.clear()
        self._bytes = 0
