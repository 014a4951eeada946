"""The `split_index` stage: what a split holds, for loaders and for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from typing import Any

from ..config import Profile
from . import layout
from .product import FileInfo, Product, Say, write_file
from .shards import FORMAT_VERSION, PARTS, dataset_digest
from .stages import read_receipt
from .store import Store
from .summary import histogram, kind_of, median
from .tables import read_table

_CLASSES = ("edit_type", "category", "scope", "verdict")


def index_split(store: Store, profile: Profile, split: str, say: Say) -> Product:
    """Write `index/<split>.json`, the dataset card and the attribution list.

    In the JSON: `shards`, each with its store `name`, `shard`, `samples`, `bytes` and `sha256`; `samples`
    and `photographs` in all; counts by edit type, category, scope and verdict; histograms of mask area
    and confidence in ten bins of 0..1; `rejected` counts by stage and reason; licence and versions.
    Raises MissingObject where a shard is not there.
    """
    shards: list[dict[str, Any]] = []
    classes: dict[str, Counter[str]] = {name: Counter() for name in _CLASSES}
    rejected: Counter[tuple[str, str]] = Counter()
    credits: dict[str, list[Any]] = {}
    areas: list[float] = []
    confidences: list[float] = []
    for shard in profile.shard_keys(split):
        name = layout.shard_tar(shard)
        written = 0
        for row in read_table(store, layout.shard_table(shard)):
            if row["status"] != "written":
                rejected[row["stage"], kind_of(row["reason"])] += 1
                continue
            written += 1
            for column in _CLASSES:
                classes[column][row[column] or "unknown"] += 1
            areas.append(row["area"])
            confidences.append(row["confidence"])
            credits.setdefault(row["source_id"], [row["attribution"], 0])[1] += 1
        info = _tar_info(store, shard, name)
        shards.append(
            {"shard": shard, "name": name, "samples": written, "bytes": info.bytes, "sha256": info.sha256}
        )
    index = {
        "split": split,
        "samples": len(areas),
        "photographs": len(credits),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        **{f"by_{name}": dict(sorted(found.items())) for name, found in classes.items()},
        "area_histogram": histogram(areas),
        "confidence_histogram": histogram(confidences),
        "median_area": median(areas),
        "median_confidence": median(confidences),
        "rejected": {
            stage: {reason: count for (at, reason), count in sorted(rejected.items()) if at == stage}
            for stage in sorted({stage for stage, _ in rejected})
        },
        "license": profile.source.license,
        "version": FORMAT_VERSION,
        "config_digest": dataset_digest(profile),
    }
    texts = {
        layout.index_json(split): json.dumps(index, indent=1, ensure_ascii=False) + "\n",
        layout.index_card(split): _card(index, profile),
        layout.index_attribution(split): _attribution_list(credits, profile.source.license),
    }
    files = {name: write_file(store, name, text.encode()) for name, text in texts.items()}
    say(f"{split}: {index['samples']:,} samples of {index['photographs']:,} photographs")
    stats = {name: value for name, value in index.items() if name != "shards"}
    return Product(files, {**stats, "shards": len(shards)})


def _tar_info(store: Store, shard: str, name: str) -> FileInfo:
    """Length and SHA-256 of a tar: as its receipt says, else by reading it."""
    receipt = read_receipt(store, "shards", shard)
    if receipt is not None and name in receipt.files:
        return receipt.files[name]
    digest, length = hashlib.sha256(), 0
    with store.open(name) as file:
        while block := file.read(2**20):
            digest.update(block)
            length += len(block)
    return FileInfo(length, digest.hexdigest())


def _attribution_list(credits: dict[str, list[Any]], licence: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["source_id", "samples", "attribution", "dataset_license"])
    for source, (attribution, samples) in sorted(credits.items()):
        writer.writerow([source, samples, attribution, licence])
    return file.getvalue()


def _card(index: dict[str, Any], profile: Profile) -> str:
    """The dataset card, in Markdown."""
    split = index["split"]
    dropped = sum(sum(reasons.values()) for reasons in index["rejected"].values())
    text = f"""\
# Edit masks: {split} split

{index["samples"]:,} samples of {index["photographs"]:,} photographs in {len(index["shards"])} shards,
{index["bytes"] / 1e6:,.1f} MB. Format version {index["version"]}, configuration {index["config_digest"]}.

## A sample

Five files of one key in a WebDataset tar: {", ".join(f"`{part}`" for part in PARTS)}. `mask.png` is
single-channel, 255 where the edit changed the photograph, of the size of `input.jpg`. Outside the polygon
`overlap` of `meta.json` nothing is known about the edit. All edits of one photograph are in one split.

## How it was made

Records from {", ".join(profile.source.manifests)}. Each edited picture was aligned with its input by SIFT
features; the mask is the colour difference that noise, tone and movement do not explain. Masks are made by
this measurement and not by people: filter by `mask.confidence` where precision matters. A mask of verdict
`global` covers the whole overlap, one of verdict `nothing` is empty.

Median mask area {_number(index["median_area"])} of the overlap; median confidence
{_number(index["median_confidence"])}.

| share | masks of this area | masks of this confidence |
|---|---|---|
"""
    for bin_, (area, confidence) in enumerate(
        zip(index["area_histogram"], index["confidence_histogram"], strict=True)
    ):
        text += f"| {bin_ / 10:.1f} to {(bin_ + 1) / 10:.1f} | {area:,} | {confidence:,} |\n"
    for name in _CLASSES:
        text += f"\n## By {name.replace('_', ' ')}\n\n| {name} | samples |\n|---|---|\n"
        text += "".join(f"| {value} | {count:,} |\n" for value, count in index[f"by_{name}"].items())
    text += f"\n## Records that gave no sample: {dropped:,}\n\n| stage | reason | records |\n|---|---|---|\n"
    for stage, reasons in index["rejected"].items():
        text += "".join(f"| {stage} | {_cell(reason)} | {count:,} |\n" for reason, count in reasons.items())
    return (
        text
        + f"""
## Licence

{index["license"]}

The photographs and their authors: `{split}.attribution.csv`.
"""
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
