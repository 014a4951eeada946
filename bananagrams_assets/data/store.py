"""The store: named objects in a folder or an S3 bucket, each visible only once it is complete.

Names are relative, with `/` between folders. An object being written is invisible until its writer
leaves the `with` block without an exception; two writers of one name leave one whole object.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Protocol, cast

if TYPE_CHECKING:
    from types import ModuleType

TEMPORARY = ".tmp-"
_MACHINE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message names the place and the reason in one line."""


class MissingObject(StoreError, LookupError):
    """There is no such object."""


class Store(Protocol):
    """Named objects. Every method raises StoreError for a bad name or a store that cannot be reached."""

    url: str

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file for writing: `name` appears on a clean exit; on an exception nothing does."""

    def write(self, name: str, data: bytes) -> None:
        """Create `name` with this content."""

    def read(self, name: str) -> bytes:
        """The whole object. Raises MissingObject."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The object as a stream for sequential reading in bounded memory. Raises MissingObject."""

    def exists(self, name: str) -> bool:
        """Whether a complete object of this name is there."""

    def size(self, name: str) -> int:
        """Length in bytes. Raises MissingObject."""

    def list(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, sorted."""

    def delete(self, name: str) -> None:
        """Remove the object; a missing one is no error."""

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """A file on this machine with the object's content. Raises MissingObject."""

    def describe(self, name: str) -> str:
        """The full path or URL, for people."""


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


class LocalStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._create(self._path(name))

    @contextmanager
    def _create(self, path: Path) -> Iterator[BinaryIO]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
            opened = temporary.open("xb")
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
        try:
            with opened as file:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
                raise StoreError(f"{path}: writing failed: {error.strerror or error}") from error
            raise

    def write(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with self._existing(name).open("rb") as file:
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        return self._existing(name).stat().st_size

    def list(self, prefix: str) -> list[str]:
        folder = prefix.rpartition("/")[0]
        if folder:
            check_name(folder)
        names = (
            path.relative_to(self.folder).as_posix()
            for path in (self.folder / folder).rglob("*")
            if path.is_file() and not path.name.startswith(TEMPORARY)
        )
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.describe(name)}: cannot be removed: {error.strerror or error}"
            ) from error

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        yield self._existing(name)

    def describe(self, name: str) -> str:
        return str(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / check_name(name)

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise MissingObject(f"{path}: no such file")
        return path


class S3Store:
    """A prefix of a bucket on S3 or a server that speaks its protocol.

    Objects are staged in a temporary file and uploaded whole: an interrupted multipart upload is never
    visible, while a writer that streams straight to S3 publishes a cut object when its body raises.
    """

    def __init__(self, bucket: str, prefix: str, client: Any | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = client if client is not None else _s3_client()

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        check_name(name)
        return self._create(name)

    @contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        from boto3.s3.transfer import TransferConfig

        transfer = TransferConfig(multipart_chunksize=16 * 2**20, max_concurrency=4)
        with tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.seek(0)
            with self._clear_errors(name):
                self._client.upload_fileobj(file, self.bucket, self.prefix + name, Config=transfer)

    def write(self, name: str, data: bytes) -> None:
        check_name(name)
        with self._clear_errors(name):
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        head = self._head(name)
        raw = _S3Stream(self, name, head["ContentLength"], head["ETag"])
        with io.BufferedReader(raw, buffer_size=2**20) as file:
            yield cast(BinaryIO, file)

    def exists(self, name: str) -> bool:
        try:
            self._head(name)
        except MissingObject:
            return False
        return True

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        names: list[str] = []
        with self._clear_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                names += [item["Key"][len(self.prefix) :] for item in page.get("Contents", [])]
        return sorted(names)

    def delete(self, name: str) -> None:
        check_name(name)
        with self._clear_errors(name):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + name)

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            with self.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            yield path

    def describe(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def get_range(self, name: str, start: int, etag: str) -> IO[bytes]:
        """The object's bytes from `start` on, if it is still the one with this ETag."""
        with self._clear_errors(name):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=self.prefix + name, Range=f"bytes={start}-", IfMatch=etag
            )
        return cast("IO[bytes]", answer["Body"])

    def _head(self, name: str) -> dict[str, Any]:
        check_name(name)
        with self._clear_errors(name):
            return dict(self._client.head_object(Bucket=self.bucket, Key=self.prefix + name))

    @contextmanager
    def _clear_errors(self, name: str) -> Iterator[None]:
        exceptions = _botocore_exceptions()
        from boto3.exceptions import Boto3Error

        try:
            yield
        except exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ("404", "NoSuchKey", "NotFound"):
                raise MissingObject(f"{self.describe(name)}: no such object") from error
            raise StoreError(f"{self.describe(name)}: {error}") from error
        except (exceptions.BotoCoreError, Boto3Error) as error:
            raise StoreError(f"{self.describe(name)}: {error}") from error


class _S3Stream(io.RawIOBase):
    """An object read in order, asked for again from where it stopped when the connection is cut."""

    tries = 4

    def __init__(self, store: S3Store, name: str, size: int, etag: str) -> None:
        super().__init__()
        self._store, self._name, self._size, self._etag = store, name, size, etag
        self._position = 0
        self._body: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        failure: Exception | None = None
        for _ in range(self.tries if wanted else 0):
            try:
                if self._body is None:
                    self._body = self._store.get_range(self._name, self._position, self._etag)
                data = self._body.read(wanted)
            except (_botocore_exceptions().BotoCoreError, OSError) as error:
                data, failure = b"", error
            if data:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            self._drop()
        if wanted:
            raise StoreError(
                f"{self._store.describe(self._name)}: the connection broke {self.tries} times at byte "
                f"{self._position} of {self._size}: {failure or 'the server ended the answer early'}"
            )
        return 0

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _botocore_exceptions() -> ModuleType:
    # boto3 takes a third of a second to import: paid only where a store is on S3.
    import botocore.exceptions

    return cast("ModuleType", botocore.exceptions)


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    try:
        return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))
    except _botocore_exceptions().BotoCoreError as error:
        raise StoreError(f"S3 cannot be used: {error}") from error
