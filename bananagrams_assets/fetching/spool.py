"""On-disk state of an unfinished shard: its tar so far, and images downloaded ahead of it.

An interrupted run leaves this state behind, and the next run resumes from it. The tar grows in key order. A
journal records each sample, after its bytes are written, with the digest of the tar up to the sample's end.
An image that is ready long before its turn is a separate file, renamed into place after writing. Checksums
detect what a power failure damaged in either.
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
from ..storage.digests import Data, MembersDigest
from ..storage.sample_tar import end_of_tar, tar_member
from ..storage.store import TEMPORARY, FileInfo, StoreError, store_errors
from ..storage.tables import with_current_names

_LOCK_POLL_S = 0.2
_TAR, _JOURNAL = "pairs.tar", "journal"
_WRITE_BACK_BYTES = 2**25
"""Write-back of the tar is requested in steps of this size, so that disk and network work in parallel."""


class Spool:
    """Downloaded images of one shard, by URL (http(s) or `local:<path>`). Another `kind` (a digest of the
    settings) finds none of them."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._names = {path.name for path in folder.iterdir()}

    def holds(self, url: str) -> bool:
        """Return whether there is a file for this image. `find` checks that it is intact."""
        return bool(self._names) and self._path(url).name in self._names

    def find(self, url: str) -> dict[str, Any] | None:
        """Return the metadata of an image from an earlier run, or None if it is missing or damaged."""
        try:
            metadata, data = self._read(self._path(url))
        except (OSError, ValueError):
            return None
        if hashlib.sha256(data).hexdigest() != metadata["stored_sha256"]:
            return None
        return {**metadata, "fetched": with_current_names(metadata["fetched"])}

    def put(self, url: str, metadata: Mapping[str, Any], data: Data, sha256: str) -> None:
        """Store an image, its metadata and the SHA-256 of `data`. Raises StoreError, e.g. for a full disk."""
        path = self._path(url)
        temporary = self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        header = json.dumps({**metadata, "stored_sha256": sha256}).encode()
        with store_errors(f"{path}: writing failed"):
            with temporary.open("wb", buffering=0) as file:
                _write_all(file.fileno(), [header + b"\n", data])
            temporary.replace(path)
        self._names.add(path.name)

    def read(self, url: str) -> bytes:
        """Return the bytes of an image that this run has put or found. Raises StoreError."""
        path = self._path(url)
        try:
            return self._read(path)[1]
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot read this downloaded image again: {error}") from error

    def remove(self, url: str) -> None:
        """Delete an image if it is here."""
        if self.holds(url):
            path = self._path(url)
            self._names.discard(path.name)
            path.unlink(missing_ok=True)

    def _path(self, url: str) -> Path:
        return self._folder / image_name(self._kind, url)

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Any], bytes]:
        with path.open("rb") as file:
            return json.loads(file.readline()), file.read()


@dataclass(frozen=True)
class Member:
    """An image to append to the tar.

    `part` is the file name after the key, `sha256` the digest of `data`. `metadata` goes to the spool if a
    later run cuts the tar before this image; None for images that need no download.
    """

    part: str
    data: Data
    sha256: str
    url: str = ""
    metadata: Mapping[str, Any] | None = None


