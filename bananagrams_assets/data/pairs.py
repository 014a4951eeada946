"""The `image_pairs` stage: both pictures of every record, and a row for each that says how it went."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..config import FetchSettings, Profile
from ..vision.images import RGB, PictureError, decode, encode_jpeg, fit, probe
from . import layout
from .fetch import Fetched, Fetcher, FetchError, open_fetcher
from .product import Product, Say
from .samples import Sample, SampleError, SampleWriter, read_samples, sample_writer
from .store import Store
from .tables import PAIRS, by_key, read_notes, read_table, reason_class, write_table

PARTS = ("input", "edited")
FITTED_QUALITY = 95
"""JPEG quality of both pictures where they were fitted. PNG would keep the edited one exact for four to
five times the bytes; on the photographs that scikit-image ships this quality is off by 0.1 to 2.5 of 255
on average, most in fine colour texture."""

_LOCAL = "local"
_SETTINGS = "fetch"
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}
_UNREACHED = 64
_MISSING = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class _Picture:
    """One picture of a pair: how it came, and the bytes to store."""

    fetched: Fetched
    origin: str
    sha256: str = ""
    stored: bytes = b""
    extension: str = ""
    width: int = 0
    height: int = 0


def fetch_pairs(store: Store, profile: Profile, shard: str, say: Say) -> Product:
    """Write the shard's pictures, in key order, and its table of outcomes.

    Pictures are stored as received, or, where `fetch.largest_side_px` is set and a picture is larger,
    fitted to it as JPEG of quality 95. At most `fetch.concurrency` pairs are in memory. A picture that
    cannot be had or decoded is a row with its reason. Pairs that an earlier build of this shard holds are
    taken from there and not asked for again, so that a rebuild fetches what is new and what failed; to
    fetch all anew, delete the shard's table. Raises FetchError where not one server answered, StoreError
    and OSError for faults of this machine.
    """
    records = read_table(store, layout.manifest_table(shard))
    digest = profile.fetch.digest()
    with _earlier(store, shard, digest) as earlier, sample_writer(store, layout.pairs_tar(shard)) as tar:
        rows = asyncio.run(_fetch_all(records, earlier, profile.fetch, tar, say, shard))
    table = layout.pairs_table(shard)
    files = {
        layout.pairs_tar(shard): tar.file.info,
        table: write_table(store, table, PAIRS, rows, {_SETTINGS: digest}),
    }
    stats = {**_stats(rows), "kept": earlier.kept}
    return Product(files, stats, content=_content(rows, tar.file.info.sha256))


def decode_pair(sample: Sample, max_pixels: int) -> tuple[RGB, RGB]:
    """The input and the edited picture of a sample of `image_pairs/<shard>.tar`. Raises PictureError."""
    pictures = []
    for part in PARTS:
        data = sample.part(part)
        if data is None:
            raise PictureError(f"{part}: not in the shard")
        try:
            pictures.append(decode(data, max_pixels))
        except PictureError as error:
            raise PictureError(f"{part}: {error}") from error
    return pictures[0], pictures[1]


class _Earlier:
    """The pairs that an earlier build of a shard holds: its rows, and its tar, read along in key order."""

    def __init__(self, rows: dict[str, dict[str, Any]], samples: Iterator[Sample]) -> None:
        self.kept = 0
        self._rows, self._samples = rows, samples
        self._next: Sample | None = None

    def row(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a pair that was fetched and would be the same today."""
        row = self._rows.get(record["key"])
        if row is None or row["status"] != "ok":
            return None
        for part, local, url in _places(record):
            if row[f"from_{part}"] != (_LOCAL if local else url):
                return None
            if local and _sha256_of_file(Path(local)) != row[f"sha256_{part}"]:
                return None
        return row

    def sample(self, key: str) -> Sample | None:
        """The stored pictures; keys must be asked for in order. None where the tar lacks them."""
        try:
            while self._next is None or self._next.key < key:
                self._next = next(self._samples)
        except (StopIteration, SampleError):
            # A damaged tar is no reason to stop: what it does not hold is fetched.
            self._samples, self._next = iter(()), None
            return None
        return self._next if self._next.key == key else None


