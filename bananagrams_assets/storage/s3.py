"""The store in a bucket of S3 or of a server with the same API."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import mimetypes
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from .digests import MEMBERS, digest_like, file_digest
from .public_access import PublicAccess, check_public_access
from .store import (
    ABANDONED_S,
    MACHINE_FAULTS,
    TEMPORARY,
    Conflict,
    FileInfo,
    MissingObject,
    RunState,
    StoreError,
    check_name,
    conflict,
    describe_version,
    lock_if_free,
    this_process,
    verifying_reader,
)

PART_BYTES = 5 * 2**20
"""Smallest part of a multipart upload that S3 accepts; parts are larger if an object would need more than
10,000 of them."""
_MAX_PARTS = 10_000
_UPLOAD_THREADS = 2
_BLOCK = 2**20
_MAX_COMMIT_ATTEMPTS = 5
_PRECONDITION_FAILED = {"PreconditionFailed", "412"}
_CONCURRENT_WRITE = {"ConditionalRequestConflict", "409", "OperationAborted"}
_NOT_FOUND = {"404", "NoSuchKey", "NotFound"}
_ACCESS_DENIED = {
    "403", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "Forbidden", "ExpiredToken",
}  # fmt: skip
_ACCESS_HINT = (
    "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY need permission to read, write and list objects there"
)
_RETRYABLE = {"SlowDown", "RequestTimeout", "ThrottlingException", "RequestTimeTooSkewed", "BadDigest"}

Read: TypeAlias = Callable[[int, int], bytes]
"""A function (length, offset) → bytes of an object to upload."""


class S3Store(RunState):
    """The objects under a prefix of a bucket.

    An object is first written to a temporary file (under TMPDIR). When complete, it is uploaded: up to
    `PART_BYTES` in one request, a larger one as a multipart upload, which is completed or aborted. At most
    2 parts are in memory. The server verifies the SHA-256 of each request. The SHA-256 of the whole object
    is stored in its metadata and verified by a reader that reaches the end. A reader whose connection breaks
    resumes at the byte where it broke.

    If a server has responded before and then stops (for example during a restart), requests are retried for
    `retry_s` seconds, in addition to the client's own retries.

    Ongoing multipart uploads are recorded under TMPDIR, in files that their process has locked. The next
    run on this machine aborts the uploads of dead processes. Uploads of other machines are aborted after a
    day.
    """

    retry_s = 60.0

    def __init__(self, bucket: str, prefix: str, client: Any | None = None) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client = client if client is not None else _s3_client()
        self._server_responded = threading.Event()
        self._bucket_exists = threading.Event()
        self._no_conditional_writes = threading.Event()

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        check_name(name)
        return self._create(name)

    @contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        expected = self._expected_etag(name)
        with self._local_disk_errors(name), tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.flush()
            file.seek(0)
            self._commit_file(name, file.fileno(), file_digest(cast("IO[bytes]", file)), expected)

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        expected = self._expected_etag(name)
        with self._local_disk_errors(name), path.open("rb") as file:
            self._commit_file(name, file.fileno(), info.sha256, expected)

    def write(self, name: str, data: bytes) -> None:
        expected, sha256 = self._expected_etag(name), hashlib.sha256(data).hexdigest()
        with self._local_disk_errors(name):
            self._commit(name, sha256, len(data), expected, lambda size, start: data[start : start + size])

    def read(self, name: str) -> bytes:
        response = self._request_object(name, "get_object")
        try:
            data = response["Body"].read()
        except (BotoCoreError, OSError):
            data = b""
        expected = self._digests.get(name) or response.get("Metadata", {}).get("sha256")
        actual = digest_like(expected or "")
        actual.update(data)
        if len(data) == response["ContentLength"] and expected in (None, actual.hexdigest()):
            return bytes(data)
        # `open` retries a truncated or damaged response and raises a specific error.
        with self.open(name) as file:
            return file.read()

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        head = self._head(name)
        raw: Any = _S3Stream(self, name, head["ContentLength"], head["ETag"])
        digest = self._digests.get(name) or head.get("Metadata", {}).get("sha256")
        with raw:
            if digest:
                yield verifying_reader(raw, digest, self.describe(name))
            else:
                yield cast(BinaryIO, io.BufferedReader(raw, buffer_size=_BLOCK))

    def exists(self, name: str) -> bool:
        return self._current_etag(name) is not None

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def list(self, prefix: str) -> list[str]:
        return sorted(self._etags(prefix))

    def delete(self, name: str) -> None:
        check_name(name)
        self._request(name, "delete_object", Key=self.prefix + name)
        self.record_version(name, None)

    @contextmanager
    def local_path(self, name: str) -> Iterator[Path]:
        with self._local_disk_errors(name), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            with self.open(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
            yield path

    def describe(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> S3Store:
        etags: dict[str, str] = {}
        for prefix in prefixes:
            self._abort_dead_uploads(prefix)
            etags.update(self._etags(prefix))
        return self.with_run_state(prefixes, etags, digests)

    def public_access(self) -> PublicAccess:
        with self._store_errors(""):
            return check_public_access(self._client, self.bucket, self.prefix)

    def get_range(self, name: str, start: int, etag: str) -> IO[bytes]:
        """Return the object's bytes from `start` on, if it still has this ETag."""
        response = self._request(
            name, "get_object", Key=self.prefix + name, Range=f"bytes={start}-", IfMatch=etag
        )
        return cast("IO[bytes]", response["Body"])

    def _expected_etag(self, name: str) -> str | None:
        """Return the ETag that this writer may replace, None if no object may exist."""
        return self.expected_version(check_name(name), lambda: self._current_etag(name))

    def _etags(self, prefix: str) -> dict[str, str]:
        """Return the ETags of the objects under `prefix`, by name."""
        etags: dict[str, str] = {}
        continuation: dict[str, str] = {}
        while True:
            page = self._request(prefix, "list_objects_v2", Prefix=self.prefix + prefix, **continuation)
            for item in page.get("Contents", []):
                name = item["Key"][len(self.prefix) :]
                if not name.rpartition("/")[2].startswith(TEMPORARY):
                    etags[name] = item["ETag"]
            if not page.get("IsTruncated"):
                return etags
            continuation = {"ContinuationToken": page["NextContinuationToken"]}

    def _commit_file(self, name: str, file: int, sha256: str, expected: str | None) -> None:
        size = os.fstat(file).st_size
        self._commit(name, sha256, size, expected, lambda length, start: os.pread(file, length, start))

    def _commit(self, name: str, sha256: str, size: int, expected: str | None, read: Read) -> None:
        """Replace the object of ETag `expected`, as described in the module `store`. Raises Conflict."""
        upload = self._put if size <= PART_BYTES else self._multipart
        if expected is not None and (etag := self._etag_of_sha256(name, sha256)):
            self.record_version(name, etag)
            return
        for _ in range(_MAX_COMMIT_ATTEMPTS):
            condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
            if self._no_conditional_writes.is_set():
                condition = {}
                if self._current_etag(name) not in (None, expected):
                    self._accept_identical(name, sha256, size)
                    return
            try:
                etag = upload(name, read, size, sha256, condition)
            except StoreError as error:
                code = _code(error.__cause__)
                if code == "NotImplemented" and condition:
                    self._no_conditional_writes.set()
                elif code in _PRECONDITION_FAILED or (code in _NOT_FOUND and expected is not None):
                    # The stored object may be our own, if the response to a first attempt was lost.
                    if self._current_etag(name) is not None:
                        self._accept_identical(name, sha256, size)
                        return
                    expected = None
                elif code not in _CONCURRENT_WRITE:
                    raise
                continue
            self.record_version(name, etag)
            return
        raise Conflict(
            f"{self.describe(name)}: {_MAX_COMMIT_ATTEMPTS} attempts to write it failed because other "
            "processes write it at the same time"
        )

    def _current_etag(self, name: str) -> str | None:
        try:
            return str(self._head(name)["ETag"])
        except MissingObject:
            return None

    def _accept_identical(self, name: str, sha256: str, size: int) -> None:
        """Accept the object that another writer has committed; raises Conflict if its bytes differ."""
        head = self._head(name)
        with _S3Stream(self, name, head["ContentLength"], head["ETag"]) as stream:
            stored = file_digest(cast("IO[bytes]", stream), sha256)
        if stored != sha256:
            writer = head.get("Metadata", {}).get("writer", "an unknown process")
            raise conflict(
                self.describe(name),
                describe_version(stored, head["ContentLength"], writer, head["LastModified"].timestamp()),
                describe_version(sha256, size, this_process()),
            )
        self.record_version(name, head["ETag"])

    def _put(self, name: str, read: Read, size: int, sha256: str, condition: Mapping[str, str]) -> str:
        """Upload an object in one request and return its ETag."""
        body = read(size, 0)
        response = self._request(
            name, "put_object", Key=self.prefix + name, Body=body, ChecksumSHA256=_checksum(body, sha256),
            **_headers(name, sha256), **condition,
        )  # fmt: skip
        return str(response["ETag"])

    def _multipart(self, name: str, read: Read, size: int, sha256: str, condition: Mapping[str, str]) -> str:
        """Upload an object in parts and return the object's ETag."""
        key = self.prefix + name
        part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
        with _upload_record(self._bucket_url(), key) as record_upload:
            headers = _headers(name, sha256)
            upload = self._request(
                name, "create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256", **headers
            )["UploadId"]
            record_upload(upload)

            def upload_part(number: int) -> dict[str, Any]:
                data = read(part_bytes, (number - 1) * part_bytes)
                checksum = _checksum(data)
                part = self._request(
                    name, "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data,
                    ChecksumSHA256=checksum,
                )  # fmt: skip
                # A server that does not return checksums does not accept them on completion either.
                checksums = {"ChecksumSHA256": checksum} if "ChecksumSHA256" in part else {}
                return {"PartNumber": number, "ETag": part["ETag"], **checksums}

            try:
                pool = ThreadPoolExecutor(_UPLOAD_THREADS)
                try:
                    parts = list(pool.map(upload_part, range(1, -(-size // part_bytes) + 1)))
                finally:
                    pool.shutdown(cancel_futures=True)
                response = self._request(
                    name, "complete_multipart_upload", Key=key, UploadId=upload,
                    MultipartUpload={"Parts": parts}, **condition,
                )  # fmt: skip
                return str(response["ETag"])
            except BaseException as error:
                if "NoSuchUpload" in str(error) and (etag := self._etag_of_sha256(name, sha256)):
                    # The upload was completed but the response was lost.
                    return etag
                with suppress(Exception):
                    self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
                raise

    def _etag_of_sha256(self, name: str, sha256: str) -> str | None:
        """Return the ETag of the stored object if its metadata has this digest."""
        try:
            head = self._head(name)
        except StoreError:
            return None
        return str(head["ETag"]) if head.get("Metadata", {}).get("sha256") == sha256 else None

    def _abort_dead_uploads(self, prefix: str) -> None:
        """Abort multipart uploads of dead processes; those of other machines after a day."""
        for key, upload in _dead_uploads(self._bucket_url(), self.prefix + prefix):
            with suppress(StoreError):
                self._request(prefix, "abort_multipart_upload", Key=key, UploadId=upload)
        try:
            uploads = self._request(prefix, "list_multipart_uploads", Prefix=self.prefix + prefix)
        except StoreError:
            return  # an access key that may write does not need permission to list uploads
        now = datetime.now(timezone.utc)
        for upload in uploads.get("Uploads", []):
            if (now - upload["Initiated"]).total_seconds() > ABANDONED_S:
                with suppress(StoreError):
                    self._request(
                        prefix, "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def _bucket_url(self) -> str:
        return f"{self._client.meta.endpoint_url}/{self.bucket}"

    def _head(self, name: str) -> dict[str, Any]:
        return self._request_object(name, "head_object")

    def _request_object(self, name: str, operation: str) -> dict[str, Any]:
        try:
            return self._request(check_name(name), operation, Key=self.prefix + name)
        except MissingObject:
            # The response for a missing bucket is the same.
            self._require_bucket()
            raise

    def _require_bucket(self) -> None:
        """Raise StoreError if the bucket does not exist."""
        if not self._bucket_exists.is_set():
            try:
                self._request("", "head_bucket")
            except MissingObject as error:
                raise self._no_bucket() from error
            self._bucket_exists.set()

    @contextmanager
    def _local_disk_errors(self, name: str) -> Iterator[None]:
        """Raise StoreError for errors of the disk that holds temporary files."""
        try:
            yield
        except OSError as error:
            if error.errno not in MACHINE_FAULTS:
                raise
            raise StoreError(
                f"{self.describe(name)}: {error.strerror} in {tempfile.gettempdir()}, where its temporary "
                "file is; set TMPDIR to use another folder"
            ) from error

    def _no_bucket(self) -> StoreError:
        return StoreError(
            f"s3://{self.bucket}: there is no such bucket at {self._client.meta.endpoint_url}; create it or "
            "use another store"
        )

    def _request(self, name: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and retry it after transient errors. Raises MissingObject, StoreError."""
        deadline, delay_s = time.monotonic() + self.retry_s, 0.5
        while True:
            try:
                response: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **arguments)
                self._server_responded.set()
                return response
            except (ClientError, HTTPClientError) as error:
                if not self._is_retryable(error) or time.monotonic() > deadline:
                    with self._store_errors(name):
                        raise
            except BotoCoreError:
                with self._store_errors(name):
                    raise
            time.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, 8.0)

    def _is_retryable(self, error: Exception) -> bool:
        if not isinstance(error, ClientError):
            return self._server_responded.is_set()
        self._server_responded.set()
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status >= 500 and status != 501) or _code(error) in _RETRYABLE

    @contextmanager
    def _store_errors(self, name: str) -> Iterator[None]:
        """Raise MissingObject or StoreError for botocore's exceptions."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise self._no_bucket() from error
            if code in _NOT_FOUND:
                raise MissingObject(f"{self.describe(name)}: no such object") from error
            hint = _ACCESS_HINT if code in _ACCESS_DENIED else ""
            raise StoreError(f"{self.describe(name)}: {error}{hint}") from error
        except BotoCoreError as error:
            raise StoreError(f"{self.describe(name)}: {error}") from error


class _S3Stream(io.RawIOBase):
    """An object for sequential reading that resumes with a new request when the connection breaks."""

    attempts = 4

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
        for _ in range(self.attempts if wanted else 0):
            try:
                if self._body is None:
                    self._body = self._store.get_range(self._name, self._position, self._etag)
                data = self._body.read(wanted)
            except (BotoCoreError, OSError) as error:
                data, failure = b"", error
            if data:
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            self._close_body()
        if wanted:
            raise StoreError(
                f"{self._store.describe(self._name)}: the connection broke {self.attempts} times at byte "
                f"{self._position} of {self._size}: {failure or 'the server ended the response early'}"
            )
        return 0

    def close(self) -> None:
        self._close_body()
        super().close()

    def _close_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _checksum(data: bytes, digest: str = MEMBERS) -> str:
    """Return the SHA-256 of `data` in base64, as S3 expects it.

    A plain `digest` of the data is used as it is, so that the server also detects damage since it was
    computed; a members digest is not the SHA-256 of the data.
    """
    plain = hashlib.sha256(data).digest() if digest.startswith(MEMBERS) else bytes.fromhex(digest)
    return base64.b64encode(plain).decode()


def _headers(name: str, sha256: str) -> dict[str, Any]:
    """Return metadata and media type of a new object; a browser needs the latter to show a page."""
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return {"Metadata": {"sha256": sha256, "writer": this_process()}, "ContentType": media_type}


def _code(error: BaseException | None) -> str:
    """Return the S3 error code of botocore's ClientError, "" for any other exception."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _uploads_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"bananagrams-uploads-{os.getuid()}"


@contextmanager
def _upload_record(bucket_url: str, key: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that records an upload's id in a file; this process locks the file while it lives."""
    _uploads_folder().mkdir(mode=0o700, exist_ok=True)
    descriptor, path = tempfile.mkstemp(".json", dir=_uploads_folder())
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def record_upload(upload: str) -> None:
            json.dump({"place": bucket_url, "key": key, "upload": upload}, file)
            file.flush()

        try:
            yield record_upload
        finally:
            Path(path).unlink(missing_ok=True)


def _dead_uploads(bucket_url: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (key, upload id) of the uploads of dead processes of this machine."""
    for path in _uploads_folder().glob("*.json"):
        with suppress(OSError), path.open("r+", encoding="utf-8") as file:
            if not lock_if_free(file.fileno()):
                continue
            try:
                record = json.load(file)
            except ValueError:
                path.unlink()  # the process died before it started the upload
                continue
            if record["place"] == bucket_url and record["key"].startswith(prefix):
                yield record["key"], record["upload"]
                path.unlink()


def _s3_client() -> Any:
    try:
        return boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))
    except BotoCoreError as error:
        raise StoreError(f"the S3 client cannot be created: {error}") from error
