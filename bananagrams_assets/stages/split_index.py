"""The `split_index` stage: what a split holds, for loaders and for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import yaml

from ..config import Profile
from ..progress import Log
from ..records.attribution import read_credit
from ..storage import paths
from ..storage.files import HashingWriter, hashing_writer, write_file
from ..storage.sample_tar import read_samples
from ..storage.store import FileInfo, Store
from ..storage.tables import read_table
from ..vision.images import RGB, decode, decode_mask, encode_jpeg, fit
from .shards import FORMAT_VERSION, PARTS, dataset_digest
from .stage import StageResult, read_receipt
from .statistics import histogram, kind_of, side_by_side

CARD_SAMPLES = 4
CARD_TILE_PX = 320
_CLASSES = ("edit_type", "category", "scope", "verdict")
_MAX_PIXELS = 2**28
PICTURE = "![Photographs, and the masks over them](samples.jpg)\n"
_TO_SHARDS = "../../"
"""From a split's folder to the store's root: links in it are relative, on a disk and in a bucket alike."""


def index_split(store: Store, profile: Profile, split: str, log: Log) -> StageResult:
    """Write `index/<split>.json`, the attribution list, and a folder that other libraries load.

    In the JSON: `shards`, each with its store `name`, `shard`, `samples`, `bytes` and `sha256`; `samples`
    and `photographs` in all; counts by edit type, category, scope and verdict; histograms of mask area
    and confidence in ten bins of 0..1; `alignment`, how many pairs there were and how many were aligned, in
    all and by edit type; `rejected` counts by stage and reason; licence and versions.

    `index/<split>/` holds the dataset card, `README.md`, which is also what Hugging Face `datasets` loads the
    folder by, and `wids.json`, the index of the `wids` module of webdataset. Raises MissingObject where a
    shard is not there.
    """
    shards: list[dict[str, Any]] = []
    classes: dict[str, Counter[str]] = {name: Counter() for name in _CLASSES}
    rejected: Counter[tuple[str, str]] = Counter()
    pairs: Counter[str] = Counter()
    aligned: Counter[str] = Counter()
    photos = 0
    areas, confidences = array("d"), array("d")
    with hashing_writer(store, paths.index_attribution(split)) as attribution:
        _write_line(
            attribution, ("source_id", "samples", "title", "author", "license", "link", "dataset_license")
        )
        for shard in profile.shard_keys(split):
            rows = read_table(store, paths.shard_table(shard))
            written = [row for row in rows if row["status"] == "written"]
            for row in rows:
                type_ = row["edit_type"] or "unknown"
                if row["status"] != "written":
                    rejected[row["stage"], kind_of(row["reason"])] += 1
                if row["stage"] != "image_pairs":
                    pairs[type_] += 1
                    aligned[type_] += row["stage"] != "aligned_pairs"
            for row in written:
                for column in _CLASSES:
                    classes[column][row[column] or "unknown"] += 1
                areas.append(row["area"])
                confidences.append(row["confidence"])
            # All samples of a photograph are in one shard, so no list of the whole split is kept.
            photos += _write_credits(attribution, written, profile.source.license)
            name = paths.shard_tar(shard)
            info = _tar_info(store, shard, name)
            shards.append(
                {
                    "shard": shard,
                    "name": name,
                    "samples": len(written),
                    "bytes": info.bytes,
                    "sha256": info.sha256,
                }
            )
    index = {
        "split": split,
        "samples": len(areas),
        "photographs": photos,
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        **{f"by_{name}": dict(sorted(found.items())) for name, found in classes.items()},
        "area_histogram": histogram(areas),
        "confidence_histogram": histogram(confidences),
        "median_area": _median(areas),
        "median_confidence": _median(confidences),
        "alignment": {
            "pairs": pairs.total(),
            "aligned": aligned.total(),
            "by_edit_type": {
                name: {"pairs": count, "aligned": aligned[name]} for name, count in sorted(pairs.items())
            },
        },
        "rejected": {
            stage: {reason: count for (at, reason), count in sorted(rejected.items()) if at == stage}
            for stage in sorted({stage for stage, _ in rejected})
        },
        "license": profile.source.license,
        "version": FORMAT_VERSION,
        "config_digest": dataset_digest(profile),
    }
    image = _image(store, shards)
    contents = {
        paths.index_json(split): _json(index),
        paths.index_wids(split): _json(_wids(split, shards)),
        paths.index_card(split): (_front_matter(index) + _card(index, profile, bool(image))).encode(),
        **({paths.index_image(split): image} if image else {}),
    }
    files = {name: write_file(store, name, data) for name, data in contents.items()}
    log(f"{split}: {index['samples']:,} samples of {photos:,} photographs")
    stats = {name: value for name, value in index.items() if name not in ("shards", "alignment")}
    total = index["alignment"]
    return StageResult(
        {**files, paths.index_attribution(split): attribution.info},
        {**stats, "shards": len(shards), "aligned": total["aligned"], "pairs": total["pairs"]},
    )


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


def _median(values: array[float]) -> float | None:
    return round(float(np.median(values)), 4) if values else None


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _write_credits(file: HashingWriter, rows: Iterable[dict[str, Any]], licence: str) -> int:
    """A line for each photograph of a shard's samples, in order of `source_id`; returns how many."""
    samples = Counter(row["source_id"] for row in rows)
    for source, row in sorted({row["source_id"]: row for row in rows}.items()):
        credit = read_credit(row["attribution"], row["input_url"] or "")
        _write_line(file, (source, samples[source], *credit, licence))
    return len(samples)


