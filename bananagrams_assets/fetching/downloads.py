"""One picture of a pair: where it may come from, how it is had, what is kept of it."""

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
from ..vision.images import ImageError, decode, encode_jpeg, fit
from .client import Fetched, Fetcher
from .image_integrity import Data, check_whole, may_be_cut, probe_header
from .spool import Member, Spool

PARTS = ("input", "edited")
LOCAL = "local"
FITTED_QUALITY = 95
"""JPEG quality of both pictures where they were fitted. PNG would keep the edited one exact for four to
five times the bytes; on the photographs that scikit-image ships this quality is off by 0.1 to 2.5 of 255
on average, most in fine colour texture."""

_LOCAL_PREFIX = "local:"
_ROOM = 2**22
_MOMENT_S = 0.3
"""How long a finished picture waits in memory for its turn: as long it is lost if the process is killed."""
_FETCHED = [field.name for field in fields(Fetched) if field.name != "chunks"]
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}
_MISSING = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})


Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@dataclass(frozen=True, slots=True)
class DownloadedImage:
    """How a picture came (without its bytes), from where, and what it is."""

    fetched: Fetched
    origin: str
    sha256: str = ""
    extension: str = ""
    width: int = 0
    height: int = 0
    stored_sha256: str = ""

    def about(self) -> dict[str, Any]:
        """What the spool keeps of a picture beside its bytes."""
        fetched = {name: getattr(self.fetched, name) for name in _FETCHED}
        return {
            "fetched": fetched, "sha256": self.sha256, "extension": self.extension, "width": self.width,
            "height": self.height,
        }  # fmt: skip

    @property
    def is_local(self) -> bool:
        return self.origin.startswith(_LOCAL_PREFIX)


def origins(record: Mapping[str, Any], part: str) -> list[str]:
    """Where a part of a record may come from, best first: `local:<path>` or a URL."""
    if part == "input" and record.get("input_candidates"):
        return list(record["input_candidates"])
    local, url = (
        (record["local_input"], record["input_url"])
        if part == "input"
        else (record["local_output"], record["output_url"])
    )
    return [f"{_LOCAL_PREFIX}{local}" if local else url]


def local_path(origin: str) -> Path | None:
    """The file of a `local:<path>` origin; None for a URL."""
    return Path(origin.removeprefix(_LOCAL_PREFIX)) if origin.startswith(_LOCAL_PREFIX) else None


def shown(record: Mapping[str, Any], part: str, origin: str) -> str:
    """An origin as the table has it: a record's one local file is `local`."""
    if part == "input" and record.get("input_candidates"):
        return origin
    return LOCAL if origin.startswith(_LOCAL_PREFIX) else origin


@dataclass(eq=False)
class Body:
    """What is stored of a picture, while it is in memory.

    `gone` is set once the picture is in the tar, and `taken` once it is on its way there.
    """

    data: Data
    room: mmap.mmap | None
    gone: asyncio.Future[None]
    taken: bool = False


