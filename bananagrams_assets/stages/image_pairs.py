"""The `image_pairs` stage: both pictures of every record, and a row for each that says how it went."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import FetchSettings, Profile
from ..fetching import signals
from ..fetching.client import FetchError, open_fetcher
from ..fetching.downloads import (
    PARTS,
    Body,
    DownloadedImage,
    ImageDownloads,
    local_path,
    names,
    origins,
    shown,
)
from ..fetching.pair_outcomes import content_of, nobody_answered, origins_digest, row_of, stats_of
from ..fetching.spool import GrowingTar, Member, Spool, growing_tar, open_spool
from ..progress import Log
from ..storage import paths
from ..storage.sample_tar import Sample, SampleError, read_samples
from ..storage.store import Store
from ..storage.tables import PAIRS, by_key, read_notes, read_table, write_table
from ..vision.images import RGB, ImageError, decode
from .stage import StageResult

_SETTINGS = "fetch"
_ALLOWED = "allowed"
_UNREACHED = 64
_AHEAD = 4
"""Pairs begun, in units of `fetch.concurrency`: so many may wait for slow hosts while others go on."""
_BATCH = 16
_THREADS = 2
"""To look at pictures that are stored as they came, and to write the tar. More threads would only wait for
each other's turns with the interpreter's lock. To decode pictures and fit them, all processors help."""


def fetch_pairs(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
    """Write the shard's pictures, in key order, and its table of outcomes.

    Pictures are stored as received, or, where `fetch.largest_side_px` is set and a picture is larger,
    fitted to it as JPEG of quality 95. A picture that cannot be had is a row with its reason.

    Nothing is asked for twice: the tar grows in the spool, and pictures that are far ahead of their turn wait
    beside it, so that a run that was killed, cancelled or timed out is taken up where it ended; and pairs
    that an earlier build of this shard holds are taken from there, as are its failures that will not pass.
    At most 4 x `fetch.concurrency` pairs are begun, and 2 x `fetch.concurrency` pictures in memory. To fetch
    all anew, delete the shard's table. SIGINT and SIGTERM end the work at once and then do what they do
    without it.

    Raises FetchError where not one server answered, StoreError and OSError for faults of this machine.
    """
    try:
        return _fetch_pairs(store, profile, shard, log)
    except signals.Interrupted as interrupted:
        log(f"{shard}: interrupted; finished pictures are kept for the next run")
        signals.hand_on(interrupted)
        raise


def _fetch_pairs(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
    records = read_table(store, paths.manifest_table(shard))
    digest = profile.fetch.digest()
    table, began = paths.pairs_table(shard), time.monotonic()
    notes = {_SETTINGS: digest, _ALLOWED: _allowed()}
    with open_spool(store.url, shard, digest, log) as spool:
        with _earlier(store, shard, digest) as earlier, growing_tar(store.url, shard, digest, notes) as tar:
            work = _Work(records, earlier, spool, profile.fetch, tar, log, shard)
            with _no_long_collections():
                rows = signals.run(work.run())
            packed = tar.finish()
        store.adopt(paths.pairs_tar(shard), tar.path, packed)
        files = {paths.pairs_tar(shard): packed, table: write_table(store, table, PAIRS, rows, notes)}
    seconds = max(time.monotonic() - began, 1e-9)
    stats = {
        **stats_of(rows),
        "kept": earlier.kept,
        **work.counts,
        "run_seconds": round(seconds, 3),
        "pictures_per_second": round(work.counts["fetched"] / seconds, 2),
        "megabytes_per_second": round(work.counts["fetched_bytes"] / seconds / 1e6, 3),
    }
    return StageResult(files, stats, content=content_of(rows, packed.sha256))


@contextlib.contextmanager
def _no_long_collections() -> Iterator[None]:
    """Spare the garbage collector what is there already, as the modules of Dagster and pandas are: to look
    through all that, for nothing, holds up every connection for 60 ms and more."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def decode_pair(sample: Sample, max_pixels: int) -> tuple[RGB, RGB]:
    """The input and the edited picture of a sample of `image_pairs/<shard>.tar`. Raises PictureError."""
    images = []
    for part in PARTS:
        data = sample.part(part)
        if data is None:
            raise ImageError(f"{part}: not in the shard")
        try:
            images.append(decode(data, max_pixels))
        except ImageError as error:
            raise ImageError(f"{part}: {error}") from error
    return images[0], images[1]


