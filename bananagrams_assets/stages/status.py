"""How far a data set is: every shard's pictures, from receipts and from what runs have left so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..config import Profile
from ..fetching.spool import images_in, spool_folder
from ..storage.store import Store
from .stage import Receipt, read_receipt

_READERS = 8


@dataclass(frozen=True)
class ShardStatus:
    """One shard: `records` in the manifest, and what came of the `done` ones among them.

    `to_retry` counts failures that may pass, `waiting` pictures of an unfinished run on this machine;
    `bytes` is what was received, `pictures` and `seconds` what the shard's last run fetched and took.
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
    """All shards, their total (under the name `total`), and what is left.

    `pictures_per_s` is the rate of the runs so far, None where none has fetched anything; `left_s` the
    time for the rest at that rate, one run at a time, None where there is no rate to tell it by.
    """

    shards: Sequence[ShardStatus]
    total: ShardStatus
    images_per_s: float | None
    left_s: float | None


def status_of(store: Store, profile: Profile) -> Status:
    """Where every shard of the profile stands. Raises StoreError."""
    with ThreadPoolExecutor(_READERS) as pool:
        shards = list(pool.map(lambda shard: _shard(store, shard), profile.shard_keys()))
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
    left = missing / rate if rate else (0.0 if not missing else None)
    return Status(shards, total, rate, left)


def retryable_failures(store: Store, shard: str) -> int:
    """How many rows of a finished shard are worth asking for again."""
    return int(_stat(read_receipt(store, "image_pairs", shard), "to_retry"))


def _shard(store: Store, shard: str) -> ShardStatus:
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