class ImageDownloads:
    """Gets pictures, each one once, however many records name it.

    A finished picture waits in memory for a moment, and then in the spool. One that several records may
    need is there from the beginning.
    """

    def __init__(
        self, fetcher: Fetcher, spool: Spool, settings: FetchSettings, needed: Counter[str], start: Start
    ) -> None:
        """`needed` counts the records by the pictures that they name (see `names`); `start` begins a task."""
        self._fetcher, self._spool, self._settings = fetcher, spool, settings
        self._needed, self._start = needed, start
        self._done: dict[str, asyncio.Future[DownloadedImage]] = {}
        self._bodies: dict[str, Body] = {}
        self._rooms: list[mmap.mmap] = []
        self.fetched = self.resumed = self.bytes = 0

    def begin(self, origin: str) -> None:
        """Start to get what will be asked for."""
        name = _name(origin)
        if name not in self._done:
            ready = self._done[name] = asyncio.get_running_loop().create_future()
            self._start(self._obtain(name, ready))

    async def first_of(self, candidates: Sequence[str]) -> DownloadedImage:
        """The first origin that serves a picture, else what is most worth telling of the failures.

        That is the last failure which may pass, else the last of all. Raises StoreError and OSError for
        faults of this machine, FetchError.
        """
        failures: list[DownloadedImage] = []
        for origin in candidates:
            self.begin(origin)
            image = await self._done[_name(origin)]
            attempts = image.fetched.attempts + sum(failed.fetched.attempts for failed in failures)
            if image.fetched.status == "ok":
                fetched = replace(image.fetched, attempts=attempts) if failures else image.fetched
                return replace(image, fetched=fetched, origin=origin)
            failures.append(replace(image, origin=origin))
        if not failures:
            return DownloadedImage(
                Fetched("failed", "no source: the record names no place to get it from"), ""
            )
        told = next((failed for failed in reversed(failures) if failed.fetched.retryable), failures[-1])
        return replace(told, fetched=replace(told.fetched, attempts=attempts))

    def take(self, image: DownloadedImage) -> Body | None:
        """The body of a picture that is ok, in memory until it is released; None: it is in the spool."""
        body = self._bodies.get(_name(image.origin))
        if body is not None:
            body.taken = True
        return body

    def member(self, part: str, image: DownloadedImage, body: Body | None) -> Member:
        """A picture for the tar; may wait for the disk. Raises StoreError."""
        data = body.data if body is not None else self._spool.read(_name(image.origin))
        about = None if image.is_local else image.about()
        return Member(f"{part}.{image.extension}", data, image.stored_sha256, _name(image.origin), about)

    def release(self, record: Mapping[str, Any]) -> None:
        """Let go of the pictures of a record that is written."""
        for name in names(record):
            body = self._bodies.get(name)
            if body is not None and body.taken and not body.gone.done():
                body.gone.set_result(None)
            self._needed[name] -= 1
            if self._needed[name] <= 0:
                self._spool.remove(name)

    async def _obtain(self, origin: str, ready: asyncio.Future[DownloadedImage]) -> None:
        try:
            await self._get(origin, ready)
        except Exception as error:
            if not ready.done():
                ready.set_exception(error)
                ready.exception()
            raise

    async def _get(self, origin: str, ready: asyncio.Future[DownloadedImage]) -> None:
        path = local_path(origin)
        if path is not None:
            async with self._fetcher.places:
                await self._hold(origin, await asyncio.to_thread(_read_local, path, self._settings), ready)
            return
        about = await asyncio.to_thread(self._spool.find, origin) if self._spool.holds(origin) else None
        if about is not None:
            self.resumed += 1
            ready.set_result(DownloadedImage(Fetched(**about.pop("fetched")), origin, **about))
            return
        async with self._fetcher.fetch(origin, lambda data: not may_be_cut(data)) as fetched:
            self.bytes += fetched.bytes
            self.fetched += fetched.status == "ok"
            await self._hold(origin, fetched, ready)

    async def _hold(self, origin: str, fetched: Fetched, ready: asyncio.Future[DownloadedImage]) -> None:
        """Look at what came, and keep its body in memory until it is written, or in the spool.

        Cancelled at whatever moment, it leaves a picture that is fetched in the spool.
        """
        if fetched.status != "ok":
            ready.set_result(DownloadedImage(fetched, origin))
            return
        work = asyncio.get_running_loop().run_in_executor(None, self._inspect, fetched, origin)
        try:
            image, data, room = await asyncio.shield(work)
        except asyncio.CancelledError:
            image, data, _ = await work
            self._spill(image, data)
            raise
        body = Body(data, room, asyncio.get_running_loop().create_future())
        if image.fetched.status == "ok":
            try:
                if self._needed[origin] > 1:
                    await asyncio.to_thread(self._spill, image, data)
                else:
                    self._bodies[origin] = body
                    ready.set_result(image)
                    await asyncio.wait((body.gone,), timeout=_MOMENT_S)
                    if not body.taken:
                        await asyncio.to_thread(self._spill, image, data)
                    if body.taken:
                        await body.gone
            except asyncio.CancelledError:
                if not body.gone.done():
                    self._spill(image, data)
                raise
            self._bodies.pop(origin, None)
        if not ready.done():
            ready.set_result(image)
        if room is not None:
            self._rooms.append(room)

    def _spill(self, image: DownloadedImage, data: Data) -> None:
        if image.fetched.status == "ok":
            self._spool.put(image.origin, image.about(), data, image.stored_sha256)

    def _inspect(self, fetched: Fetched, origin: str) -> tuple[DownloadedImage, Data, mmap.mmap | None]:
        data, room = self._whole(fetched)
        fetched = replace(fetched, chunks=())
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            stored, extension, width, height = _inspect(data, self._settings)
        except ImageError as error:
            status: Any = "refused" if str(error).startswith("too large") else "failed"
            return (
                DownloadedImage(replace(fetched, status=status, reason=str(error)), origin, sha256),
                data,
                room,
            )
        stored_sha256 = sha256 if stored is data else hashlib.sha256(stored).hexdigest()
        return DownloadedImage(fetched, origin, sha256, extension, width, height, stored_sha256), stored, room

    def _whole(self, fetched: Fetched) -> tuple[Data, mmap.mmap | None]:
        """The body in one piece, and the room that it is in, to be used again: new memory for each body
        would cost as much as hashing it."""
        chunks = fetched.chunks
        if len(chunks) == 1:
            return chunks[0], None
        if fetched.bytes > _ROOM:
            return b"".join(chunks), None
        room = self._rooms.pop() if self._rooms else mmap.mmap(-1, _ROOM)
        view, end = memoryview(room), 0
        for chunk in chunks:
            view[end : end + len(chunk)] = chunk
            end += len(chunk)
        if isinstance(chunks, list):
            # Who fetched it holds it still.
            chunks.clear()
        return view[:end], room


