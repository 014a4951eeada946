"""A shard that is not finished yet, on this machine's disk: its tar so far, and pictures ahead of it.

A run that is killed leaves them here, and the next one takes them up. The tar grows in key order; a
journal notes each record once its bytes are there, with the digest of the tar up to its end. A picture
that is finished long before its turn is a file of its own, renamed into place once it is written. What
a machine that lost power has kept of either, the checksums tell.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..profiles import home_folder
from ..progress import Log
from ..storage.digests import MembersDigest
from ..storage.sample_tar import Data, end_of_tar, tar_member
from ..storage.store import TEMPORARY, FileInfo, StoreError

_WAIT_S = 0.2
_TAR, _JOURNAL = "pairs.tar", "journal"
_WRITE_BACK = 2**25
"""So many bytes of the tar at a time the system is asked to put on the disk, while the network goes on."""


class Spool:
    """The finished pictures of one shard, by where they came from; `kind` tells settings apart."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._left = {path.name for path in folder.iterdir()}

    def holds(self, origin: str) -> bool:
        """Whether an earlier run left something under this origin; `find` tells whether it is whole."""
        return bool(self._left) and self._path(origin).name in self._left

    def find(self, origin: str) -> dict[str, Any] | None:
        """What an earlier run noted of this picture, if it left it whole."""
        path = self._path(origin)
        try:
            about, data = self._read(path)
        except (OSError, ValueError):
            # Gone or cut: then it is fetched again.
            return None
        return about if hashlib.sha256(data).hexdigest() == about["stored_sha256"] else None

    def put(self, origin: str, about: Mapping[str, Any], data: Data, sha256: str) -> None:
        """Keep a picture of this digest and what is known of it. Raises StoreError, as for a full disk."""
        path = self._path(origin)
        temporary = self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        header = json.dumps({**about, "stored_sha256": sha256}).encode()
        try:
            with temporary.open("wb", buffering=0) as file:
                _write_all(file.fileno(), [header + b"\n", data])
            temporary.replace(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._left.add(path.name)

    def read(self, origin: str) -> bytes:
        """The bytes of a picture that this run has put or found. Raises StoreError."""
        path = self._path(origin)
        try:
            return self._read(path)[1]
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: a finished picture cannot be read again: {error}") from error

    def remove(self, origin: str) -> None:
        """Give up a picture that nothing needs any more, if it is here."""
        if self.holds(origin):
            path = self._path(origin)
            self._left.discard(path.name)
            path.unlink(missing_ok=True)

    def _path(self, origin: str) -> Path:
        return self._folder / image_name(self._kind, origin)

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Any], bytes]:
        with path.open("rb") as file:
            return json.loads(file.readline()), file.read()


@dataclass(frozen=True)
class Member:
    """A picture on its way into the tar: the rest of its file's name, its bytes, their SHA-256, its origin.

    `about` is kept for the spool, should the tar be cut before it; None for what is not fetched again.
    """

    part: str
    data: Data
    sha256: str
    origin: str = ""
    about: Mapping[str, Any] | None = None


