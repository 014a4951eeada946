"""The store interface: named objects in a folder or an S3 bucket, each visible only when complete.

Names are relative, with `/` between folders. An object that is being written becomes visible when its
writer leaves the `with` block without an exception.

Two processes can write the same name: for example a process that outlived its run, and the retry of that
run. A commit is therefore **create-or-same**:

- A writer may replace the version of the object (or its absence) that existed when the write began
  (`create`) or when the run began (`for_run`). A rebuild thus replaces a stale object.
- If another writer has committed since then, identical bytes are accepted and left as they are; different
  bytes raise Conflict, whose message describes both objects. A late writer thus cannot undo newer work.
- If the object has been deleted since then, it is written.
- An object that already has these bytes is never rewritten.

A folder compares and renames under a lock of the folder (flock; on a file system without locks a gap of
microseconds between the two remains). S3 uses conditional requests: If-Match with the expected ETag, or
If-None-Match. For a server without them the store checks just before it writes, which leaves a gap of one
request.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar, cast

from ..errors import BananagramsError
from .digests import digest_like
from .public_access import PublicAccess

TEMPORARY = ".tmp-"
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"
ABANDONED_S = 24 * 3600.0
"""Age at which another machine's unfinished objects count as abandoned. On this machine locks decide."""
_BLOCK = 2**20


class StoreError(BananagramsError, RuntimeError):
    """A store operation failed; the message gives the object and the reason in one line."""


class MissingObject(StoreError, LookupError):
    """The object does not exist."""


class DamagedObject(StoreError):
    """An object's bytes differ from those that were written."""


class Conflict(StoreError):
    """Another writer has committed different bytes under the same name; the message describes both."""


@dataclass(frozen=True)
class FileInfo:
    """An object's length in bytes, and its SHA-256 in hex or its members digest (see `digests`)."""

    bytes: int
    sha256: str


class Store(Protocol):
    """Named objects. Every method raises StoreError for an invalid name or an unreachable store."""

    url: str

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for writing that becomes the object on a clean exit, and nothing on an exception.

        Raises Conflict on exit if another writer has committed different bytes.
        """

    def write(self, name: str, data: bytes) -> None:
        """Create `name` with this content. Raises Conflict."""

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        """Create `name` with the content of a local file, which must not change afterwards.

        A folder on the same file system makes a hard link to the file. Raises Conflict.
        """

    def read(self, name: str) -> bytes:
        """Return the object's content. Raises MissingObject, DamagedObject."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open the object for sequential reading in bounded memory. Raises MissingObject.

        If its digest is known, the read that reaches the end raises DamagedObject for a different digest.
        """

    def exists(self, name: str) -> bool:
        """Return whether a complete object of this name exists."""

    def size(self, name: str) -> int:
        """Return the length in bytes. Raises MissingObject."""

    def list(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""

    def delete(self, name: str) -> None:
        """Delete the object if it exists."""

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """Provide a local file with the object's content. Raises MissingObject, DamagedObject."""

    def describe(self, name: str) -> str:
        """Return the full path or URL, for messages."""

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> Store:
        """Return this store for one run, which writes under `prefixes` and verifies `digests` (by name).

        The run may replace the object versions that exist now under `prefixes`. Unfinished objects of dead
        processes under `prefixes` are deleted; those of live processes are kept.
        """

    def public_access(self) -> PublicAccess:
        """Check whether objects in this store can be read without credentials."""


def check_name(name: str) -> str:
    """Return `name` if it cannot leave the store's root; otherwise raise StoreError."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise StoreError(f"{name!r} is not a valid object name: it has an absolute, empty, `.` or `..` part")
    if "\\" in name or not name.isprintable():
        raise StoreError(f"{name!r} is not a valid object name: it has a backslash or a control character")
    return name


_Store = TypeVar("_Store", bound="RunState")


class RunState:
    """The part of a store that is specific to a run; by default no run.

    `_versions` holds, for objects under `_prefixes`, the versions that the run may replace, by name.
    `_digests` holds the expected digests of objects that the run reads, by name.
    """

    _versions: dict[str, str] | None = None
    _prefixes: tuple[str, ...] = ()
    _digests: Mapping[str, str] = {}

    def with_run_state(
        self: _Store, prefixes: Sequence[str], versions: dict[str, str], digests: Mapping[str, str]
    ) -> _Store:
        """Return a copy of the store with this state."""
        store = copy.copy(self)
        store._versions, store._prefixes, store._digests = versions, tuple(prefixes), dict(digests)
        return store

    def expected_version(self, name: str, current: Callable[[], str | None]) -> str | None:
        """Return the version that a writer may replace, None for no object; outside a run the current one."""
        if self._versions is not None and name.startswith(self._prefixes):
            return self._versions.get(name)
        return current()

    def record_version(self, name: str, version: str | None) -> None:
        """Allow the run to replace the version that it has just written; None after a deletion."""
        if self._versions is not None and name.startswith(self._prefixes):
            if version is None:
                self._versions.pop(name, None)
            else:
                self._versions[name] = version


def verifying_reader(file: IO[bytes], digest: str, name: str) -> BinaryIO:
    """Return `file` for sequential reading; its end raises DamagedObject if its digest is not `digest`."""
    return cast(BinaryIO, io.BufferedReader(_VerifyingFile(file, digest, name), buffer_size=_BLOCK))


class _VerifyingFile(io.RawIOBase):
    def __init__(self, file: IO[bytes], digest: str, name: str) -> None:
        super().__init__()
        self._file, self._expected, self._name = file, digest, name
        self._digest = digest_like(digest)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        if data:
            buffer[: len(data)] = data
            self._digest.update(data)
        elif len(buffer) and (actual := self._digest.hexdigest()) != self._expected:
            raise DamagedObject(
                f"{self._name}: its bytes are not those that were written: SHA-256 is {actual}, expected "
                f"{self._expected}; run `bananagrams verify` to find the damage, then delete the object and "
                "build again"
            )
        return len(data)


@contextmanager
def store_errors(context: str) -> Iterator[None]:
    """Turn an OSError into a StoreError whose message begins with `context`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{context}: {error.strerror or error}") from error


def this_process() -> str:
    """Return host name and process id, for messages."""
    return f"{HOST} process {os.getpid()}"


def conflict(name: str, stored: str, rejected: str) -> Conflict:
    """Return the exception for two writers' objects, both described by `describe_version`."""
    return Conflict(
        f"{name}: two runs wrote different bytes. Stored: {stored}. Not stored: {rejected}. One of them "
        "outlived its run or has different inputs: end it and build this partition again"
    )


def describe_version(sha256: str, size: int, writer: str, seconds: float | None = None) -> str:
    """Describe one version of an object; `seconds` is its Unix time, by default now."""
    time_text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    return f"{size:,} bytes with SHA-256 {sha256}, written by {writer} at {time_text}"


def lock_if_free(file: int) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    Return True on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