def names(record: Mapping[str, Any]) -> set[str]:
    """What names the pictures that a record may need."""
    return {_name(origin) for part in PARTS for origin in origins(record, part)}


def _name(origin: str) -> str:
    """What names one picture: a fragment is never sent, and tells tiles of one photograph apart."""
    return origin if origin.startswith(_LOCAL_PREFIX) else origin.partition("#")[0]


def _inspect(data: Data, settings: FetchSettings) -> tuple[Data, str, int, int]:
    """(bytes to store, extension, width, height) of a whole picture. Raises PictureError.

    Pixels are decoded where the picture is fitted to a smaller size.
    """
    side = settings.largest_side_px
    if side is None:
        found = check_whole(data, settings.max_pixels)
        return data, _EXTENSIONS.get(found.format, found.format.lower()), found.width, found.height
    kind = probe_header(data, settings.max_pixels).format
    rgb = decode(bytes(data), settings.max_pixels)
    extension = _EXTENSIONS.get(kind, kind.lower())
    if max(rgb.shape[:2]) > side:
        rgb = fit(rgb, side)
        data, extension = encode_jpeg(rgb, FITTED_QUALITY), "jpg"
    return data, extension, rgb.shape[1], rgb.shape[0]


def _read_local(path: Path, settings: FetchSettings) -> Fetched:
    max_bytes = settings.max_bytes
    try:
        size = path.stat().st_size
        if size > max_bytes:
            return Fetched(
                "refused", f"file too large: {size:,} bytes, the limit is {max_bytes:,}", bytes=size
            )
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        return Fetched("failed", f"local file cannot be read: {path.name}: {error.strerror}", retryable=True)
    return Fetched("ok", chunks=(data,), bytes=len(data))
