"""Read a dataset back and say what is wrong with it."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import layout
from .store import MissingObject, Store

PARTS = ("input.jpg", "mask.png", "text.txt", "summary.txt", "meta.json")


@dataclass(frozen=True)
class ReadBack:
    """Samples that a shard holds, and each fault found, with the sample's key."""

    samples: int
    faults: list[str]


def photographs_in_two_splits(store: Store, shards: Iterable[str]) -> dict[str, list[str]]:
    """Source photographs whose records are in more than one split: source_id → splits."""
    import numpy as np
    import pyarrow.parquet as parquet

    # Sixteen bytes a photograph: a dictionary of a large set's would be a tenfold of that.
    found: dict[str, list[Any]] = {}
    for shard in shards:
        with store.local_path(layout.manifest_table(shard)) as path:
            column = parquet.read_table(path, columns=["source_id"]).column("source_id").unique()
        found.setdefault(layout.split_of(shard), []).append(np.array(column.to_pylist(), "S16"))
    splits = {split: np.unique(np.concatenate(parts)) for split, parts in found.items()}
    leaks: dict[str, set[str]] = {}
    for one, other in itertools.combinations(splits, 2):
        for source in np.intersect1d(splits[one], splits[other], assume_unique=True):
            leaks.setdefault(source.decode(), set()).update((one, other))
    return {source: sorted(among) for source, among in sorted(leaks.items())}


def read_back(store: Store, name: str) -> ReadBack:
    """Read every sample of a dataset shard through `webdataset`, as its users do.

    A fault is a part that is missing or cannot be decoded, or a mask, picture and metadata that
    disagree about the size, each with the sample's key.
    """
    import webdataset

    faults, samples = [], 0
    try:
        with store.local_path(name) as path:
            # An empty shard is a finding of its own (few_rejected), not a fault of the tar.
            for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
                samples += 1
                faults += [f"{sample['__key__']}: {fault}" for fault in _faults(sample)]
    except MissingObject as error:
        faults.append(str(error))
    except Exception as error:  # webdataset raises whatever tarfile does, with the URL added
        faults.append(f"{store.describe(name)}: sample {samples + 1} cannot be read: {error}")
    return ReadBack(samples, faults)


def _faults(sample: dict[str, bytes]) -> list[str]:
    from PIL import Image

    if missing := [part for part in PARTS if part not in sample]:
        return [f"{', '.join(missing)} missing"]
    try:
        meta = json.loads(sample["meta.json"])
        with (
            Image.open(io.BytesIO(sample["input.jpg"])) as photograph,
            Image.open(io.BytesIO(sample["mask.png"])) as mask,
        ):
            photograph.load()
            mask.load()
            sizes = {photograph.size, mask.size, (meta["width"], meta["height"])}
            values = {value for _, value in mask.getcolors() or []}
            mode = mask.mode
        sample["text.txt"].decode(), sample["summary.txt"].decode()
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        return [f"a part cannot be decoded: {error}"]
    faults = []
    if len(sizes) > 1:
        faults.append(f"sizes of picture, mask and metadata disagree: {sorted(sizes)}")
    if mode != "L" or not values <= {0, 255}:
        faults.append(f"mask.png is not single-channel 0/255 (mode {mode}, values {sorted(values)[:5]})")
    return faults
