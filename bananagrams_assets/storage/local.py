"""The store in a local folder.

A writer's temporary file, `.tmp-<host>-<random>`, is locked while its process lives. The operating system
releases the lock however the process ends, so an unlocked temporary file of this host is abandoned.
"""

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

from .digests import file_digest
from .public_access import PublicAccess
from .store import (
    ABANDONED_S,
    HOST,
    MACHINE_FAULTS,
    TEMPORARY,
    FileInfo,
    MissingObject,
    RunState,
    StoreError,
    check_name,
    conflict,
    describe_version,
    lock_if_free,
    store_errors,
    this_process,
    verifying_reader,
)

_BLOCK = 2**20
_WRITER_XATTR = "user.bananagrams.writer"
_LINK_UNSUPPORTED = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class LocalStore(RunState):
    """The objects are the files under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._committing(self._path(name), _create_temporary)

    @contextmanager
    def _committing(
        self, path: Path, open_temporary: Callable[[Path], tuple[IO[bytes], Path]]
    ) -> Iterator[BinaryIO]:
        """Open a temporary file in the folder of `path` and commit it to `path` on a clean exit."""
        name = path.relative_to(self.folder).as_posix()
        with store_errors(f"{path}: cannot be written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            opened, temporary = open_temporary(path.parent)
        expected = self.expected_version(name, lambda: _version(path))
        try:
            with opened as file:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
                self.record_version(name, _commit(temporary, path, expected))
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
                raise StoreError(f"{path}: writing failed: {error.strerror or error}") from error
            raise

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        target = self._path(name)
        with store_errors(f"{target}: cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            linked = _hard_link(path, target.parent)
        if linked is None:
            with path.open("rb") as source, self.create(name) as file:
                shutil.copyfileobj(source, file, _BLOCK)
        else:
            with self._committing(target, lambda folder: linked):
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
        with store_errors(f"{path}: cannot be read"):
            opened = path.open("rb")
        with opened as file:
            if digest := self._digests.get(name):
                file = cast("Any", verifying_reader(file, digest, str(path)))
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        return self._existing(name).stat().st_size

    def list(self, prefix: str) -> list[str]:
        return sorted(name for name, _ in self._files(prefix))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with store_errors(f"{path}: cannot be deleted"):
            path.unlink(missing_ok=True)
        self.record_version(name, None)

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
        versions = {}
        for prefix in prefixes:
            _delete_abandoned(self._folder_of(prefix), recursive=prefix.endswith("/"))
            for name, path in self._files(prefix):
                if version := _version(path):
                    versions[name] = version
        return self.with_run_state(prefixes, versions, digests)

    def public_access(self) -> PublicAccess:
        return PublicAccess(False, ["a local folder"])

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


def _hard_link(path: Path, folder: Path) -> tuple[IO[bytes], Path] | None:
    """Link `path` to a temporary name in `folder` and lock it, as `_create_temporary` does.

    Return None if the folder cannot hold a link to this file.
    """
    file = path.open("r+b")
    try:
        lock_if_free(file.fileno())
        temporary = _temporary_path(folder)
        os.link(path, temporary)
    except OSError as error:
        file.close()
        if error.errno not in _LINK_UNSUPPORTED:
            raise
        return None
    _store_writer(temporary)
    return file, temporary


def _create_temporary(folder: Path) -> tuple[IO[bytes], Path]:
    """Create and lock a temporary file in `folder`; return the open file and its path."""
    while True:
        path = _temporary_path(folder)
        file = path.open("xb")
        # Another process may have deleted the file as abandoned before it was locked.
        if lock_if_free(file.fileno()) and path.exists():
            _store_writer(path)
            return file, path
        file.close()


def _temporary_path(folder: Path) -> Path:
    return folder / f"{TEMPORARY}{HOST}-{secrets.token_hex(8)}"


def _store_writer(path: Path) -> None:
    """Store this process's name in an extended attribute of the file, if the system supports it."""
    with suppress(OSError, AttributeError):
        os.setxattr(path, _WRITER_XATTR, this_process().encode())


def _delete_abandoned(folder: Path, recursive: bool) -> None:
    """Delete temporary files that no process has locked.

    Temporary files of other machines are deleted only after a day, because some network file systems do
    not share locks between machines.
    """
    for path in folder.rglob(f"{TEMPORARY}*") if recursive else folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError), path.open("r+b") as file:
            ours = path.name.startswith(f"{TEMPORARY}{HOST}-")
            if (ours or time.time() - path.stat().st_mtime > ABANDONED_S) and lock_if_free(file.fileno()):
                path.unlink()


def _version(path: Path) -> str | None:
    """Return an identifier that changes with the file's content, or None if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _commit(temporary: Path, path: Path, expected: str | None) -> str | None:
    """Rename `temporary` to `path` unless identical bytes exist there; return the resulting version.

    Raises Conflict if `path` has different bytes and is not at the version `expected`.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        if (current := _version(path)) is not None:
            if filecmp.cmp(temporary, path, shallow=False):
                temporary.unlink()
                return current
            if current != expected:
                raise conflict(str(path), _describe_file(path), _describe_file(temporary))
        temporary.replace(path)
        os.fsync(folder)
        return _version(path)
    finally:
        os.close(folder)


def _describe_file(path: Path) -> str:
    with path.open("rb") as file:
        sha256 = file_digest(file)
    try:
        writer = os.getxattr(path, _WRITER_XATTR).decode()
    except (OSError, AttributeError):
        writer = "an unknown process"
    status = path.stat()
    return describe_version(sha256, status.st_size, writer, status.st_mtime)