class _Earlier:
    """What an earlier build of a shard holds: its rows, and its tar, read along in key order."""

    def __init__(self, rows: dict[str, dict[str, Any]], samples: Iterator[Sample], same_hosts: bool) -> None:
        self.kept = 0
        self._rows, self._samples, self._same_hosts = rows, samples, same_hosts
        self._next: Sample | None = None

    @property
    def has_rows(self) -> bool:
        return bool(self._rows)

    def row(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a pair that would be the same today."""
        row = self._rows.get(record["key"])
        return row if row is not None and _is_same(record, row, self._same_hosts) else None

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
    table, tar = paths.pairs_table(shard), paths.pairs_tar(shard)
    found = store.exists(table) and store.exists(tar)
    notes = read_notes(store, table) if found else {}
    # Tables of before the columns that decide this have other notes.
    if notes.get(_SETTINGS) != digest or _ALLOWED not in notes:
        yield _Earlier({}, iter(()), False)
        return
    rows = by_key(read_table(store, table))
    with store.open(tar) as file:
        yield _Earlier(rows, read_samples(file), notes[_ALLOWED] == _allowed())


def _is_same(record: Mapping[str, Any], row: Mapping[str, Any], same_hosts: bool) -> bool:
    """Whether a record would have this row today."""
    if row["status"] != "ok":
        return same_hosts and _is_final(record, row)
    for part in PARTS:
        came = next(
            (at for at in origins(record, part) if shown(record, part, at) == row[f"from_{part}"]), None
        )
        if came is None:
            return False
        path = local_path(came)
        if path is not None and _sha256_of_file(path) != row[f"sha256_{part}"]:
            return False
    return True


def _is_final(record: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether asking again can give nothing else: the same places, none of them a file of ours."""
    asked = [origin for part in PARTS for origin in origins(record, part)]
    return (
        not row["retryable"]
        and row["candidates"] == origins_digest(record)
        and all(local_path(origin) is None for origin in asked)
    )


def _allowed() -> str:
    """Hosts of ours that may be asked today, as a digest: what was refused then may not be now."""
    from ..fetching.addresses import ALLOW_VARIABLE

    return hashlib.blake2b(os.environ.get(ALLOW_VARIABLE, "").encode(), digest_size=6).hexdigest()


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


@dataclass(frozen=True)
class _Outcome:
    """A record with its row; its pictures, or none where an earlier build has them."""

    record: Mapping[str, Any]
    row: dict[str, Any]
    images: Sequence[DownloadedImage] | None


class _Work:
    """One run over a shard: pairs are fetched as they come and written in the order of their keys."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], earlier: _Earlier, spool: Spool, settings: FetchSettings,
        tar: GrowingTar, log: Log, shard: str,
    ) -> None:  # fmt: skip
        self._records, self._earlier, self._spool, self._settings = records, earlier, spool, settings
        self._tar, self._say, self._shard = tar, log, shard
        self._rows: list[dict[str, Any]] = []
        self._outcomes: dict[int, _Outcome] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._done = 0
        self._answered = False
        self.counts = {"fetched": 0, "resumed": 0, "fetched_bytes": 0}

    async def run(self) -> list[dict[str, Any]]:
        """The rows of all records, in order, once all that is ok is in the tar."""
        self._window = asyncio.Semaphore(_AHEAD * self._settings.concurrency)
        fits = self._settings.largest_side_px is not None
        threads = max(_THREADS, os.cpu_count() or 1) if fits else _THREADS
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
        resumed = await asyncio.to_thread(self._take_up)
        needed = Counter(name for record in self._records[len(self._rows) :] for name in names(record))
        async with open_fetcher(self._settings) as fetcher:
            self._images = ImageDownloads(fetcher, self._spool, self._settings, needed, self._start)
            try:
                self._start(self._begin_all())
                return await self._write_all()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self.counts = {
                    "fetched": self._images.fetched,
                    "resumed": self._images.resumed + resumed,
                    "fetched_bytes": self._images.bytes,
                }

    def _take_up(self) -> int:
        """Begin behind the records that an earlier run has put into the tar; returns how many pictures."""

        def is_next(number: int, row: Mapping[str, Any]) -> bool:
            if number >= len(self._records) or self._records[number]["key"] != row["key"]:
                return False
            return _is_same(self._records[number], row, same_hosts=True)

        came: set[str] = set()
        for entry in self._tar.take_up(is_next, self._spool):
            self._rows.append(entry["row"])
            self._answered = True
            came.update(image["origin"] for image in entry["pictures"])
        return len(came)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._changed.set()

    async def _begin_all(self) -> None:
        for index in range(len(self._rows), len(self._records)):
            record = self._records[index]
            row = await asyncio.to_thread(self._earlier.row, record) if self._earlier.has_rows else None
            if row is not None:
                self._outcomes[index] = _Outcome(record, row, None)
                self._changed.set()
                continue
            await self._window.acquire()
            self._start(self._pair(index, record))

    async def _pair(self, index: int, record: Mapping[str, Any]) -> None:
        try:
            self._outcomes[index] = await self._fetch(record)
            self._changed.set()
        finally:
            self._window.release()

    async def _fetch(self, record: Mapping[str, Any]) -> _Outcome:
        for part in PARTS:
            for origin in origins(record, part)[:1]:
                self._images.begin(origin)
        found = [await self._images.first_of(origins(record, part)) for part in PARTS]
        row = row_of(record, found)
        self._done += 1
        self._answered = self._answered or not nobody_answered(found)
        if not self._answered and self._done == min(_UNREACHED, len(self._records)):
            raise FetchError(
                f"{self._shard}: no network: none of {self._done} pairs could be reached; the last said "
                f"{row['reason']}"
            )
        return _Outcome(record, row, found)

    async def _write_all(self) -> list[dict[str, Any]]:
        rows = self._rows
        while len(rows) < len(self._records):
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            batch: list[_Outcome] = []
            while len(batch) < _BATCH and (outcome := self._outcomes.pop(len(rows) + len(batch), None)):
                batch.append(outcome)
            if not batch:
                await self._changed.wait()
                continue
            before = len(rows)
            for outcome in batch[await self._write(batch) :]:
                # An earlier build's tar that lacks what its table promises.
                await self._write(
                    [await self._fetch(outcome.record)] if outcome.images is None else [outcome]
                )
            if len(rows) // 100 > before // 100:
                self._say(f"{self._shard}: {len(rows)} of {len(self._records)} pairs")
        return rows

    async def _write(self, batch: Sequence[_Outcome]) -> int:
        """Put outcomes into tar and table; returns how many, fewer if an earlier build lacks a sample."""
        bodies = [
            [self._images.take(image) for image in outcome.images]
            if outcome.row["status"] == "ok" and outcome.images is not None else []
            for outcome in batch
        ]  # fmt: skip
        written = await asyncio.to_thread(self._append, batch, bodies)
        for outcome in batch[:written]:
            self._rows.append(outcome.row)
            if outcome.row["status"] == "ok":
                self._images.release(outcome.record)
        return written

    def _append(self, batch: Sequence[_Outcome], bodies: Sequence[Sequence[Body | None]]) -> int:
        for number, (outcome, held) in enumerate(zip(batch, bodies, strict=True)):
            members: list[Member] = []
            if outcome.row["status"] == "ok" and outcome.images is None:
                sample = self._earlier.sample(outcome.record["key"])
                if sample is None:
                    return number
                self._earlier.kept += 1
                self._answered = True
                members = [
                    Member(part, data, hashlib.sha256(data).hexdigest())
                    for part, data in sample.parts.items()
                ]
            elif outcome.row["status"] == "ok" and outcome.images is not None:
                found = zip(PARTS, outcome.images, held, strict=True)
                members = [self._images.member(part, image, body) for part, image, body in found]
            self._tar.append(outcome.row, members)
        return len(batch)