@contextlib.contextmanager
def _earlier(store: Store, shard: str, digest: str) -> Iterator[_Earlier]:
    table, tar = layout.pairs_table(shard), layout.pairs_tar(shard)
    found = store.exists(table) and store.exists(tar)
    if not found or read_notes(store, table).get(_SETTINGS) != digest:
        yield _Earlier({}, iter(()))
        return
    rows = by_key(read_table(store, table))
    with store.open(tar) as file:
        yield _Earlier(rows, read_samples(file))


async def _fetch_all(
    records: list[dict[str, Any]],
    earlier: _Earlier,
    settings: FetchSettings,
    tar: SampleWriter,
    say: Say,
    shard: str,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    answered = False
    async with (
        open_fetcher(settings) as fetcher,
        contextlib.aclosing(_ahead(records, earlier, fetcher, settings)) as pairs,
    ):
        async for record, row, pictures in pairs:
            sample = earlier.sample(record["key"]) if row is not None else None
            if row is not None and sample is not None:
                earlier.kept += 1
                answered = True
                for part, data in sample.parts.items():
                    tar.add(record["key"], part, data)
                rows.append(row)
                continue
            if row is not None:
                pictures = await _pair(record, fetcher, settings)
            row = _row(record, pictures)
            if row["status"] == "ok":
                for part, picture in zip(PARTS, pictures, strict=True):
                    tar.add(record["key"], f"{part}.{picture.extension}", picture.stored)
            rows.append(row)
            answered = answered or not _nobody_answered(pictures)
            if not answered and len(rows) == min(_UNREACHED, len(records)):
                raise FetchError(
                    f"{shard}: no network: none of {len(rows)} pairs could be reached; the last said "
                    f"{row['reason']}"
                )
            if len(rows) % 100 == 0:
                say(f"{shard}: {len(rows)} of {len(records)} pairs")
    return rows


_Ahead: TypeAlias = "tuple[dict[str, Any], dict[str, Any] | None, asyncio.Task[list[_Picture]] | None]"


async def _ahead(
    records: list[dict[str, Any]], earlier: _Earlier, fetcher: Fetcher, settings: FetchSettings
) -> AsyncGenerator[tuple[dict[str, Any], dict[str, Any] | None, list[_Picture]], None]:
    """Records in order, each with its row of an earlier build or else with its pictures.

    Pictures are fetched ahead by a bounded number of pairs.
    """
    waiting: deque[_Ahead] = deque()
    remaining = iter(records)
    try:
        while True:
            while len(waiting) < settings.concurrency and (record := next(remaining, None)) is not None:
                row = await asyncio.to_thread(earlier.row, record)
                task = None if row else asyncio.create_task(_pair(record, fetcher, settings))
                waiting.append((record, row, task))
            if not waiting:
                return
            record, row, task = waiting[0]
            pictures = await task if task is not None else []
            waiting.popleft()
            yield record, row, pictures
    finally:
        tasks = [task for _, _, task in waiting if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pair(record: Mapping[str, Any], fetcher: Fetcher, settings: FetchSettings) -> list[_Picture]:
    pictures = (_picture(local, url, fetcher, settings) for _, local, url in _places(record))
    return list(await asyncio.gather(*pictures))


def _places(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(part, local path or "", URL) of the two pictures."""
    yield "input", record["local_input"], record["input_url"]
    yield "edited", record["local_output"], record["output_url"]


def _sha256_of_file(path: Path) -> str:
    """ "" where the file cannot be read: then it is not the same any more."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


async def _picture(local: str, url: str, fetcher: Fetcher, settings: FetchSettings) -> _Picture:
    if local:
        fetched = await asyncio.to_thread(_read_local, Path(local), settings.max_bytes)
    else:
        fetched = await fetcher.fetch(url)
    origin = _LOCAL if local else url
    if fetched.status != "ok":
        return _Picture(fetched, origin)
    return await asyncio.to_thread(_inspect, fetched, origin, settings)


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
        return Fetched("failed", f"local file cannot be read: {path.name}: {error.strerror}")
    return Fetched("ok", data=data, bytes=len(data))


def _inspect(fetched: Fetched, origin: str, settings: FetchSettings) -> _Picture:
    """Decode the picture, which alone shows that it is whole, and fit it if asked to."""
    data = fetched.data
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        kind = probe(data, settings.max_pixels).format
        rgb = decode(data, settings.max_pixels)
    except PictureError as error:
        broken = Fetched(
            "refused" if str(error).startswith("too large") else "failed", str(error),
            http_status=fetched.http_status, attempts=fetched.attempts, bytes=fetched.bytes,
            seconds=fetched.seconds,
        )  # fmt: skip
        return _Picture(broken, origin, sha256)
    extension = _EXTENSIONS.get(kind, kind.lower())
    if settings.largest_side_px is not None and max(rgb.shape[:2]) > settings.largest_side_px:
        rgb = fit(rgb, settings.largest_side_px)
        data, extension = encode_jpeg(rgb, FITTED_QUALITY), "jpg"
    return _Picture(fetched, origin, sha256, data, extension, rgb.shape[1], rgb.shape[0])


def _nobody_answered(pictures: list[_Picture]) -> bool:
    remote = [picture.fetched for picture in pictures if picture.origin != _LOCAL]
    return bool(remote) and all(fetched.status == "failed" and fetched.http_status == 0 for fetched in remote)


def _row(record: Mapping[str, Any], pictures: list[_Picture]) -> dict[str, Any]:
    before, after = pictures
    bad = next(
        (
            (part, picture)
            for part, picture in zip(PARTS, pictures, strict=True)
            if picture.fetched.status != "ok"
        ),
        None,
    )
    part, shown = bad or ("", before)
    return {
        "key": record["key"],
        "status": shown.fetched.status,
        "reason": f"{part}: {shown.fetched.reason}" if bad else "",
        "part": part,
        "http_status": shown.fetched.http_status,
        "attempts": before.fetched.attempts + after.fetched.attempts,
        "bytes_input": before.fetched.bytes,
        "bytes_edited": after.fetched.bytes,
        "sha256_input": before.sha256,
        "sha256_edited": after.sha256,
        "seconds": round(max(before.fetched.seconds, after.fetched.seconds), 3),
        "from_input": before.origin,
        "from_edited": after.origin,
        "width": before.width,
        "height": before.height,
        "edited_width": after.width,
        "edited_height": after.height,
    }


def _stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    statuses = Counter(row["status"] for row in rows)
    return {
        "records": len(rows),
        "ok": statuses["ok"],
        "failed": statuses["failed"],
        "refused": statuses["refused"],
        "ok_share": round(statuses["ok"] / len(rows), 4) if rows else 1.0,
        "reasons": dict(
            sorted(Counter(reason_class(row["reason"]) for row in rows if row["status"] != "ok").items())
        ),
        "http_status": {
            str(status): count
            for status, count in sorted(Counter(row["http_status"] for row in rows).items())
            if status
        },
        "bytes": sum(row["bytes_input"] + row["bytes_edited"] for row in rows),
        "retries": sum(max(0, row["attempts"] - _remote(row)) for row in rows),
        "local": sum(2 - _remote(row) for row in rows),
    }


def _remote(row: Mapping[str, Any]) -> int:
    return sum(row[name] != _LOCAL for name in ("from_input", "from_edited"))


def _content(rows: list[dict[str, Any]], tar_sha256: str) -> str:
    """Data version: what was stored and how each record fared, but not how long it took."""
    digest = hashlib.blake2b(tar_sha256.encode(), digest_size=16)
    for row in rows:
        what = [
            row["key"],
            row["status"],
            reason_class(row["reason"]),
            row["sha256_input"],
            row["sha256_edited"],
        ]
        digest.update(json.dumps(what).encode())
    return digest.hexdigest()
