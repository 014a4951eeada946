"""The `split_index` stage: the contents of a split, for loaders and for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..records.attribution import parse_attribution
from ..storage import paths
from ..storage.hashed_files import HashingWriter, hashing_writer, write_file
from ..storage.sample_tar import SAMPLE_PARTS, read_samples
from ..storage.store import FileInfo, Store
from ..storage.tables import read_table
from ..vision.images import RGB, decode, decode_mask, encode_jpeg, fit
from .receipts import read_receipt
from .shards import FORMAT_VERSION, dataset_digest
from .stage import StageResult, StageRun
from .statistics import histogram, reason_kind, side_by_side

CARD_SAMPLES = 4
CARD_TILE_PX = 320
BAR_CELLS = 12
_CLASSES = ("edit_type", "category", "scope", "verdict")
_MAX_PIXELS = 2**28
_PREVIEW_LINK = "![Photographs, and the masks over them](samples.jpg)\n"
_TO_ROOT = "../../"
"""Path from a split's folder to the store's root. Relative links work on a disk and in a bucket."""
_ATTRIBUTION_COLUMNS = ("source_id", "samples", "title", "author", "license", "link", "dataset_license")


def index_split(run: StageRun) -> StageResult:
    """Write `index/<split>.json`, the attribution list, and a folder that other libraries load.

    The JSON holds: `shards`, each with its store `name`, `shard`, `samples`, `bytes` and `sha256`; the totals
    `samples` and `photographs`; counts by edit type, category, scope and verdict; histograms of mask area and
    confidence in ten bins of 0..1; `alignment`, the number of pairs and of aligned pairs, in total and by
    edit type; `rejected`, counts by stage and reason; licence and versions.

    `index/<split>/` holds the dataset card `README.md`, which configures Hugging Face `datasets`, and
    `wids.json`, the index of webdataset's `wids` module. Raises MissingObject for a missing shard.
    """
    store, split, license_ = run.store, run.partition, run.settings.source.license
    counts = _Counts()
    shards: list[dict[str, Any]] = []
    with hashing_writer(store, paths.index_attribution(split)) as attribution:
        _write_line(attribution, _ATTRIBUTION_COLUMNS)
        for shard in run.inputs["shards"]:
            rows = read_table(store, paths.shard_table(shard))
            written = [row for row in rows if row["status"] == "written"]
            counts.add(rows, written)
            # All samples of a photo are in one shard, so photos are counted shard by shard.
            counts.photos += _write_attributions(attribution, written, license_)
            shards.append(_shard_entry(store, shard, len(written)))
    index = {
        "split": split,
        "samples": len(counts.areas),
        "photographs": counts.photos,
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        **counts.as_index(),
        "license": license_,
        "version": FORMAT_VERSION,
        "config_digest": dataset_digest(run.settings),
    }
    files = _write_files(store, split, index, run.settings.source.manifests)
    run.log(f"{split}: {index['samples']:,} samples of {counts.photos:,} photos")
    stats = {name: value for name, value in index.items() if name not in ("shards", "alignment")}
    return StageResult(
        {**files, paths.index_attribution(split): attribution.info},
        {
            **stats,
            "shards": len(shards),
            "aligned": index["alignment"]["aligned"],
            "pairs": index["alignment"]["pairs"],
        },
    )


class _Counts:
    """Statistics of a split, collected from the rows of its shards."""

    def __init__(self) -> None:
        self.classes: dict[str, Counter[str]] = {name: Counter() for name in _CLASSES}
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.pairs: Counter[str] = Counter()
        self.aligned: Counter[str] = Counter()
        self.areas, self.confidences = array("d"), array("d")
        self.photos = 0

    def add(self, rows: Iterable[Mapping[str, Any]], written: Iterable[Mapping[str, Any]]) -> None:
        """Count all rows of a shard, and the written ones among them."""
        for row in rows:
            edit_type = row["edit_type"] or "unknown"
            if row["status"] != "written":
                self.rejected[row["stage"], reason_kind(row["reason"])] += 1
            if row["stage"] != "image_pairs":
                self.pairs[edit_type] += 1
                self.aligned[edit_type] += row["stage"] != "aligned_pairs"
        for row in written:
            for column in _CLASSES:
                self.classes[column][row[column] or "unknown"] += 1
            self.areas.append(row["area"])
            self.confidences.append(row["confidence"])

    def as_index(self) -> dict[str, Any]:
        """Return the entries of the index that hold statistics."""
        return {
            **{f"by_{name}": dict(sorted(counts.items())) for name, counts in self.classes.items()},
            "area_histogram": histogram(self.areas),
            "confidence_histogram": histogram(self.confidences),
            "median_area": _median(self.areas),
            "median_confidence": _median(self.confidences),
            "alignment": {
                "pairs": self.pairs.total(),
                "aligned": self.aligned.total(),
                "by_edit_type": {
                    name: {"pairs": count, "aligned": self.aligned[name]}
                    for name, count in sorted(self.pairs.items())
                },
            },
            "rejected": {
                stage: {text: count for (key, text), count in sorted(self.rejected.items()) if key == stage}
                for stage in sorted({stage for stage, _ in self.rejected})
            },
        }


def _shard_entry(store: Store, shard: str, samples: int) -> dict[str, Any]:
    name = paths.shard_tar(shard)
    info = _tar_info(store, shard, name)
    return {"shard": shard, "name": name, "samples": samples, "bytes": info.bytes, "sha256": info.sha256}


def _tar_info(store: Store, shard: str, name: str) -> FileInfo:
    """Return length and SHA-256 of a tar from its receipt, or by reading it if the receipt lacks it."""
    receipt = read_receipt(store, "shards", shard)
    if receipt is not None and name in receipt.files:
        return receipt.files[name]
    digest, length = hashlib.sha256(), 0
    with store.open(name) as file:
        while block := file.read(2**20):
            digest.update(block)
            length += len(block)
    return FileInfo(length, digest.hexdigest())


def _write_files(
    store: Store, split: str, index: dict[str, Any], manifests: Sequence[str]
) -> dict[str, FileInfo]:
    preview = _preview(store, index["shards"])
    contents = {
        paths.index_json(split): _json(index),
        paths.index_wids(split): _json(_wids(split, index["shards"])),
        paths.index_card(split): (_front_matter(index) + _card(index, manifests, bool(preview))).encode(),
        **({paths.index_image(split): preview} if preview else {}),
    }
    return {name: write_file(store, name, data) for name, data in contents.items()}


def _median(values: array[float]) -> float | None:
    return round(float(np.median(values)), 4) if values else None


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _write_attributions(file: HashingWriter, rows: Iterable[Mapping[str, Any]], license_: str) -> int:
    """Write a line for each photo of a shard's samples, sorted by `source_id`; return how many."""
    rows = list(rows)
    samples = Counter(row["source_id"] for row in rows)
    for source, row in sorted({row["source_id"]: row for row in rows}.items()):
        attribution = parse_attribution(row["attribution"], row["input_url"] or "")
        _write_line(file, (source, samples[source], *attribution, license_))
    return len(samples)


