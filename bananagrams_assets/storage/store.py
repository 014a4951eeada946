"""The store: named objects in a folder or an S3 bucket, each visible only once it is complete.

Names are relative, with `/` between folders. An object being written is invisible until its writer
leaves the `with` block without an exception.

Two writers of one name do happen: a process that outlived its run works beside that run's retry. So a
commit is **create-or-same**. A writer may put its object in the place of what it has seen there: of
what was there when it began (`create`), or when its whole run began (`for_run`), be it nothing. Where
something else stands there by now, the same bytes are fine and are left as they are, and other bytes
are a Conflict that names both. So a rebuild replaces what is stale, which it has seen, while a writer
that was overtaken cannot undo what came after it. A name that was deleted meanwhile is written. What has
these bytes already is never touched.

- A folder: comparing and renaming happen under a lock of the folder (flock; a file system that has no
  such lock leaves a gap of microseconds between the two).
- S3: a conditional request, If-Match on the ETag seen or If-None-Match. A server that does not know
  these is asked just before, which leaves a gap of one request.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import hashlib
import io
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar, cast

from ..errors import BananagramsError
from .digests import digest_like

TEMPORARY = ".tmp-"
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"
ABANDONED_S = 24 * 3600.0
"""When what another machine has left unfinished counts as left by the dead; of this machine it is known."""
_BLOCK = 2**20


class StoreError(BananagramsError, RuntimeError):
    """The store cannot do what was asked; the message names the place and the reason in one line."""


class MissingObject(StoreError, LookupError):
    """There is no such object."""


class DamagedObject(StoreError):
    """An object's bytes are not those that were written."""


class Conflict(StoreError):
    """Another writer has put other bytes under the same name; the message tells of both."""


@dataclass(frozen=True)
class FileInfo:
    """An object in the store: its length in bytes, and its SHA-256 in hex or its digest of `members` (see
    `digests`)."""

    bytes: int
    sha256: str


class Store(Protocol):
    """Named objects. Every method raises StoreError for a bad name or a store that cannot be reached."""

    url: str

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file for writing: `name` appears on a clean exit; on an exception nothing does.

        Raises Conflict on exit where another writer was quicker and wrote other bytes.
        """

    def write(self, name: str, data: bytes) -> None:
        """Create `name` with this content. Raises Conflict."""

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        """Create `name` with the content of a file of this machine, which nobody may change any more.

        A folder on the same file system takes the file itself, under a second name. Raises Conflict.
        """

    def read(self, name: str) -> bytes:
        """The whole object. Raises MissingObject, DamagedObject."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The object as a stream for sequential reading in bounded memory. Raises MissingObject.

        Where its digest is known, the read that comes to its end raises DamagedObject if it is another.
        """

    def exists(self, name: str) -> bool:
        """Whether a complete object of this name is there."""

    def size(self, name: str) -> int:
        """Length in bytes. Raises MissingObject."""

    def list(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, sorted."""

    def delete(self, name: str) -> None:
        """Remove the object; a missing one is no error."""

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """A file on this machine with the object's content. Raises MissingObject, DamagedObject."""

    def describe(self, name: str) -> str:
        """The full path or URL, for people."""

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> Store:
        """This store for one run that writes under `prefixes` and knows the digests of what it reads.

        What it may replace under `prefixes` is what is there now. What dead runs left there unfinished is
        removed; what live ones write is not touched.
        """

    def who_can_read(self) -> tuple[bool, Sequence[str]]:
        """Whether anybody at all can read what is written here, and what was found out about that."""


def check_name(name: str) -> str:
    """`name` itself if it stays inside a store; raises StoreError otherwise."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise StoreError(f"{name!r} is not a name in a store: no absolute, empty, `.` or `..` parts")
    if "\\" in name or not name.isprintable():
        raise StoreError(f"{name!r} is not a name in a store: no backslashes or control characters")
    return name


SomeStore = TypeVar("SomeStore", bound="RunView")


class RunView:
    """What one run has seen of a store when it began, and which digests it relies on; nothing by default."""

    _seen: dict[str, str] | None = None
    _prefixes: tuple[str, ...] = ()
    _digests: Mapping[str, str] = {}

    def seen_by(
        self: SomeStore, prefixes: Sequence[str], seen: dict[str, str], digests: Mapping[str, str]
    ) -> SomeStore:
        view = copy.copy(self)
        view._seen, view._prefixes, view._digests = seen, tuple(prefixes), dict(digests)
        return view

    def is_tracked(self, name: str) -> bool:
        return self._seen is not None and name.startswith(self._prefixes)

    def note(self, name: str, version: str | None) -> None:
        """What this run itself has written it may replace."""
        if self._seen is not None and self.is_tracked(name):
            if version is None:
                self._seen.pop(name, None)
            else:
                self._seen[name] = version


def checked(file: IO[bytes], digest: str, place: str) -> BinaryIO:
    """`file` for sequential reading; at its end DamagedObject is raised if its digest is another."""
    return cast(BinaryIO, io.BufferedReader(_Checked(file, digest, place), buffer_size=_BLOCK))


class _Checked(io.RawIOBase):
    def __init__(self, file: IO[bytes], digest: str, place: str) -> None:
        super().__init__()
        self._file, self._expected, self._place = file, digest, place
        self._digest = digest_like(digest)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        if data:
            buffer[: len(data)] = data
            self._digest.update(data)
        elif len(buffer) and (found := self._digest.hexdigest()) != self._expected:
            raise DamagedObject(
                f"{self._place}: its bytes are not those that were written: their SHA-256 is {found}, it was "
                f"{self._expected}; `bananagrams verify` says what is broken; delete it and build again"
            )
        return len(data)


def this_writer() -> str:
    """This process, for people who look for it."""
    return f"{HOST} process {os.getpid()}"


def conflict(place: str, theirs: str, ours: str) -> Conflict:
    return Conflict(
        f"{place}: two runs wrote different bytes. There: {theirs}. Not stored: {ours}. One of them "
        "outlived its run, or works from other inputs: end it, and build this partition again"
    )


def told(sha256: str, size: int, writer: str, seconds: float | None = None) -> str:
    """One of two writers' objects, for the message of a Conflict."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    return f"{size:,} bytes of SHA-256 {sha256}, by {writer} at {when}"


def sha256_of(file: IO[bytes]) -> str:
    """SHA-256 in hex of all that is left to read."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def lock_if_free(file: int) -> bool:
    """Lock an open file for this process's life; False where another process holds it.

    True as well where the file system knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
