"""The fetching progress of every shard, from receipts and from the spools of unfinished runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..config import Profile
from ..fetching.spool import images_in, spool_folder
from ..storage.store import Store
from .receipts import Receipt, read_receipt

_READERS = 8


@dataclass(frozen=True)
class ShardStatus:
    """The progress of one shard.

    `records` is the number in the manifest. `done` of them are fetched and divide into `ok`, `failed` and
    `refused`. `to_retry` counts retryable failures, `waiting` the images of an unfinished run on this
    machine. `bytes` counts bytes received. `images` were fetched in `seconds` by the shard's last run.
    """

    shard: str
    records: int
    done: int = 0
    ok: int = 0
    failed: int = 0
    refused: int = 0
    to_retry: int = 0
    bytes: int = 0
    waiting: int = 0
    images: int = 0
    seconds: float = 0.0
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """The progress of all shards, and their total under the name `total`.

    `images_per_s` is the mean rate of all runs, None before the first image. `left_s` is the time in seconds
    that one run needs for the rest at that rate, None without a rate or a manifest.
    """

    shards: Sequence[ShardStatus]
    total: ShardStatus
    images_per_s: float | None
    left_s: float | None


def status_of(store: Store, profile: Profile) -> Status:
    """Return the progress of every shard of the profile. Raises StoreError."""
    with ThreadPoolExecutor(_READERS) as pool:
        shards = list(pool.map(lambda shard: _shard_status(store, shard), profile.shard_keys()))
    numbers = {
        name: sum(getattr(shard, name) for shard in shards)
        for name in (
            "records", "done", "ok", "failed", "refused", "to_retry", "bytes", "waiting",
            "images", "seconds",
        )
    }  # fmt: skip
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.reasons)
    total = ShardStatus("total", **numbers, reasons=dict(reasons.most_common()))
    rate = total.images / total.seconds if total.images and total.seconds else None
    missing = max(0, 2 * (total.records - total.done) - total.waiting)
    left = missing / rate if rate else (0.0 if total.records and not missing else None)
    return Status(shards, total, rate, left)


def retryable_failures(store: Store, shard: str) -> int:
    """Return the number of retryable failures of a finished shard."""
    return int(_stat(read_receipt(store, "image_pairs", shard), "to_retry"))


def _shard_status(store: Store, shard: str) -> ShardStatus:
    manifest, pairs = read_receipt(store, "manifest", shard), read_receipt(store, "image_pairs", shard)
    return ShardStatus(
        shard,
        records=_stat(manifest, "records"),
        done=_stat(pairs, "records"),
        **{name: _stat(pairs, name) for name in ("ok", "failed", "refused", "to_retry", "bytes")},
        waiting=len(images_in(spool_folder(store.url, shard))),
        images=_stat(pairs, "fetched"),
        seconds=_stat(pairs, "run_seconds"),
        reasons=pairs.stats.get("reasons", {}) if pairs else {},
    )


def _stat(receipt: Receipt | None, name: str) -> Any:
    return receipt.stats.get(name, 0) if receipt else 0
