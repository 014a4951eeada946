"""The store in a bucket: S3, or a server that speaks its protocol."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import mimetypes
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from . import public_access
from .digests import MEMBERS, digest_like, digest_of
from .store import (
    ABANDONED_S,
    MACHINE_FAULTS,
    TEMPORARY,
    Conflict,
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

if TYPE_CHECKING:
    from types import ModuleType


PART_BYTES = 5 * 2**20
"""Of a multipart upload, the least that S3 takes; more where an object would have more than 10,000 parts."""
_MOST_PARTS = 10_000
_SENDERS = 2
_BLOCK = 2**20
_RACES = 5
_CHANGED = {"PreconditionFailed", "412"}
_RACING = {"ConditionalRequestConflict", "409", "OperationAborted"}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_NOT_ALLOWED = {
    "403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden", "ExpiredToken",
}  # fmt: skip
_PASSING = {"SlowDown", "RequestTimeout", "ThrottlingException", "RequestTimeTooSkewed", "BadDigest"}


class S3Store(RunView):
    """A prefix of a bucket.

    Objects wait in a temporary file (under TMPDIR) until they are whole. Then they are sent: up to
    `PART_BYTES` in one request, larger ones as a multipart upload, which is completed or aborted. The
    server compares SHA-256 of each request with what it received; the whole object's is kept in its
    metadata and compared by who reads it to its end. Reading takes up a broken connection where it broke.

    A server that has answered before and does not now (as one that is restarted) is asked again for
    `patience_s`, beyond the client's own tries. At most 2 parts are in memory.

    What a dead run has left of a multipart upload, the next run on this machine aborts: uploads under way are
    noted under TMPDIR, in files that their process has locked. Those of other machines go after a day.
    """

    patience_s = 60.0

    def __init__(self, bucket: str, prefix: str, client: Any | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = client if client is not None else _s3_client()
        self._answered, self._found, self._plain = threading.Event(), threading.Event(), threading.Event()

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        check_name(name)
        return self._create(name)

    @contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        expected = self._expected(name)
        with self._on_this_machine(name), tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.flush()
            file.seek(0)
            self._send(name, file.fileno(), sha256_of(file), expected)

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        check_name(name)
        expected = self._expected(name)
        with self._on_this_machine(name), path.open("rb") as file:
            self._send(name, file.fileno(), info.sha256, expected)

    def write(self, name: str, data: bytes) -> None:
        check_name(name)
        expected = self._expected(name)
        if len(data) > PART_BYTES:
            with self._create(name) as file:
                file.write(data)
        else:
            self._commit(name, hashlib.sha256(data).hexdigest(), len(data), expected, lambda: data)

    def read(self, name: str) -> bytes:
        check_name(name)
        try:
            answer = self._ask(name, "get_object", Key=self.prefix + name)
        except MissingObject:
            self._find_bucket()
            raise
        try:
            data = answer["Body"].read()
        except (_botocore_exceptions().BotoCoreError, OSError):
            data = b""
        digest = self._digests.get(name) or answer.get("Metadata", {}).get("sha256")
        found = digest_like(digest or "")
        found.update(data)
        if len(data) == answer["ContentLength"] and digest in (None, found.hexdigest()):
            return bytes(data)
        # A cut or a damaged answer: in order, with more tries, and with an error that says what is wrong.
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        head = self._head(name)
        raw: Any = _S3Stream(self, name, head["ContentLength"], head["ETag"])
        digest = self._digests.get(name) or head.get("Metadata", {}).get("sha256")
        with raw:
            if digest:
                yield checked(raw, digest, self.describe(name))
            else:
                yield cast(BinaryIO, io.BufferedReader(raw, buffer_size=_BLOCK))

    def exists(self, name: str) -> bool:
        try:
            self._head(name)
        except MissingObject:
            return False
        return True

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        return sorted(self._etags(prefix))

    def delete(self, name: str) -> None:
        check_name(name)
        self._ask(name, "delete_object", Key=self.prefix + name)
        self.note(name, None)

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        with self._on_this_machine(name), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            with self.open(name) as source, path.open("wb") as target:
                while block := source.read(_BLOCK):
                    target.write(block)
            yield path

    def describe(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> S3Store:
        seen: dict[str, str] = {}
        for prefix in prefixes:
            self._sweep(prefix)
            seen.update(self._etags(prefix))
        return self.seen_by(prefixes, seen, digests)

    def who_can_read(self) -> tuple[bool, Sequence[str]]:
        with self._clear_errors(""):
            return public_access.who_can_read(self._client, self.bucket, self.prefix)

    def get_range(self, name: str, start: int, etag: str) -> IO[bytes]:
        """The object's bytes from `start` on, if it is still the one with this ETag."""
        answer = self._ask(name, "get_object", Key=self.prefix + name, Range=f"bytes={start}-", IfMatch=etag)
        return cast("IO[bytes]", answer["Body"])

    def _expected(self, name: str) -> str | None:
        """The ETag that this writer may replace; None: there is to be nothing."""
        if self.is_tracked(name):
            return (self._seen or {}).get(name)
        try:
            return str(self._head(name)["ETag"])
        except MissingObject:
            return None

    def _etags(self, prefix: str) -> dict[str, str]:
        names: dict[str, str] = {}
        more: dict[str, str] = {}
        while True:
            page = self._ask(prefix, "list_objects_v2", Prefix=self.prefix + prefix, **more)
            for item in page.get("Contents", []):
                name = item["Key"][len(self.prefix) :]
                if not name.rpartition("/")[2].startswith(TEMPORARY):
                    names[name] = item["ETag"]
            if not page.get("IsTruncated"):
                return names
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _send(self, name: str, file: int, sha256: str, expected: str | None) -> None:
        size = os.fstat(file).st_size
        if size <= PART_BYTES:
            self._commit(name, sha256, size, expected, lambda: os.pread(file, size, 0))
        else:
            self._commit(name, sha256, size, expected, file)

    def _commit(self, name: str, sha256: str, size: int, expected: str | None, content: Any) -> None:
        """Put an object in the place of the one with the ETag `expected`; see the module `store`.

        `content` gives its bytes, or is the file that holds more than one request can.
        """
        if expected is not None and self._holds(name, sha256):
            self.note(name, str(self._head(name)["ETag"]))
            return
        for _ in range(_RACES):
            condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
            if self._plain.is_set():
                condition = {}
                if self._now(name) not in (None, expected):
                    self._settle(name, sha256, size)
                    return
            exceptions = _botocore_exceptions()
            try:
                if isinstance(content, int):
                    etag = self._multipart(name, content, size, sha256, condition)
                else:
                    body = content()
                    etag = self._ask(
                        name, "put_object", Key=self.prefix + name, Body=body,
                        ChecksumSHA256=_checksum(body, sha256), Metadata=_about(sha256),
                        ContentType=_kind(name), **condition,
                    )["ETag"]  # fmt: skip
            except (StoreError, MissingObject) as error:
                cause = error.__cause__
                code = _code(cause) if isinstance(cause, exceptions.ClientError) else ""
                if code == "NotImplemented" and condition:
                    self._plain.set()
                elif code in _CHANGED or (code in _MISSING and expected is not None):
                    # A request that was answered, but whose answer was lost, finds its own object here too.
                    if self._now(name) is not None:
                        self._settle(name, sha256, size)
                        return
                    expected = None
                elif code not in _RACING:
                    raise
                continue
            self.note(name, etag)
            return
        raise Conflict(f"{self.describe(name)}: other writers come in between again and again")

    def _now(self, name: str) -> str | None:
        try:
            return str(self._head(name)["ETag"])
        except MissingObject:
            return None

    def _settle(self, name: str, sha256: str, size: int) -> None:
        """Another writer's object is there: fine if it is the same. Raises Conflict."""
        head = self._head(name)
        with _S3Stream(self, name, head["ContentLength"], head["ETag"]) as stream:
            theirs = digest_of(cast("IO[bytes]", stream), sha256)
        if theirs != sha256:
            writer = head.get("Metadata", {}).get("writer", "a process that is not known")
            raise conflict(
                self.describe(name),
                told(theirs, head["ContentLength"], writer, head["LastModified"].timestamp()),
                told(sha256, size, this_writer()),
            )
        self.note(name, head["ETag"])

    def _multipart(self, name: str, file: int, size: int, sha256: str, condition: Mapping[str, str]) -> str:
        key = self.prefix + name
        length = max(PART_BYTES, -(-size // _MOST_PARTS))
        with _noted(self._place(), key) as note:
            upload = self._ask(
                name, "create_multipart_upload", Key=key, Metadata=_about(sha256), ChecksumAlgorithm="SHA256",
                ContentType=_kind(name),
            )["UploadId"]  # fmt: skip
            note(upload)

            def send(number: int) -> dict[str, Any]:
                data = os.pread(file, length, (number - 1) * length)
                checksum = _checksum(data)
                part = self._ask(
                    name, "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data,
                    ChecksumSHA256=checksum,
                )  # fmt: skip
                # Only a server that knows checksums takes them back.
                known = {"ChecksumSHA256": checksum} if "ChecksumSHA256" in part else {}
                return {"PartNumber": number, "ETag": part["ETag"], **known}

            try:
                pool = ThreadPoolExecutor(_SENDERS)
                try:
                    parts = list(pool.map(send, range(1, -(-size // length) + 1)))
                finally:
                    pool.shutdown(cancel_futures=True)
                return str(
                    self._ask(
                        name, "complete_multipart_upload", Key=key, UploadId=upload,
                        MultipartUpload={"Parts": parts}, **condition,
                    )["ETag"]
                )  # fmt: skip
            except BaseException as error:
                if "NoSuchUpload" in str(error) and self._holds(name, sha256):
                    # The upload was completed, and the answer that said so was lost.
                    return str(self._head(name)["ETag"])
                with suppress(Exception):
                    self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
                raise

    def _holds(self, name: str, sha256: str) -> bool:
        try:
            return bool(self._head(name).get("Metadata", {}).get("sha256") == sha256)
        except StoreError:
            return False

    def _sweep(self, prefix: str) -> None:
        """Abort multipart uploads whose writer is dead."""
        for key, upload in _dead_uploads(self._place(), self.prefix + prefix):
            with suppress(StoreError):
                self._ask(prefix, "abort_multipart_upload", Key=key, UploadId=upload)
        try:
            uploads = self._ask(prefix, "list_multipart_uploads", Prefix=self.prefix + prefix)
        except StoreError:
            return  # a key that may write need not be allowed to list these
        now = datetime.now(timezone.utc)
        for upload in uploads.get("Uploads", []):
            if (now - upload["Initiated"]).total_seconds() > ABANDONED_S:
                with suppress(StoreError):
                    self._ask(
                        prefix, "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def _place(self) -> str:
        return f"{self._client.meta.endpoint_url}/{self.bucket}"

    def _head(self, name: str) -> dict[str, Any]:
        check_name(name)
        try:
            return self._ask(name, "head_object", Key=self.prefix + name)
        except MissingObject:
            # A missing bucket answers the same.
            self._find_bucket()
            raise

    def _find_bucket(self) -> None:
        if not self._found.is_set():
            try:
                self._ask("", "head_bucket")
            except MissingObject as error:
                raise self._no_bucket() from error
            self._found.set()

    @contextmanager
    def _on_this_machine(self, name: str) -> Iterator[None]:
        """Faults of the disk where objects wait, as StoreError."""
        try:
            yield
        except OSError as error:
            if error.errno not in MACHINE_FAULTS:
                raise
            raise StoreError(
                f"{self.describe(name)}: {error.strerror}: it passes through {tempfile.gettempdir()}, and "
                "TMPDIR names another folder for that"
            ) from error

    def _no_bucket(self) -> StoreError:
        return StoreError(
            f"s3://{self.bucket}: there is no such bucket at {self._client.meta.endpoint_url}; create it, or "
            "name another store"
        )

    def _ask(self, name: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """One request, repeated while what is wrong may pass. Raises MissingObject, StoreError."""
        exceptions = _botocore_exceptions()
        ends, pause = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **arguments)
                self._answered.set()
                return answer
            except (exceptions.ClientError, exceptions.HTTPClientError) as error:
                if not self._is_retryable(error) or time.monotonic() > ends:
                    with self._clear_errors(name):
                        raise
            except exceptions.BotoCoreError:
                with self._clear_errors(name):
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 8.0)

    def _is_retryable(self, error: Exception) -> bool:
        if not isinstance(error, _botocore_exceptions().ClientError):
            return self._answered.is_set()
        self._answered.set()
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status >= 500 and status != 501) or _code(error) in _PASSING

    @contextmanager
    def _clear_errors(self, name: str) -> Iterator[None]:
        exceptions = _botocore_exceptions()
        try:
            yield
        except exceptions.ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise self._no_bucket() from error
            if code in _MISSING:
                raise MissingObject(f"{self.describe(name)}: no such object") from error
            hint = ""
            if code in _NOT_ALLOWED:
                hint = (
                    "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be a key that may read, write and "
                    "list there"
                )
            raise StoreError(f"{self.describe(name)}: {error}{hint}") from error
        except exceptions.BotoCoreError as error:
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


def _checksum(data: bytes, digest: str = MEMBERS) -> str:
    """SHA-256 as S3 has it. Where `digest` is just that, it is of the bytes as they were made."""
    plain = hashlib.sha256(data).digest() if digest.startswith(MEMBERS) else bytes.fromhex(digest)
    return base64.b64encode(plain).decode()


def _about(sha256: str) -> dict[str, str]:
    return {"sha256": sha256, "writer": this_writer()}


def _kind(name: str) -> str:
    """The media type of an object: a browser shows a page from a bucket only if it is told that it is one."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _notes_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"bananagrams-uploads-{os.getuid()}"


@contextmanager
def _noted(place: str, key: str) -> Iterator[Any]:
    """A function that notes an upload's id in a file, which is locked while this process lives."""
    _notes_folder().mkdir(mode=0o700, exist_ok=True)
    number, path = tempfile.mkstemp(".json", dir=_notes_folder())
    with os.fdopen(number, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def note(upload: str) -> None:
            json.dump({"place": place, "key": key, "upload": upload}, file)
            file.flush()

        try:
            yield note
        finally:
            Path(path).unlink(missing_ok=True)


def _dead_uploads(place: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, upload id) of the uploads of processes of this machine that are no more."""
    for path in _notes_folder().glob("*.json"):
        with suppress(OSError), path.open("r+", encoding="utf-8") as file:
            if not lock_if_free(file.fileno()):
                continue
            try:
                note = json.load(file)
            except ValueError:
                path.unlink()  # its process died before it had an upload to note
                continue
            if note["place"] == place and note["key"].startswith(prefix):
                yield note["key"], note["upload"]
                path.unlink()


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
