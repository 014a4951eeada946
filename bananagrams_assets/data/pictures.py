"""One picture of a pair: where it may come from, how it is had, what is kept of it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..config import FetchSettings
from ..vision.images import PictureError, decode, encode_jpeg, fit
from .fetch import Fetched, Fetcher
from .spool import Spool
from .whole import Data, check_whole, may_be_cut, probe_header

PARTS = ("input", "edited")
LOCAL = "local"
FITTED_QUALITY = 95
"""JPEG quality of both pictures where they were fitted. PNG would keep the edited one exact for four to
five times the bytes; on the photographs that scikit-image ships this quality is off by 0.1 to 2.5 of 255
on average, most in fine colour texture."""

_LOCAL_PREFIX = "local:"
_BUFFER = 2**22
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}
_MISSING = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class Picture:
    """How a picture came (without its bytes, which are in the spool), from where, and what it is."""

    fetched: Fetched
    origin: str
    sha256: str = ""
    extension: str = ""
    width: int = 0
    height: int = 0

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


class Pictures:
    """Gets pictures into the spool, each one once, however many records name it."""

    def __init__(self, fetcher: Fetcher, spool: Spool, settings: FetchSettings) -> None:
        self._fetcher, self._spool, self._settings = fetcher, spool, settings
        self._tasks: dict[str, asyncio.Task[Picture]] = {}
        self._done: dict[str, Picture] = {}
        self._own = _Buffer()
        self.fetched = self.resumed = self.bytes = 0

    async def first_of(self, candidates: Sequence[str]) -> Picture:
        """The first origin that serves a picture, else what is most worth telling of the failures.

        That is the last failure which may pass, else the last of all. Raises StoreError and OSError for
        faults of this machine, FetchError.
        """
        failures: list[Picture] = []
        for origin in candidates:
            picture = await self._get(origin)
            attempts = picture.fetched.attempts + sum(failed.fetched.attempts for failed in failures)
            if picture.fetched.status == "ok":
                return replace(picture, fetched=replace(picture.fetched, attempts=attempts))
            failures.append(picture)
        if not failures:
            return Picture(Fetched("failed", "no source: the record names no place to get it from"), "")
        told = next((failed for failed in reversed(failures) if failed.fetched.may_pass), failures[-1])
        return replace(told, fetched=replace(told.fetched, attempts=attempts))

    def bytes_of(self, picture: Picture) -> bytes | memoryview:
        """What is stored of a picture that is ok, until the same thread asks again. Raises StoreError."""
        return self._spool.read(_name(picture.origin), self._own.buffer)

    def cancel(self) -> list[asyncio.Task[Picture]]:
        """Give up whatever is under way; returns what to wait for."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return tasks

    async def _get(self, origin: str) -> Picture:
        name = _name(origin)
        if name not in self._done:
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._obtain(name))
            self._done[name] = await self._tasks[name]
            self._tasks.pop(name, None)
        return replace(self._done[name], origin=origin)

    async def _obtain(self, origin: str) -> Picture:
        path = local_path(origin)
        if path is not None:
            return await asyncio.to_thread(self._keep_local, path, origin)
        about = await asyncio.to_thread(self._spool.find, origin) if self._spool.holds(origin) else None
        if about is not None:
            self.resumed += 1
            return Picture(Fetched(**about.pop("fetched")), origin, **about)
        async with self._fetcher.fetch(origin, lambda data: not may_be_cut(data)) as fetched:
            self.bytes += fetched.bytes
            if fetched.status != "ok":
                return Picture(fetched, origin)
            self.fetched += 1
            return await asyncio.to_thread(self._keep, fetched, origin)

    def _keep_local(self, path: Path, origin: str) -> Picture:
        fetched = _read_local(path, self._settings.max_bytes)
        return self._keep(fetched, origin) if fetched.status == "ok" else Picture(fetched, origin)

    def _keep(self, fetched: Fetched, origin: str) -> Picture:
        data = self._whole(fetched)
        fetched = replace(fetched, chunks=())
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            stored, extension, width, height = _inspect(data, self._settings)
        except PictureError as error:
            status: Any = "refused" if str(error).startswith("too large") else "failed"
            return Picture(replace(fetched, status=status, reason=str(error)), origin, sha256)
        picture = Picture(fetched, origin, sha256, extension, width, height)
        about = {
            "fetched": {
                field.name: getattr(fetched, field.name)
                for field in fields(fetched) if field.name != "chunks"
            },
            "sha256": sha256, "extension": extension, "width": width, "height": height,
        }  # fmt: skip
        stored_sha256 = sha256 if stored is data else hashlib.sha256(stored).hexdigest()
        self._spool.put(origin, about, stored, stored_sha256)
        return picture

    def _whole(self, fetched: Fetched) -> bytes | memoryview:
        """The body in one piece, until the same thread asks again."""
        chunks, buffer = fetched.chunks, self._own.buffer
        if len(chunks) == 1:
            return chunks[0]
        if fetched.bytes > len(buffer):
            return b"".join(chunks)
        view, end = memoryview(buffer), 0
        for chunk in chunks:
            view[end : end + len(chunk)] = chunk
            end += len(chunk)
        return view[:end]


class _Buffer(threading.local):
    """A thread's room for one picture of usual size: new memory for each would cost as much as hashing it."""

    def __init__(self) -> None:
        self.buffer = bytearray(_BUFFER)


def _name(origin: str) -> str:
    """What names one picture: a fragment is never sent, and tells tiles of one photograph apart."""
    return origin if origin.startswith(_LOCAL_PREFIX) else urllib.parse.urldefrag(origin).url


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


def _read_local(path: Path, max_bytes: int) -> Fetched:
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
        return Fetched("failed", f"local file cannot be read: {path.name}: {error.strerror}", may_pass=True)
    return Fetched("ok", chunks=(data,), bytes=len(data))
