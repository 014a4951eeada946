"""The store in a local folder."""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from .store import (
    ABANDONED_S,
    HOST,
    MACHINE_FAULTS,
    TEMPORARY,
    FileInfo,
    MissingObject,
    RunView,
    StoreError,
    check_name,
    checked,
    conflict,
    lock_if_free,
    sha256_of,
    this_writer,
    told,
)

_BLOCK = 2**20
_WHO = "user.bananagrams.writer"
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


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


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written: {error.strerror or error}")


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