class ResumableTar:
    """The unfinished tar of a shard, and its journal. Not thread-safe. Needs the shard's open spool.

    `folder` is the `spool_folder`. `kind` and `table_metadata` describe the settings; a run with another
    `kind` discards the tar. Every method raises StoreError for a failed write, e.g. because of a full disk.
    """

    def __init__(self, folder: Path, kind: str, table_metadata: Mapping[str, str]) -> None:
        self._folder, self._head = folder, {"kind": kind, "notes": dict(table_metadata)}
        self._digest, self._bytes, self._written_back = MembersDigest(), 0, 0
        self.path = folder / _TAR
        with store_errors(f"{self.path}: writing failed"):
            _unshare(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)
            self._journal = os.open(folder / _JOURNAL, flags | os.O_APPEND, 0o666)

    def resume(
        self, is_current: Callable[[int, Mapping[str, Any]], bool], spool: Spool
    ) -> list[dict[str, Any]]:
        """Continue after the samples of an earlier run; return their journal entries.

        `is_current(n, row)` decides whether `row` is still the result of the shard's record `n`. At the
        first entry where it is not, or if the metadata differ, the tar is cut and the images of the remaining
        intact entries move to the spool.
        """
        head, entries = _read_journal(self._folder)
        kept: list[dict[str, Any]] = []
        digest, position = MembersDigest(), 0
        keep, journal_end = head == self._head, 0
        if head.get("kind") != self._head["kind"]:
            entries = []
        for entry in entries:
            data = os.pread(self._file, entry["end"] - position, position)
            digest.update(data)
            if digest.hexdigest() != entry.get("digest"):
                break
            keep = keep and is_current(len(kept), entry["row"])
            if keep:
                kept.append(entry)
                self._digest, self._bytes, journal_end = digest.copy(), entry["end"], entry.pop("journal_end")
            else:
                _move_to_spool(entry, memoryview(data), position, spool)
            position = entry["end"]
        with store_errors(f"{self.path}: writing failed"):
            os.ftruncate(self._journal, journal_end)
            os.ftruncate(self._file, self._bytes)
            os.lseek(self._file, self._bytes, os.SEEK_SET)
            self._written_back = self._bytes
            if not kept:
                self._append_to_journal(self._head)
        return kept

    def append(self, row: Mapping[str, Any], members: Sequence[Member]) -> None:
        """Append the images of a record, none if it failed."""
        blocks: list[Data] = []
        images, end = [], self._bytes
        for member in members:
            header, data, padding = tar_member(row["key"], member.part, member.data)
            if member.metadata is not None:
                extent = {"start": end + len(header), "bytes": len(data)}
                images.append({"origin": member.url, **extent, "about": member.metadata})
            blocks += (header, data, padding)
            end += len(header) + len(data) + len(padding)
            self._digest.add(header, member.sha256, padding)
        entry = {"row": row, "pictures": images, "end": end, "digest": self._digest.hexdigest()}
        with store_errors(f"{self.path}: writing failed"):
            self._write(blocks)
            self._append_to_journal(entry)

    def finish(self) -> FileInfo:
        """Write the end of the tar."""
        end = end_of_tar(self._bytes)
        self._digest.update(end)
        with store_errors(f"{self.path}: writing failed"):
            self._write([end])
        return FileInfo(self._bytes, self._digest.hexdigest())

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal)

    def _write(self, blocks: Sequence[Data]) -> None:
        _write_all(self._file, blocks)
        self._bytes += sum(map(len, blocks))
        if self._bytes - self._written_back >= _WRITE_BACK_BYTES and hasattr(os, "posix_fadvise"):
            length = self._bytes - self._written_back
            os.posix_fadvise(self._file, self._written_back, length, os.POSIX_FADV_DONTNEED)
            self._written_back = self._bytes

    def _append_to_journal(self, entry: Mapping[str, Any]) -> None:
        _write_all(self._journal, [json.dumps(entry).encode() + b"\n"])


def images_in(folder: Path) -> set[str]:
    """Return the `image_name` of every image that an unfinished run has stored in this spool folder."""
    if not folder.is_dir():
        return set()
    names = {path.name for path in folder.iterdir() if not path.name.startswith(TEMPORARY)}
    head, entries = _read_journal(folder)
    in_tar = {image_name(head["kind"], image["origin"]) for entry in entries for image in entry["pictures"]}
    return (names - {_TAR, _JOURNAL}) | in_tar


def _read_journal(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the journal's head and its complete entries; `journal_end` of each is the end of its line."""
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
        entries.append({**entry, "row": with_current_names(entry["row"]), "journal_end": end})
    return head, entries


def _move_to_spool(entry: Mapping[str, Any], data: memoryview, start: int, spool: Spool) -> None:
    """Put the images of a journal entry into the spool; `data` are the entry's bytes from `start` on."""
    for image in entry["pictures"]:
        offset = image["start"] - start
        stored = data[offset : offset + image["bytes"]]
        spool.put(image["origin"], image["about"], stored, hashlib.sha256(stored).hexdigest())


def _unshare(path: Path) -> None:
    """Replace a hard link by a copy.

    A run killed after `Store.adopt` leaves a link to the store's file, which must not change.
    """
    if path.exists() and path.stat().st_nlink > 1:
        temporary = path.parent / f"{TEMPORARY}{path.name}"
        shutil.copyfile(path, temporary)
        temporary.replace(path)


def image_name(kind: str, url: str) -> str:
    """Return the file name of an image in a spool, from its URL and a digest of the fetch settings."""
    return hashlib.blake2b(f"{kind}\n{url}".encode(), digest_size=16).hexdigest()


def _write_all(file: int, blocks: Sequence[Data]) -> None:
    views = [memoryview(block) for block in blocks]
    while views:
        written = os.writev(file, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def spool_folder(store_url: str, shard: str) -> Path:
    """Return the spool folder of a shard of this store."""
    digest = hashlib.blake2b(store_url.encode(), digest_size=4).hexdigest()
    return home_folder() / "spool" / f"{shard}-{digest}"


@contextmanager
def open_spool(store_url: str, shard: str, kind: str, log: Log) -> Iterator[Spool]:
    """Open the shard's spool exclusively. It is deleted on a clean exit and kept after an exception.

    Waits for another run that has it open. Raises StoreError if it cannot be written.
    """
    folder = spool_folder(store_url, shard)
    with store_errors(f"{folder}: cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder.with_suffix(".lock"), shard, log)
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
    """Return the descriptor of a locked file. The kernel releases the lock when the process ends."""
    logged = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file meanwhile; such a lock excludes nobody.
            if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            if not logged:
                log(f"{shard}: waiting for another run that is fetching this shard")
                logged = True
        except FileNotFoundError:
            pass
        os.close(file)
        time.sleep(_LOCK_POLL_S if logged else 0)
