"""Download the images of pairs: candidate URLs, integrity checks, and bodies until they are stored."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mmap
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from ..config import FetchSettings
from ..storage.digests import Data
from ..vision.images import ImageError, decode, encode_jpeg, fit
from .client import Fetcher, FetchResult, Status, too_large
from .image_integrity import check_complete, may_be_truncated, probe_header
from .spool import Member, Spool

PAIR_PARTS = ("input", "edited")
LOCAL = "local"
FITTED_QUALITY = 95
"""JPEG quality of both images after resizing. PNG would keep the edited image exact but takes four to five
times the bytes. On the photos shipped with scikit-image this quality has a mean error of 0.1 to 2.5 of 255,
mostly in fine colour texture."""

_LOCAL_PREFIX = "local:"
_BUFFER_BYTES = 2**22
_SPILL_AFTER_S = 0.3
"""An image waits in memory this long before it goes to the spool. A killed process loses it until then."""
_RESULT_FIELDS = [field.name for field in fields(FetchResult) if field.name != "chunks"]
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}
_UNREADABLE_ERRNO = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})

StartTask: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(frozen=True, slots=True)
class DownloadedImage:
    """A downloaded image without its bytes, or a failed download.

    `sha256` is the digest of the received bytes, `stored_sha256` that of the bytes to store. `width` and
    `height` are those of the image to store, in px.
    """

    result: FetchResult
    url: str
    sha256: str = ""
    extension: str = ""
    width: int = 0
    height: int = 0
    stored_sha256: str = ""

    def metadata(self) -> dict[str, Any]:
        """Return the metadata that the spool stores with the bytes."""
        return {
            "fetched": {name: getattr(self.result, name) for name in _RESULT_FIELDS},
            "sha256": self.sha256, "extension": self.extension, "width": self.width, "height": self.height,
        }  # fmt: skip

    @property
    def is_local(self) -> bool:
        return self.url.startswith(_LOCAL_PREFIX)


def candidate_urls(record: Mapping[str, Any], part: str) -> list[str]:
    """Return the URLs to try for one image of a record, best first: http(s) or `local:<path>`."""
    if part == "input" and record.get("input_candidates"):
        return list(record["input_candidates"])
    name = "input" if part == "input" else "output"
    local = record[f"local_{name}"]
    return [f"{_LOCAL_PREFIX}{local}" if local else record[f"{name}_url"]]


def local_path(url: str) -> Path | None:
    """Return the path of a `local:<path>` URL, None for any other."""
    return Path(url.removeprefix(_LOCAL_PREFIX)) if url.startswith(_LOCAL_PREFIX) else None


def table_url(record: Mapping[str, Any], part: str, url: str) -> str:
    """Return a URL as the table shows it: `local` for the local file of a record without candidates."""
    if part == "input" and record.get("input_candidates"):
        return url
    return LOCAL if url.startswith(_LOCAL_PREFIX) else url


def image_urls(record: Mapping[str, Any]) -> set[str]:
    """Return the URLs, without fragments, of all images that a record may need."""
    return {_without_fragment(url) for part in PAIR_PARTS for url in candidate_urls(record, part)}


@dataclass(eq=False)
class ImageBody:
    """The bytes to store of one image while they are in memory.

    `claimed` is set when the image is about to be written to the tar, `written` once it is there.
    """

    data: Data
    written: asyncio.Future[None]
    claimed: bool = False


class ImageDownloads:
    """Downloads each image once, however many records use it.

    A downloaded image waits briefly in memory and then in the spool. An image that several records may need
    goes to the spool at once.
    """

    def __init__(
        self, fetcher: Fetcher, spool: Spool, settings: FetchSettings, uses: Counter[str], start: StartTask
    ) -> None:
        """`uses` counts the records that need each of their `image_urls`; `start` starts a task."""
        self._fetcher, self._spool, self._settings = fetcher, spool, settings
        self._uses, self._start = uses, start
        self._images: dict[str, asyncio.Future[DownloadedImage]] = {}
        self._bodies: dict[str, ImageBody] = {}
        self._free_buffers: list[mmap.mmap] = []
        self.fetched = self.resumed = self.bytes = 0

    def begin(self, url: str) -> None:
        """Start downloading an image unless that has happened already."""
        url = _without_fragment(url)
        if url not in self._images:
            future = self._images[url] = asyncio.get_running_loop().create_future()
            self._start(self._download(url, future))

    async def first_available(self, candidates: Sequence[str]) -> DownloadedImage:
        """Return the first candidate that downloads, else the most informative failure.

        That is the last retryable failure, else the last one. Raises FetchError, StoreError and OSError for
        faults of this machine.
        """
        failures: list[DownloadedImage] = []
        for url in candidates:
            self.begin(url)
            image = await self._images[_without_fragment(url)]
            attempts = image.result.attempts + sum(failed.result.attempts for failed in failures)
            if image.result.status == "ok":
                result = replace(image.result, attempts=attempts) if failures else image.result
                return replace(image, result=result, url=url)
            failures.append(replace(image, url=url))
        if not failures:
            return DownloadedImage(FetchResult("failed", "no source: the record has no candidate URL"), "")
        reported = next((failed for failed in reversed(failures) if failed.result.retryable), failures[-1])
        return replace(reported, result=replace(reported.result, attempts=attempts))

    def claim(self, image: DownloadedImage) -> ImageBody | None:
        """Keep the body of a downloaded image in memory until `release`. None if it is in the spool."""
        body = self._bodies.get(_without_fragment(image.url))
        if body is not None:
            body.claimed = True
        return body

    def member(self, part: str, image: DownloadedImage, body: ImageBody | None) -> Member:
        """Return an image as a member of the tar; reads it from the spool if needed. Raises StoreError."""
        url = _without_fragment(image.url)
        data = body.data if body is not None else self._spool.read(url)
        metadata = None if image.is_local else image.metadata()
        return Member(f"{part}.{image.extension}", data, image.stored_sha256, url, metadata)

    def release(self, record: Mapping[str, Any]) -> None:
        """Free the images of a written record, except those that other records still need."""
        for url in image_urls(record):
            body = self._bodies.get(url)
            if body is not None and body.claimed and not body.written.done():
                body.written.set_result(None)
            self._uses[url] -= 1
            if self._uses[url] <= 0:
                self._spool.remove(url)

    async def _download(self, url: str, future: asyncio.Future[DownloadedImage]) -> None:
        try:
            await self._load(url, future)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
                # Mark the exception as retrieved: nothing may be waiting for this future.
                future.exception()
            raise

    async def _load(self, url: str, future: asyncio.Future[DownloadedImage]) -> None:
        path = local_path(url)
        if path is not None:
            async with self._fetcher.body_slots:
                await self._hold(url, await asyncio.to_thread(_read_local, path, self._settings), future)
            return
        metadata = await asyncio.to_thread(self._spool.find, url) if self._spool.holds(url) else None
        if metadata is not None:
            self.resumed += 1
            future.set_result(DownloadedImage(FetchResult(**metadata.pop("fetched")), url, **metadata))
            return
        async with self._fetcher.fetch(url, lambda data: not may_be_truncated(data)) as result:
            self.bytes += result.bytes
            self.fetched += result.status == "ok"
            await self._hold(url, result, future)

    async def _hold(self, url: str, result: FetchResult, future: asyncio.Future[DownloadedImage]) -> None:
        """Check an image, then hold its body until it is written to the tar or the spool.

        Cancellation at any point leaves a downloaded image in the spool.
        """
        if result.status != "ok":
            future.set_result(DownloadedImage(result, url))
            return
        work = asyncio.get_running_loop().run_in_executor(None, self._prepare, result, url)
        try:
            image, data, buffer = await asyncio.shield(work)
        except asyncio.CancelledError:
            image, data, _ = await work
            self._spill(image, data)
            raise
        body = ImageBody(data, asyncio.get_running_loop().create_future())
        if image.result.status == "ok":
            try:
                if self._uses[url] > 1:
                    await asyncio.to_thread(self._spill, image, data)
                else:
                    self._bodies[url] = body
                    future.set_result(image)
                    await asyncio.wait((body.written,), timeout=_SPILL_AFTER_S)
                    if not body.claimed:
                        await asyncio.to_thread(self._spill, image, data)
                    if body.claimed:
                        await body.written
            except asyncio.CancelledError:
                if not body.written.done():
                    self._spill(image, data)
                raise
            self._bodies.pop(url, None)
        if not future.done():
            future.set_result(image)
        if buffer is not None:
            self._free_buffers.append(buffer)

    def _spill(self, image: DownloadedImage, data: Data) -> None:
        if image.result.status == "ok":
            self._spool.put(image.url, image.metadata(), data, image.stored_sha256)

    def _prepare(self, result: FetchResult, url: str) -> tuple[DownloadedImage, Data, mmap.mmap | None]:
        """Check, hash and possibly resize an image; return it, its bytes to store, and their buffer."""
        data, buffer = self._join_chunks(result)
        result = replace(result, chunks=())
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            stored, extension, width, height = _stored_form(data, self._settings)
        except ImageError as error:
            status: Status = "refused" if str(error).startswith("too large") else "failed"
            failure = replace(result, status=status, reason=str(error))
            return DownloadedImage(failure, url, sha256), data, buffer
        stored_sha256 = sha256 if stored is data else hashlib.sha256(stored).hexdigest()
        return DownloadedImage(result, url, sha256, extension, width, height, stored_sha256), stored, buffer

    def _join_chunks(self, result: FetchResult) -> tuple[Data, mmap.mmap | None]:
        """Return the body in one piece, and the buffer that holds it.

        Buffers are reused: allocating memory for each body would cost as much as hashing it.
        """
        chunks = result.chunks
        if len(chunks) == 1:
            return chunks[0], None
        if result.bytes > _BUFFER_BYTES:
            return b"".join(chunks), None
        buffer = self._free_buffers.pop() if self._free_buffers else mmap.mmap(-1, _BUFFER_BYTES)
        view, end = memoryview(buffer), 0
        for chunk in chunks:
            view[end : end + len(chunk)] = chunk
            end += len(chunk)
        if isinstance(chunks, list):
            # The fetcher still references the list.
            chunks.clear()
        return view[:end], buffer


def _without_fragment(url: str) -> str:
    """Return the URL of an image file. A fragment is never sent; it distinguishes tiles of one photo."""
    return url if url.startswith(_LOCAL_PREFIX) else url.partition("#")[0]


def _stored_form(data: Data, settings: FetchSettings) -> tuple[Data, str, int, int]:
    """Return (bytes to store, extension, width, height) of a complete image. Raises ImageError.

    Pixels are decoded only if `fetch.largest_side_px` is set.
    """
    side = settings.largest_side_px
    if side is None:
        header = check_complete(data, settings.max_pixels)
        return data, _extension(header.format), header.width, header.height
    extension = _extension(probe_header(data, settings.max_pixels).format)
    rgb = decode(bytes(data), settings.max_pixels)
    if max(rgb.shape[:2]) > side:
        rgb = fit(rgb, side)
        data, extension = encode_jpeg(rgb, FITTED_QUALITY), "jpg"
    return data, extension, rgb.shape[1], rgb.shape[0]


def _extension(image_format: str) -> str:
    return _EXTENSIONS.get(image_format, image_format.lower())


def _read_local(path: Path, settings: FetchSettings) -> FetchResult:
    try:
        size = path.stat().st_size
        if size > settings.max_bytes:
            return FetchResult("refused", too_large(f"{size:,} bytes", settings.max_bytes), bytes=size)
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _UNREADABLE_ERRNO:
            raise
        reason = f"local file cannot be read: {path.name}: {error.strerror}"
        return FetchResult("failed", reason, retryable=True)
    return FetchResult("ok", chunks=(data,), bytes=len(data))