def _write_line(file: HashingWriter, cells: Iterable[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    file.write(text.getvalue().encode())


def _wids(split: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """As the `wids` module reads it: https://github.com/webdataset/webdataset, wids/wids_specs.py."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": f"bananagrams-{split}",
        "shardlist": [
            {"url": _TO_SHARDS + shard["name"], "nsamples": shard["samples"], "filesize": shard["bytes"]}
            for shard in shards
            if shard["samples"]
        ],
    }


def _front_matter(index: dict[str, Any]) -> str:
    """What Hugging Face reads before a card: https://huggingface.co/docs/hub/datasets-manual-configuration.

    Shards without samples are left out, since features are sought in the first. They are named here because
    what `meta.json` holds is not guessed right from a few samples: `rotation` may be null in all of those.
    """
    kinds = {"jpg": "image", "png": "image", "json": "json"}
    features = [{"name": part, "dtype": kinds.get(part.rpartition(".")[2], "string")} for part in PARTS]
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    files = [_TO_SHARDS + shard["name"] for shard in index["shards"] if shard["samples"]]
    content = {
        "license": "other",
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": [{"split": index["split"], "path": files}]}],
        "dataset_info": {"features": features},
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _image(store: Store, shards: list[dict[str, Any]]) -> bytes | None:
    """The first samples, photograph and mask, as JPEG."""
    from ..vision.overlay import sheet, tinted

    strips: list[RGB] = []
    captions: list[list[str]] = []
    for shard in [shard for shard in shards if shard["samples"]][:1]:
        with store.open(shard["name"]) as file:
            for sample in islice(read_samples(file), CARD_SAMPLES):
                photo = decode(sample.parts["input.jpg"], _MAX_PIXELS)
                over = tinted(photo, decode_mask(sample.parts["mask.png"]), CARD_TILE_PX)
                strips.append(side_by_side([fit(photo, CARD_TILE_PX), over]))
                captions.append([sample.parts["text.txt"].decode()])
    return encode_jpeg(sheet(strips, captions), 85) if strips else None


def _card(index: dict[str, Any], profile: Profile, with_image: bool) -> str:
    """The dataset card, in Markdown."""
    split = index["split"]
    dropped = sum(sum(reasons.values()) for reasons in index["rejected"].values())
    alignment = index["alignment"]
    share = f"{alignment['aligned'] / alignment['pairs']:.1%}" if alignment["pairs"] else "none"
    text = f"""\
# Edit masks: {split} split

{index["samples"]:,} samples of {index["photographs"]:,} photographs in {len(index["shards"])} shards,
{index["bytes"] / 1e6:,.1f} MB. Format version {index["version"]}, configuration {index["config_digest"]}.

{PICTURE if with_image else ""}
## How to read it

```python
import datasets, webdataset

datasets.load_dataset("index/{split}")  # this folder
webdataset.WebDataset("shards/{split}/{split}-{{00000..{len(index["shards"]) - 1:05d}}}.tar")
```

`wids.json` beside this card is the same for random access through `wids.ShardListDataset`.

## A sample

Five files of one key in a WebDataset tar: {", ".join(f"`{part}`" for part in PARTS)}. `mask.png` is
single-channel, 255 where the edit changed the photograph, of the size of `input.jpg`. Outside the polygon
`overlap` of `meta.json` nothing is known about the edit. All edits of one photograph are in one split.

## How it was made

Records from {", ".join(profile.source.manifests)}. Each edited picture was aligned with its input by SIFT
features; the mask is the colour difference that noise, tone and movement do not explain. Masks are made by
this measurement and not by people: filter by `mask.confidence` where precision matters. A mask of verdict
`global` covers the whole overlap, one of verdict `nothing` is empty.

{alignment["aligned"]:,} of {alignment["pairs"]:,} pairs were aligned ({share}). Median mask area
{_number(index["median_area"])} of the overlap; median confidence {_number(index["median_confidence"])}.

| share | masks of this area | | masks of this confidence | |
|---|--:|---|--:|---|
"""
    widest = max(1, *index["area_histogram"], *index["confidence_histogram"])
    for bin_, (area, confidence) in enumerate(
        zip(index["area_histogram"], index["confidence_histogram"], strict=True)
    ):
        bars = ["█" * -(-12 * count // widest) for count in (area, confidence)]
        cells = (
            f"{bin_ / 10:.1f} to {(bin_ + 1) / 10:.1f}",
            f"{area:,}",
            bars[0],
            f"{confidence:,}",
            bars[1],
        )
        text += f"| {' | '.join(cells)} |\n"
    for name in _CLASSES:
        text += f"\n## By {name.replace('_', ' ')}\n\n| {name} | samples |\n|---|---|\n"
        text += "".join(f"| {_cell(value)} | {count:,} |\n" for value, count in index[f"by_{name}"].items())
    text += f"\n## Records that gave no sample: {dropped:,}\n\n| stage | reason | records |\n|---|---|---|\n"
    for stage, reasons in index["rejected"].items():
        text += "".join(f"| {stage} | {_cell(reason)} | {count:,} |\n" for reason, count in reasons.items())
    return (
        text
        + f"""
## Licence

{index["license"]}

The photographs, their authors and licences: [`{split}.attribution.csv`](../{split}.attribution.csv).
"""
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