def _write_line(file: HashingWriter, cells: Iterable[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    file.write(text.getvalue().encode())


def _wids(split: str, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the index of the `wids` module: https://github.com/webdataset/webdataset, wids/wids_specs.py."""
    return {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": f"bananagrams-{split}",
        "shardlist": [
            {"url": _TO_ROOT + shard["name"], "nsamples": shard["samples"], "filesize": shard["bytes"]}
            for shard in shards
            if shard["samples"]
        ],
    }


def _front_matter(index: dict[str, Any]) -> str:
    """Return the YAML header that Hugging Face reads.

    See https://huggingface.co/docs/hub/datasets-manual-configuration. The features are listed because
    `datasets` infers them from the first samples, where fields of `meta.json` such as `rotation` may all be
    null. Shards without samples are left out because `datasets` infers features from the first shard.
    """
    kinds = {"jpg": "image", "png": "image", "json": "json"}
    features = [
        {"name": part, "dtype": kinds.get(part.rpartition(".")[2], "string")} for part in SAMPLE_PARTS
    ]
    features += [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    files = [_TO_ROOT + shard["name"] for shard in index["shards"] if shard["samples"]]
    content = {
        "license": "other",
        "task_categories": ["image-segmentation"],
        "configs": [{"config_name": "default", "data_files": [{"split": index["split"], "path": files}]}],
        "dataset_info": {"features": features},
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)}---\n"


def _preview(store: Store, shards: list[dict[str, Any]]) -> bytes | None:
    """Return a JPEG of the first samples, input and mask side by side; None without samples."""
    from ..vision.overlay import contact_sheet, mask_overlay

    strips: list[RGB] = []
    captions: list[list[str]] = []
    for shard in [shard for shard in shards if shard["samples"]][:1]:
        with store.open(shard["name"]) as file:
            for sample in islice(read_samples(file), CARD_SAMPLES):
                photo = decode(sample.parts["input.jpg"], _MAX_PIXELS)
                overlay = mask_overlay(photo, decode_mask(sample.parts["mask.png"]), CARD_TILE_PX)
                strips.append(side_by_side([fit(photo, CARD_TILE_PX), overlay]))
                captions.append([sample.parts["text.txt"].decode()])
    return encode_jpeg(contact_sheet(strips, captions), 85) if strips else None


def _card(index: dict[str, Any], manifests: Sequence[str], with_preview: bool) -> str:
    """Return the dataset card in Markdown, from the template `dataset_card.md.jinja`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "number": lambda value: "unknown" if value is None else f"{value:.2f}",
        "cell": lambda text: text.replace("|", "\\|").replace("\n", " "),
        "bar": lambda count, widest: "█" * -(-BAR_CELLS * count // widest),
    }
    return environment.get_template("dataset_card.md.jinja").render(
        index,
        parts=SAMPLE_PARTS,
        manifests=manifests,
        picture=_PREVIEW_LINK if with_preview else "",
        bins=list(zip(index["area_histogram"], index["confidence_histogram"], strict=True)),
        widest=max(1, *index["area_histogram"], *index["confidence_histogram"]),
        classes={name: index[f"by_{name}"] for name in _CLASSES},
        dropped=sum(sum(reasons.values()) for reasons in index["rejected"].values()),
    )
