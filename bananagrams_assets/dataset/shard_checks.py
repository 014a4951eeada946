"""Checks of finished dataset shards: readable samples, and no photo in two splits."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..storage import paths
from ..storage.sample_tar import SAMPLE_PARTS
from ..storage.store import MissingObject, Store


@dataclass(frozen=True)
class ReadBack:
    """The number of samples of a shard, and its faults, each with the sample's key."""

    samples: int
    faults: list[str]


def find_split_leaks(store: Store, shards: Iterable[str]) -> dict[str, list[str]]:
    """Return the source photos whose records are in more than one split: source_id → splits."""
    import numpy as np
    import pyarrow.parquet as parquet

    # An array takes 16 bytes per photo, a dictionary about ten times as much.
    columns: dict[str, list[Any]] = {}
    for shard in shards:
        with store.local_path(paths.manifest_table(shard)) as path:
            column = parquet.read_table(path, columns=["source_id"]).column("source_id").unique()
        columns.setdefault(paths.split_of(shard), []).append(np.array(column.to_pylist(), "S16"))
    sources = {split: np.unique(np.concatenate(parts)) for split, parts in columns.items()}
    leaks: dict[str, set[str]] = {}
    for one, other in itertools.combinations(sources, 2):
        for source in np.intersect1d(sources[one], sources[other], assume_unique=True):
            leaks.setdefault(source.decode(), set()).update((one, other))
    return {source: sorted(splits) for source, splits in sorted(leaks.items())}


def read_back(store: Store, name: str) -> ReadBack:
    """Read every sample of a shard with `webdataset`, as users of the dataset do.

    Faults are missing or undecodable parts, and an image, mask and metadata of different sizes.
    """
    import webdataset

    faults, samples = [], 0
    try:
        with store.local_path(name) as path:
            # An empty shard is reported by the check few_rejected.
            for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
                samples += 1
                faults += [f"{sample['__key__']}: {message}" for _, message in sample_faults(sample)]
    except MissingObject as error:
        faults.append(str(error))
    except Exception as error:  # webdataset raises any exception of tarfile, with the URL added
        faults.append(f"{store.describe(name)}: sample {samples + 1} cannot be read: {error}")
    return ReadBack(samples, faults)


def sample_faults(parts: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Check the parts of one sample. Returns (part, message) per fault."""
    if missing := [part for part in SAMPLE_PARTS if part not in parts]:
        return [(missing[0], f"{', '.join(missing)} missing")]
    faults: list[tuple[str, str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    for part in ("input.jpg", "mask.png"):
        try:
            sizes[part], fault = _image_size(part, parts[part])
            faults += [(part, fault)] if fault else []
        except (OSError, ValueError, SyntaxError) as error:
            faults.append((part, f"{part} cannot be decoded: {first_line(error)}"))
    try:
        meta = json.loads(parts["meta.json"])
        sizes["meta.json"] = (meta["width"], meta["height"])
    except (ValueError, KeyError, TypeError) as error:
        faults.append(("meta.json", f"meta.json cannot be read: {first_line(error)}"))
    for part in ("text.txt", "summary.txt"):
        try:
            parts[part].decode()
        except UnicodeDecodeError as error:
            faults.append((part, f"{part} is not UTF-8: {error}"))
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{part} {size[0]} x {size[1]}" for part, size in sizes.items())
        faults.append(("mask.png", f"sizes disagree: {listed}"))
    return faults


def _image_size(part: str, data: bytes) -> tuple[tuple[int, int], str]:
    """Decode an image. Returns (width, height), and the fault of an invalid mask or ""."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if part == "mask.png":
            values = sorted(value for _, value in image.getcolors() or [(0, -1)])
            if image.mode != "L" or not set(values) <= {0, 255}:
                return (
                    image.size,
                    f"{part} is not single-channel 0/255 (mode {image.mode}, values {values[:5]})",
                )
        return image.size, ""


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
