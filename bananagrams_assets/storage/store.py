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
import filecmp
import hashlib
import io
import os
import re
import secrets
import shutil
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, cast

from .digests import digest_like

if TYPE_CHECKING:
    from .files import FileInfo

TEMPORARY = ".tmp-"
MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname()) or "localhost"
ABANDONED_S = 24 * 3600.0
"""When what another machine has left unfinished counts as left by the dead; of this machine it is known."""
_WHO = "user.bananagrams.writer"
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_BLOCK = 2**20


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message names the place and the reason in one line."""


class MissingObject(StoreError, LookupError):
    """There is no such object."""


class DamagedObject(StoreError):
    """An object's bytes are not those that were written."""


class Conflict(StoreError):
    """Another writer has put other bytes under the same name; the message tells of both."""


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


def open_store(url: str, s3_client: Any | None = None) -> Store:
    """The store at a folder path, a `file://` URL or `s3://bucket/prefix`. Raises StoreError.

    Without `s3_client` the S3 endpoint and credentials come from the environment, as in the AWS tools.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url.strip():
            raise StoreError("the store's URL is empty: give a folder or s3://bucket/prefix")
        return LocalStore(Path(url).expanduser())
    if scheme == "file":
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{url}: a file URL has three slashes, as in file:///data/store")
        return LocalStore(Path(urllib.request.url2pathname(parts.path)))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StoreError(f"{url}: no bucket named; expected s3://bucket/prefix")
        from .s3 import S3Store

        return S3Store(bucket, prefix.strip("/"), s3_client)
    raise StoreError(f"{url}: unknown kind of store {scheme!r}; give a folder or s3://bucket/prefix")


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


class LocalStore(RunView):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._create(self._path(name))

    @contextmanager
    def _create(self, path: Path) -> Iterator[BinaryIO]:
        with self._placed(path, _open_temporary) as file:
            yield file

    @contextmanager
    def _placed(self, path: Path, opened: Callable[[Path], tuple[IO[bytes], Path]]) -> Iterator[BinaryIO]:
        """A file that `opened` makes in the folder of `path`, and that takes its place in the end."""
        name = path.relative_to(self.folder).as_posix()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole, temporary = opened(path.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error
        expected = (self._seen or {}).get(name) if self.is_tracked(name) else _version(path)
        try:
            with whole as file:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
                self.note(name, _commit(temporary, path, expected))
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
                raise StoreError(f"{path}: writing failed: {error.strerror or error}") from error
            raise

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        target = self._path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            linked = _linked(path, target.parent)
        except OSError as error:
            raise _cannot_write(target, error) from error
        if linked is None:
            with path.open("rb") as source, self._create(target) as file:
                shutil.copyfileobj(source, file, _BLOCK)
        else:
            with self._placed(target, lambda folder: linked):
                pass

    def write(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._existing(name)
        try:
            opened = path.open("rb")
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
        with opened as file:
            if digest := self._digests.get(name):
                file = cast("Any", checked(file, digest, str(path)))
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        return self._existing(name).stat().st_size

    def list(self, prefix: str) -> list[str]:
        return sorted(name for name, _ in self._files(prefix))

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.describe(name)}: cannot be removed: {error.strerror or error}"
            ) from error
        self.note(name, None)

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        if name in self._digests:
            with self.open(name) as file:
                while file.read(_BLOCK):
                    continue
        yield self._existing(name)

    def describe(self, name: str) -> str:
        return str(self._path(name))

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> LocalStore:
        seen = {}
        for prefix in prefixes:
            _sweep(self._folder_of(prefix), recursive=prefix.endswith("/"))
            for name, path in self._files(prefix):
                if version := _version(path):
                    seen[name] = version
        return self.seen_by(prefixes, seen, digests)

    def who_can_read(self) -> tuple[bool, Sequence[str]]:
        return False, ["a folder of this machine"]

    def _files(self, prefix: str) -> Iterator[tuple[str, Path]]:
        for path in self._folder_of(prefix).rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if name.startswith(prefix) and not path.name.startswith(TEMPORARY) and path.is_file():
                yield name, path

    def _folder_of(self, prefix: str) -> Path:
        folder = prefix.rpartition("/")[0]
        return self.folder / check_name(folder) if folder else self.folder

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name)

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise MissingObject(f"{path}: no such file")
        return path


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


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written: {error.strerror or error}")


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


def _linked(path: Path, folder: Path) -> tuple[IO[bytes], Path] | None:
    """The file under a second name, as by `_open_temporary`; None where the folder can have no such link."""
    file = path.open("r+b")
    try:
        lock_if_free(file.fileno())
        temporary = folder / f"{TEMPORARY}{HOST}-{secrets.token_hex(8)}"
        os.link(path, temporary)
    except OSError as error:
        file.close()
        if error.errno not in _NO_LINK:
            raise
        return None
    with suppress(OSError, AttributeError):
        os.setxattr(temporary, _WHO, this_writer().encode())
    return file, temporary


def _open_temporary(folder: Path) -> tuple[IO[bytes], Path]:
    """A new file that is locked while its writer lives: the system unlocks it however a process ends."""
    while True:
        path = folder / f"{TEMPORARY}{HOST}-{secrets.token_hex(8)}"
        file = path.open("xb")
        # Between opening and locking it may have been taken for a dead run's, and removed.
        if lock_if_free(file.fileno()) and path.exists():
            with suppress(OSError, AttributeError):
                os.setxattr(path, _WHO, this_writer().encode())
            return file, path
        file.close()


def _sweep(folder: Path, recursive: bool) -> None:
    """Remove temporary files whose writer is dead, as nobody holds their lock.

    Those of other machines only after a day: not every network file system carries locks to others.
    """
    for path in folder.rglob(f"{TEMPORARY}*") if recursive else folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError), path.open("r+b") as file:
            ours = path.name.startswith(f"{TEMPORARY}{HOST}-")
            if (ours or time.time() - path.stat().st_mtime > ABANDONED_S) and lock_if_free(file.fileno()):
                path.unlink()


def _version(path: Path) -> str | None:
    """What tells one content of a file from the next; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def _commit(temporary: Path, path: Path, expected: str | None) -> str | None:
    """Rename into place unless another writer was quicker; returns the version that then stands there.

    Raises Conflict where that one's bytes are others.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        if (now := _version(path)) is not None:
            if filecmp.cmp(temporary, path, shallow=False):
                temporary.unlink()
                return now
            if now != expected:
                raise conflict(str(path), _told_of(path), _told_of(temporary))
        temporary.replace(path)
        os.fsync(folder)
        return _version(path)
    finally:
        os.close(folder)


def _told_of(path: Path) -> str:
    with path.open("rb") as file:
        sha256 = sha256_of(file)
    try:
        writer = os.getxattr(path, _WHO).decode()
    except (OSError, AttributeError):
        writer = "a process that is not known"
    found = path.stat()
    return told(sha256, found.st_size, writer, found.st_mtime)
