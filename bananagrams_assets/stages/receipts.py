"""Receipts: records of the inputs, settings, files and statistics of finished partitions.

A receipt (`receipts/<stage>/<partition>.json`) is written after the partition's files. It lists the stage's
code version, the values of its settings and the data version of every input. A data version is a digest of
the content, so a rebuild with equal content leaves downstream partitions current.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import RENAMED_SETTINGS, Profile, digest_of
from ..storage import paths
from ..storage.store import Conflict, FileInfo, MissingObject, Store
from .stage import Stage, StageResult, settings_values


@dataclass(frozen=True)
class Receipt:
    """The record of one finished partition. `asset` is the stage's name, `upstream` holds input versions."""

    asset: str
    partition: str
    version: str
    settings: Mapping[str, Any]
    upstream: Mapping[str, str]
    data_version: str
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


def read_receipt(store: Store, stage_name: str, partition: str) -> Receipt | None:
    """Return the receipt of a partition, or None if the partition was never finished."""
    try:
        content = json.loads(store.read(paths.receipt(stage_name, partition)))
    except MissingObject:
        return None
    content["files"] = {name: FileInfo(**info) for name, info in content["files"].items()}
    content["upstream"] = {RENAMED_SETTINGS.get(name, name): v for name, v in content["upstream"].items()}
    return Receipt(**content)


def read_preview(store: Store, stage_name: str, partition: str) -> bytes | None:
    """Return the preview JPEG stored beside a receipt, or None."""
    try:
        return store.read(paths.receipt_preview(stage_name, partition))
    except MissingObject:
        return None


def write_receipt(
    store: Store,
    profile: Profile,
    stage: Stage,
    partition: str,
    result: StageResult,
    upstream: Mapping[str, str],
) -> Receipt:
    """Record that a partition is finished. Call it after all files of the partition are in the store.

    An existing receipt of the same work by another run is kept. Raises Conflict for one of other work.
    """
    content = result.content or digest_of({name: info.sha256 for name, info in result.files.items()})
    settings = settings_values(profile, stage.settings)
    receipt = Receipt(
        stage.name, partition, stage.version, settings, dict(upstream), content, dict(result.files),
        dict(result.stats),
    )  # fmt: skip
    if result.preview:
        store.write(paths.receipt_preview(stage.name, partition), result.preview)
    document = dict(vars(receipt), files={name: vars(info) for name, info in result.files.items()})
    try:
        store.write(
            paths.receipt(stage.name, partition), json.dumps(document, sort_keys=True, indent=1).encode()
        )
    except Conflict:
        # The statistics of two runs of the same work differ in their timings.
        existing = read_receipt(store, stage.name, partition)
        if existing is None or _work(existing) != _work(receipt):
            raise
        return existing
    return receipt


def _work(receipt: Receipt) -> Any:
    """Return the parts of a receipt that are equal for equal work, as JSON values."""
    files = {name: vars(info) for name, info in receipt.files.items()}
    work = (receipt.version, receipt.settings, receipt.upstream, receipt.data_version, files)
    return json.loads(json.dumps(work))