class GrowingTar:
    """The shard's tar while it is made, and its journal; `kind` tells settings apart.

    Made by `growing_tar`. One thread at a time.
    """

    def __init__(self, folder: Path, kind: str, notes: Mapping[str, str]) -> None:
        self._folder, self._head = folder, {"kind": kind, "notes": dict(notes)}
        self._digest, self._bytes, self._written_back = MembersDigest(), 0, 0
        self.path = folder / _TAR
        try:
            _make_own(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)
            self._journal = os.open(folder / _JOURNAL, flags | os.O_APPEND, 0o666)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def take_up(
        self, is_next: Callable[[int, Mapping[str, Any]], bool], spool: Spool
    ) -> list[dict[str, Any]]:
        """Go on behind what an earlier run has left; returns the journal's entries up to there.

        `is_next(n, row)` tells whether the row is what the shard's record `n` would give today, with the
        same notes. From the first that is not, pictures go back into the spool; those of other settings are
        given up.
        """
        head, entries = _read_journal(self._folder)
        kept: list[dict[str, Any]] = []
        digest, position = MembersDigest(), 0
        goes_on, journal_end = head == self._head, 0
        if head.get("kind") != self._head["kind"]:
            entries = []
        for entry in entries:
            data = os.pread(self._file, entry["end"] - position, position)
            digest.update(data)
            if digest.hexdigest() != entry.get("digest"):
                break
            goes_on = goes_on and is_next(len(kept), entry["row"])
            if goes_on:
                kept.append(entry)
                self._digest, self._bytes, journal_end = digest.copy(), entry["end"], entry.pop("journal_end")
            else:
                view = memoryview(data)
                for image in entry["pictures"]:
                    start = image["start"] - position
                    stored = view[start : start + image["bytes"]]
                    spool.put(image["origin"], image["about"], stored, hashlib.sha256(stored).hexdigest())
            position = entry["end"]
        try:
            os.ftruncate(self._journal, journal_end)
            os.ftruncate(self._file, self._bytes)
            os.lseek(self._file, self._bytes, os.SEEK_SET)
            self._written_back = self._bytes
            if not kept:
                self._note(self._head)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return kept

    def append(self, row: Mapping[str, Any], members: Sequence[Member]) -> None:
        """Append a record's pictures, none where its row tells why. Raises StoreError, as for a full disk."""
        blocks: list[Data] = []
        images, end = [], self._bytes
        for member in members:
            header, data, padding = tar_member(row["key"], member.part, member.data)
            if member.about is not None:
                place = {"start": end + len(header), "bytes": len(data)}
                images.append({"origin": member.origin, **place, "about": member.about})
            blocks += (header, data, padding)
            end += len(header) + len(data) + len(padding)
            self._digest.add(header, member.sha256, padding)
        try:
            self._write(blocks)
            self._note({"row": row, "pictures": images, "end": end, "digest": self._digest.hexdigest()})
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def finish(self) -> FileInfo:
        """End the tar; it is whole then. Raises StoreError."""
        end = end_of_tar(self._bytes)
        self._digest.update(end)
        try:
            self._write([end])
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return FileInfo(self._bytes, self._digest.hexdigest())

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal)

    def _write(self, blocks: Sequence[Data]) -> None:
        _write_all(self._file, blocks)
        self._bytes += sum(map(len, blocks))
        if self._bytes - self._written_back >= _WRITE_BACK and hasattr(os, "posix_fadvise"):
            length = self._bytes - self._written_back
            os.posix_fadvise(self._file, self._written_back, length, os.POSIX_FADV_DONTNEED)
            self._written_back = self._bytes

    def _note(self, entry: Mapping[str, Any]) -> None:
        _write_all(self._journal, [json.dumps(entry).encode() + b"\n"])


@contextmanager
def growing_tar(store_url: str, shard: str, kind: str, notes: Mapping[str, str]) -> Iterator[GrowingTar]:
    """The tar of a shard whose spool is open. Raises StoreError."""
    tar = GrowingTar(spool_folder(store_url, shard), kind, notes)
    try:
        yield tar
    finally:
        tar.close()


def images_in(folder: Path) -> set[str]:
    """What an unfinished run has kept in this spool, by `picture_name`."""
    if not folder.is_dir():
        return set()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)}
    head, entries = _read_journal(folder)
    found = {image_name(head["kind"], image["origin"]) for entry in entries for image in entry["pictures"]}
    return (names - {_TAR, _JOURNAL}) | found


def _read_journal(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The journal's head and its entries that are whole; `journal_end` of each is where its line ends."""
    try:
        with (folder / _JOURNAL).open("rb") as file:
            lines = file.readlines()
        size = (folder / _TAR).stat().st_size
        head = json.loads(lines[0])
    except (OSError, ValueError, IndexError):
        return {}, []
    entries, end = [], len(lines[0])
    for line in lines[1:]:
        end += len(line)
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or entry["end"] > size:
            break
        entries.append({**entry, "journal_end": end})
    return head, entries


def _make_own(path: Path) -> None:
    """The store may have this file already, from a run that was killed just then; a copy may change."""
    if path.exists() and path.stat().st_nlink > 1:
        temporary = path.parent / f"{TEMPORARY}{path.name}"
        shutil.copyfile(path, temporary)
        temporary.replace(path)


def image_name(kind: str, origin: str) -> str:
    """What names a picture in a spool, by where it came from and the settings that it was fetched with."""
    return hashlib.blake2b(f"{kind}\n{origin}".encode(), digest_size=16).hexdigest()


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: writing failed: {error.strerror or error}")


def _write_all(file: int, blocks: Sequence[Data]) -> None:
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
def open_spool(store_url: str, shard: str, kind: str, log: Log) -> Iterator[Spool]:
    """The shard's spool, for one run at a time; it is removed on a clean exit and kept on any other.

    Raises StoreError where it cannot be written.
    """
    folder = spool_folder(store_url, shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder.with_suffix(".lock"), shard, log)
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


def _lock(path: Path, shard: str, log: Log) -> int:
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
                log(f"{shard}: another run is fetching this shard; waiting for it to end")
                told = True
        except FileNotFoundError:
            pass
        os.close(file)
        time.sleep(_WAIT_S if told else 0)
