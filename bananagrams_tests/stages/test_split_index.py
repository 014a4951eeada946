"""The files in the index of a split: index, card, attribution list, WIDS index."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bananagrams_assets.graph import SPLIT_INDEX
from bananagrams_assets.records.attribution import Attribution, format_attribution, parse_attribution
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import sample_writer
from bananagrams_assets.storage.tables import SHARDS_COLUMNS, write_table
from bananagrams_assets.vision.images import encode_jpeg, encode_png_mask

from ..photos import make_photo, profile_of
from .building import call

PROFILE = profile_of(splits={"train": {"ratio": 0.6, "shards": 3}})
DUNE = Attribution("A dune, by night", "Ann", "CC BY 2.0", "https://photos.example.org/dune")


def make_split(folder: Path) -> LocalStore:
    """Write and index three train shards of 0, 7 and 2 samples. Only the last has a number as `rotation`."""
    store = LocalStore(folder)
    number = 0
    for shard, count in zip(PROFILE.shard_keys("train"), (0, 7, 2), strict=True):
        rows = []
        with sample_writer(store, paths.shard_tar(shard)) as tar:
            for _ in range(count):
                rows.append(add_sample(tar, number))
                number += 1
        dropped = {"status": "dropped", "edit_type": "Zoom in", "reason": "no inliers"}
        rows.append({**dropped, "key": f"x-{shard}", "stage": "aligned_pairs"})
        rows.append({**dropped, "key": f"y-{shard}", "stage": "image_pairs"})
        write_table(store, paths.shard_table(shard), SHARDS_COLUMNS, rows)
    call(SPLIT_INDEX, store, PROFILE, "train")
    return store


def add_sample(tar: object, number: int) -> dict[str, object]:
    """Write a sample; return its row in the table of the shard."""
    photo = make_photo(number, (64, 48))
    mask = np.zeros((48, 64), bool)
    mask[10:20, 10:40] = True
    key = f"sft-{number:03d}"
    meta = {"key": key, "rotation": 90 if number == 8 else None, "mask": {"confidence": 0.9}}
    parts = {
        "input.jpg": encode_jpeg(photo, 90),
        "mask.png": encode_png_mask(mask, one_bit=False),
        "text.txt": f"Remove | number {number}.".encode(),
        "summary.txt": b"Removed.",
        "meta.json": json.dumps(meta).encode(),
    }
    for part, data in parts.items():
        tar.add(key, part, data)  # type: ignore[attr-defined]
    return {
        "key": key, "status": "written", "stage": "", "reason": "", "edit_type": "Remove an existing object",
        "category": "Object", "scope": "local", "verdict": "local", "area": 0.1, "confidence": 0.9,
        "source_id": f"{number // 2:016x}", "attribution": format_attribution(DUNE),
        "input_url": f"https://photos.example.org/{number // 2}.jpg",
    }  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return make_split(tmp_path_factory.mktemp("split"))


def test_the_index_counts_pairs_that_were_aligned(store: LocalStore) -> None:
    index = json.loads(store.read(paths.index_json("train")))
    assert (index["samples"], [shard["samples"] for shard in index["shards"]]) == (9, [0, 7, 2])
    assert (index["alignment"]["pairs"], index["alignment"]["aligned"]) == (12, 9)
    assert index["alignment"]["by_edit_type"]["Zoom in"] == {"pairs": 3, "aligned": 0}
    assert index["rejected"] == {"aligned_pairs": {"no inliers": 3}, "image_pairs": {"no inliers": 3}}
    assert (index["median_confidence"], index["median_area"]) == (0.9, 0.1)


def test_each_photo_has_a_line_with_author_license_and_link(store: LocalStore) -> None:
    rows = list(csv.DictReader(store.read(paths.index_attribution("train")).decode().splitlines()))
    # Samples 6 and 7 share a photo but not a shard, which no build does. The photo has a line per shard.
    assert [row["samples"] for row in rows] == ["2", "2", "2", "1", "1", "1"]
    assert {(row["title"], row["author"], row["license"], row["link"]) for row in rows} == {DUNE}
    assert {row["dataset_license"] for row in rows} == {PROFILE.source.license}


@pytest.mark.parametrize(
    "attribution",
    [
        DUNE,
        Attribution("Sun, sea", "A · B, C", "", "https://example.org/a b".replace(" ", "%20")),
        Attribution(
            "photograph", "", "https://creativecommons.org/licenses/by/2.0/", "https://example.org/1"
        ),
        Attribution("photograph", "Ann", "public domain, NASA", "https://example.org/1"),
    ],
)
def test_a_formatted_attribution_is_parsed_back(attribution: Attribution) -> None:
    line = format_attribution(attribution)
    assert parse_attribution(line, "https://example.org/photo") == attribution._replace(
        author=attribution.author.replace(" · ", " - ")
    )


def test_a_photo_without_metadata_is_linked_by_its_url() -> None:
    assert parse_attribution("photograph: https://a.example/1.jpg", "https://a.example/1.jpg") == Attribution(
        "", "", "", "https://a.example/1.jpg"
    )
    licence = "https://creativecommons.org/licenses/by/2.0/"
    assert parse_attribution(f"A by B · {licence}", "https://a.example/2.jpg") == Attribution(
        "A", "B", licence, "https://a.example/2.jpg"
    )


def test_the_card_has_an_image_and_the_share_of_aligned_pairs(store: LocalStore) -> None:
    card = store.read(paths.index_card("train")).decode()
    assert "![Photographs, and the masks over them](samples.jpg)" in card
    assert "9 of 12 pairs were aligned (75.0%)" in card
    assert store.read(paths.index_image("train")).startswith(b"\xff\xd8")


def test_hugging_face_datasets_loads_a_split(store: LocalStore, tmp_path: Path) -> None:
    """Load the split in its own process, because the library reads its settings when it is imported."""
    program = """
import sys
from datasets import load_dataset
for streaming in (False, True):
    rows = list(load_dataset(sys.argv[1], streaming=streaming)["train"])
    assert [row["__key__"] for row in rows] == [f"sft-{number:03d}" for number in range(9)], rows
    assert rows[0]["input.jpg"].size == rows[0]["mask.png"].size == (64, 48)
    assert (rows[0]["mask.png"].mode, rows[3]["text.txt"]) == ("L", "Remove | number 3.")
    assert [row["meta.json"]["rotation"] for row in rows] == [None] * 8 + [90]
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder = store.folder / "index/train"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment)


def test_the_wids_index_lists_each_shard_with_samples(store: LocalStore) -> None:
    content = json.loads(store.read(paths.index_wids("train")))
    assert (content["__kind__"], content["wids_version"]) == ("wids-shard-index-v1", 1)
    assert [shard["nsamples"] for shard in content["shardlist"]] == [7, 2]
    for shard in content["shardlist"]:
        path = store.folder / "index/train" / shard["url"]
        assert path.resolve().stat().st_size == shard["filesize"]
