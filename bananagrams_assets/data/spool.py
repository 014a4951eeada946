"""Finished pictures of a shard that is not finished yet, on this machine's disk.

A run that is killed leaves them here, and the next one takes them up. Each is a file of its own,
renamed into place once it is written; a machine that lost power may have kept a name without its
content, which a checksum tells.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..profiles import home_folder
from .product import Say
from .store import TEMPORARY, StoreError

_WAIT_S = 0.2


class Spool:
    """The finished pictures of one shard, by where they came from; `kind` tells settings apart."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._left = {path.name for path in folder.iterdir()}

    def holds(self, origin: str) -> bool:
        """Whether an earlier run left something under this origin; `find` tells whether it is whole."""
        return self._path(origin).name in self._left

    def find(self, origin: str) -> dict[str, Any] | None:
        """What an earlier run noted of this picture, if it left it whole."""
        path = self._path(origin)
        try:
            about, data = self._read(path)
        except (OSError, ValueError):
            # Gone or cut: then it is fetched again.
            return None
        return about if hashlib.sha256(data).hexdigest() == about.pop("stored_sha256") else None

    def put(self, origin: str, about: Mapping[str, Any], data: bytes | memoryview, sha256: str) -> None:
        """Keep a picture of this digest and what is known of it. Raises StoreError, as for a full disk."""
        path = self._path(origin)
        temporary = self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        header = json.dumps({**about, "stored_sha256": sha256}).encode()
        try:
            with temporary.open("wb", buffering=0) as file:
                _write_all(file.fileno(), [header + b"\n", data])
            temporary.replace(path)
        except OSError as error:
            raise StoreError(f"{path}: writing failed: {error.strerror or error}") from error

    def read(self, origin: str, buffer: bytearray) -> bytes | memoryview:
        """The bytes of a picture that this run has put or found, in `buffer` where it is large enough.

        Memory that is used again costs a third of new memory. Raises StoreError.
        """
        path = self._path(origin)
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size > len(buffer) or (count := file.readinto(buffer)) < size:
                    file.seek(0)
                    return self._read(path)[1]
            return memoryview(buffer)[buffer.index(b"\n", 0, count) + 1 : count]
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: a finished picture cannot be read again: {error}") from error

    def _path(self, origin: str) -> Path:
        digest = hashlib.blake2b(f"{self._kind}\n{origin}".encode(), digest_size=16)
        return self._folder / digest.hexdigest()

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Any], bytes]:
        with path.open("rb") as file:
            return json.loads(file.readline()), file.read()


def _write_all(file: int, blocks: Sequence[bytes | memoryview]) -> None:
    views = [memoryview(block) for block in blocks]
    while views:
        written = os.writev(file, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def spool_folder(store_url: str, shard: str) -> Path:
    """Where the pictures of a shard of this store wait."""
    digest = hashlib.blake2b(store_url.encode(), digest_size=4).hexdigest()
    return home_folder() / "spool" / f"{shard}-{digest}"


@contextmanager
def open_spool(store_url: str, shard: str, kind: str, say: Say) -> Iterator[Spool]:
    """The shard's spool, for one run at a time; it is removed on a clean exit and kept on any other.

    Raises StoreError where it cannot be written.
    """
    folder = spool_folder(store_url, shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder.with_suffix(".lock"), shard, say)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        folder.mkdir(exist_ok=True)
        for path in folder.glob(f"{TEMPORARY}*"):
            path.unlink()
        yield Spool(folder, kind)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
    finally:
        os.close(lock)


def _lock(path: Path, shard: str, say: Say) -> int:
    """A locked file of this name. The system unlocks it when its process ends, however it ends."""
    told = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it may have removed the name since: then this is the lock of nothing.
            if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            if not told:
                say(f"{shard}: another run is fetching this shard; waiting for it to end")
                told = True
        except FileNotFoundError:
            pass
        os.close(file)
        time.sleep(_WAIT_S if told else 0)
