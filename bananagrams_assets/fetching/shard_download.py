"""Concurrent download of one shard's pairs into its tar."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..config import FetchSettings
from ..progress import Log
from . import signals
from .client import FetchError, open_fetcher
from .downloads import PAIR_PARTS, DownloadedImage, ImageBody, ImageDownloads, candidate_urls, image_urls
from .earlier_build import EarlierBuild, is_current
from .pair_outcomes import no_server_answered, row_of
from .spool import Member, ResumableTar, Spool

_MAX_UNREACHABLE = 64
"""The run ends if this many pairs, or all of fewer, got no HTTP response."""
_STARTED_PAIRS_PER_CONNECTION = 4
"""Maximum number of unfinished pairs per unit of `fetch.concurrency`. Slow hosts must not block others."""
_BATCH = 16
_THREADS = 2
"""Threads that check images and write the tar. More threads would only contend for the GIL. Decoding and
resizing (`fetch.largest_side_px`) use all processors."""


@dataclass(frozen=True)
class _PairOutcome:
    """A record, its row, and its images: None if an earlier build has them, empty after a failure."""

    record: Mapping[str, Any]
    row: dict[str, Any]
    images: Sequence[DownloadedImage] | None


class ShardDownload:
    """One run over a shard: pairs are downloaded concurrently and written in key order.

    `counts` holds, after `run`, the numbers of downloaded images and bytes and of images resumed from an
    interrupted run.
    """

    def __init__(
        self, records: Sequence[Mapping[str, Any]], earlier: EarlierBuild, spool: Spool,
        settings: FetchSettings, tar: ResumableTar, log: Log, shard: str,
    ) -> None:  # fmt: skip
        self._records, self._earlier, self._spool, self._settings = records, earlier, spool, settings
        self._tar, self._log, self._shard = tar, log, shard
        self._rows: list[dict[str, Any]] = []
        self._outcomes: dict[int, _PairOutcome] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._fetched_pairs = 0
        self._server_answered = False
        self.counts = {"fetched": 0, "resumed": 0, "fetched_bytes": 0}

    def run(self) -> list[dict[str, Any]]:
        """Write all images to the tar; return the rows of all records, in key order.

        Raises signals.Interrupted on SIGINT or SIGTERM, FetchError if no server answers, StoreError and
        OSError for faults of this machine.
        """
        with _frozen_heap():
            return signals.run(self._run())

    async def _run(self) -> list[dict[str, Any]]:
        self._window = asyncio.Semaphore(_STARTED_PAIRS_PER_CONNECTION * self._settings.concurrency)
        resizes = self._settings.largest_side_px is not None
        threads = max(_THREADS, os.cpu_count() or 1) if resizes else _THREADS
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
        resumed = await asyncio.to_thread(self._resume_tar)
        uses = Counter(url for record in self._records[len(self._rows) :] for url in image_urls(record))
        async with open_fetcher(self._settings) as fetcher:
            self._images = ImageDownloads(fetcher, self._spool, self._settings, uses, self._start)
            try:
                self._start(self._start_pairs())
                return await self._write_in_order()
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self.counts = {
                    "fetched": self._images.fetched,
                    "resumed": self._images.resumed + resumed,
                    "fetched_bytes": self._images.bytes,
                }

    def _resume_tar(self) -> int:
        """Skip the records that an interrupted run wrote to the tar; return the number of their images."""

        def is_next(number: int, row: Mapping[str, Any]) -> bool:
            if number >= len(self._records) or self._records[number]["key"] != row["key"]:
                return False
            return is_current(self._records[number], row, same_allowed_hosts=True)

        urls: set[str] = set()
        for entry in self._tar.resume(is_next, self._spool):
            self._rows.append(entry["row"])
            self._server_answered = True
            urls.update(image["origin"] for image in entry["pictures"])
        return len(urls)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._changed.set()

    async def _start_pairs(self) -> None:
        for index in range(len(self._rows), len(self._records)):
            record = self._records[index]
            row = await asyncio.to_thread(self._earlier.row, record) if self._earlier.has_rows else None
            if row is not None:
                self._outcomes[index] = _PairOutcome(record, row, None if row["status"] == "ok" else ())
                self._changed.set()
                continue
            await self._window.acquire()
            self._start(self._fetch_at(index, record))

    async def _fetch_at(self, index: int, record: Mapping[str, Any]) -> None:
        try:
            self._outcomes[index] = await self._fetch(record)
            self._changed.set()
        finally:
            self._window.release()

    async def _fetch(self, record: Mapping[str, Any]) -> _PairOutcome:
        for part in PAIR_PARTS:
            for url in candidate_urls(record, part)[:1]:
                self._images.begin(url)
        images = [await self._images.first_available(candidate_urls(record, part)) for part in PAIR_PARTS]
        row = row_of(record, images)
        self._fetched_pairs += 1
        self._server_answered = self._server_answered or not no_server_answered(images)
        if not self._server_answered and self._fetched_pairs == min(_MAX_UNREACHABLE, len(self._records)):
            raise FetchError(
                f"{self._shard}: no network: none of {self._fetched_pairs} pairs could be reached; "
                f"last failure: {row['reason']}"
            )
        return _PairOutcome(record, row, images if row["status"] == "ok" else ())

    async def _write_in_order(self) -> list[dict[str, Any]]:
        rows = self._rows
        while len(rows) < len(self._records):
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            batch = self._next_batch()
            if not batch:
                await self._changed.wait()
            before = len(rows)
            while batch:
                batch = batch[await self._write(batch) :]
                if batch:
                    # The tar of the earlier build lacks this pair, which its table lists.
                    batch[0] = await self._fetch(batch[0].record)
            if len(rows) // 100 > before // 100:
                self._log(f"{self._shard}: {len(rows)} of {len(self._records)} pairs")
        return rows

    def _next_batch(self) -> list[_PairOutcome]:
        """Return the next outcomes in key order, downloaded images before those of the earlier build.

        Images that are claimed but not written would block the download of a missing pair before them.
        """
        batch: list[_PairOutcome] = []
        while len(batch) < _BATCH and (outcome := self._outcomes.get(len(self._rows) + len(batch))):
            if outcome.images and any(previous.images is None for previous in batch):
                break
            batch.append(self._outcomes.pop(len(self._rows) + len(batch)))
        return batch

    async def _write(self, batch: Sequence[_PairOutcome]) -> int:
        """Write pairs to the tar up to the first that the earlier build lacks; return their number."""
        bodies = [[self._images.claim(image) for image in outcome.images or ()] for outcome in batch]
        written = await asyncio.to_thread(self._append_to_tar, batch, bodies)
        for outcome in batch[:written]:
            self._rows.append(outcome.row)
            if outcome.row["status"] == "ok":
                self._images.release(outcome.record)
        return written

    def _append_to_tar(
        self, batch: Sequence[_PairOutcome], bodies: Sequence[Sequence[ImageBody | None]]
    ) -> int:
        for number, (outcome, pair_bodies) in enumerate(zip(batch, bodies, strict=True)):
            if outcome.images is None:
                sample = self._earlier.sample(outcome.record["key"])
                if sample is None:
                    return number
                self._earlier.kept += 1
                self._server_answered = True
                parts = sample.parts.items()
                members = [Member(part, data, hashlib.sha256(data).hexdigest()) for part, data in parts]
            else:
                images = zip(PAIR_PARTS, outcome.images, pair_bodies, strict=False)
                members = [self._images.member(part, image, body) for part, image, body in images]
            self._tar.append(outcome.row, members)
        return len(batch)


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude existing objects, such as the modules of Dagster and pandas, from garbage collection.

    Collecting them stalls the event loop for 60 ms or more.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
