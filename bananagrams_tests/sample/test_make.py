from __future__ import annotations

import csv
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from bananagrams_assets.config import SampleSettings, SplitsSettings
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.records.edit_types import EDIT_TYPES
from bananagrams_assets.records.manifest_line import assign, source_id
from bananagrams_assets.sample import make
from bananagrams_assets.sample.make import FAMILY_COUNTS, ensure_sample, make_sample
from bananagrams_assets.sample.photos import PhotoError
from bananagrams_assets.sample.words import FAMILIES

from .conftest import SMALL, Made

TINY = SampleSettings(pairs=3, side_px=128)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_bytes_are_the_same_again_whatever_the_worker_count(made: Made, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL, workers=1)
    assert _bytes(tmp_path) == _bytes(made.folder)


def test_a_pair_depends_on_no_other_pair(made: Made, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL.model_copy(update={"pairs": 5}))
    assert _lines(tmp_path / "sft.jsonl") == _lines(made.folder / "sft.jsonl")[:5]
    name = "images/positive-edit/5.png"
    assert (tmp_path / name).read_bytes() == (made.folder / name).read_bytes()


def test_another_seed_gives_other_pairs(made: Made, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL.model_copy(update={"pairs": 5, "seed": 1}))
    assert _lines(tmp_path / "sft.jsonl") != _lines(made.folder / "sft.jsonl")[:5]


def test_records_have_the_manifest_s_shape(made: Made) -> None:
    records = _lines(made.folder / "sft.jsonl")
    assert len(records) == SMALL.pairs == made.report["pairs"]
    assert len({record["output_image"] for record in records}) == len(records)
    known = {kind.name for kind in EDIT_TYPES}
    for record in records:
        assert list(record) == [
            "open_image_input_url",
            "text",
            "output_image",
            "edit_type",
            "summarized_text",
            "local_input_image",
        ]
        assert record["edit_type"] in known
        assert re.fullmatch(
            r"https://raw\.githubusercontent\.com/\S+#xywh=\d+,\d+,\d+,\d+", record["open_image_input_url"]
        )
        assert record["text"].endswith(".")
        assert "{" not in record["text"] + record["summarized_text"]
        assert len(record["text"].split()) <= 18


def test_each_mask_is_binary_and_of_the_input_s_size(made: Made) -> None:
    for record, truth in zip(
        _lines(made.folder / "sft.jsonl"), _lines(made.folder / "truth.jsonl"), strict=True
    ):
        with Image.open(made.folder / record["local_input_image"]) as before:
            assert before.format == "JPEG"
            assert max(before.size) <= SMALL.side_px
            size = before.size
        with Image.open(made.folder / record["output_image"]) as after:
            assert (after.format, after.mode) == ("PNG", "RGB")
        mask = np.asarray(Image.open(made.folder / truth["mask"]))
        assert mask.dtype == np.uint8
        assert (mask.shape[1], mask.shape[0]) == size
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.any()
        assert bool(mask.all()) >= truth["is_global"]


def test_truth_s_homography_maps_the_edited_image_s_center_near_the_input_s(made: Made) -> None:
    for truth, record in zip(
        _lines(made.folder / "truth.jsonl"), _lines(made.folder / "sft.jsonl"), strict=True
    ):
        assert truth["output_image"] == record["output_image"]
        homography = np.array(truth["homography"]).reshape(3, 3)
        assert homography[2, 2] == 1
        with Image.open(made.folder / record["local_input_image"]) as opened:
            before = np.array(opened.size)
        with Image.open(made.folder / record["output_image"]) as opened:
            edited = np.array(opened.size)
        mapped = homography @ np.array([*((edited - 1) / 2), 1])
        assert np.all(np.abs(mapped[:2] / mapped[2] - (before - 1) / 2) <= 0.02 * max(before))


def test_most_edits_are_local_and_every_family_is_dealt() -> None:
    kinds = {kind.name: kind.scope for kind in EDIT_TYPES}
    scopes: Counter[str] = Counter()
    for family, count in FAMILY_COUNTS.items():
        scopes[kinds[FAMILIES[family][0]]] += count
    assert set(FAMILY_COUNTS) == set(FAMILIES)
    assert 0.75 <= scopes["local"] / scopes.total() <= 0.8
    assert set(scopes) == {"local", "global"}


def test_tiles_of_one_photograph_are_one_source_in_one_split(made: Made) -> None:
    sources: dict[str, set[str]] = {}
    fragments: Counter[str] = Counter()
    for record in _lines(made.folder / "sft.jsonl"):
        url = record["open_image_input_url"]
        sources.setdefault(url.split("#")[0], set()).add(source_id(url))
        fragments[urlsplit(url).fragment] += 1
    assert all(len(found) == 1 for found in sources.values())
    assert len(set.union(*sources.values())) == len(sources) == made.report["photos"]
    assert len(fragments) > len(sources) / 2


def test_the_demo_profile_spreads_the_photographs_over_splits_and_shards(made: Made) -> None:
    splits: SplitsSettings = load_profile("demo").profile.splits
    pairs: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    photos: dict[str, set[str]] = {}
    for record in _lines(made.folder / "sft.jsonl"):
        source = source_id(record["open_image_input_url"])
        split, shard = assign(source, splits)
        pairs[split] += 1
        shards[shard] += 1
        photos.setdefault(split, set()).add(source)
    assert all(len(found) >= 2 for found in photos.values())
    for split in ("dev", "test"):
        assert 0.12 <= pairs[split] / pairs.total() <= 0.25
    train = [shards[key] for key in load_profile("demo").profile.shard_keys("train")]
    assert min(train) > 0
    assert max(train) <= 2 * min(train)


def test_attribution_names_every_photograph_and_its_licence(made: Made) -> None:
    with (made.folder / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    used = {record["open_image_input_url"].split("#")[0] for record in _lines(made.folder / "sft.jsonl")}
    assert {row["url"] for row in rows} == used
    assert all(all(value for value in row.values()) for row in rows)


def test_a_folder_of_photographs_leaves_out_broken_files_with_a_note(made: Made, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    good = (made.folder / "photos/1.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(good)
    (photos / "copy of a.jpg").write_bytes(good)
    (photos / "broken.jpg").write_bytes(good[: len(good) // 2])
    (photos / "notes.txt").write_text("not a picture")
    Image.new("RGBA", (40, 40), (9, 9, 9, 128)).save(photos / "small.png")
    rgba = np.random.default_rng(0).integers(0, 256, (120, 200, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(photos / "inner/b.webp")
    said: list[str] = []
    report = make_sample(tmp_path / "out", TINY.model_copy(update={"pairs": 6}), photos, said.append)
    assert report["by_photo"] == {"a.jpg": 2, "copy of a.jpg": 2, "inner/b.webp": 2}
    assert [line for line in said if "broken.jpg" in line]
    assert [line for line in said if "small.png" in line]
    # Copies of one photograph are one source: they never fall in two splits.
    sources = {source_id(record["open_image_input_url"]) for record in _lines(tmp_path / "out" / "sft.jsonl")}
    assert len(sources) == 2


def test_no_usable_photograph_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(PhotoError, match="no readable photograph"):
        make_sample(tmp_path / "out", TINY, tmp_path)
    with pytest.raises(PhotoError, match="not a folder"):
        make_sample(tmp_path / "out", TINY, tmp_path / "absent")


def test_a_flat_photograph_still_gives_pairs(tmp_path: Path) -> None:
    Image.new("RGB", (160, 120), (0, 0, 0)).save(tmp_path / "black.png")
    report = make_sample(tmp_path / "out", TINY.model_copy(update={"pairs": 24}), tmp_path)
    assert report["pairs"] == 24


def test_ensure_sample_makes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = ensure_sample(tmp_path / "sample", TINY)
    before = _bytes(tmp_path / "sample")
    assert len(_lines(manifest)) == TINY.pairs

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(make, "make_sample", refuse)
    assert ensure_sample(tmp_path / "sample", TINY) == manifest
    assert _bytes(tmp_path / "sample") == before


def test_ensure_sample_replaces_a_half_made_folder_and_one_of_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    (folder / "photos").mkdir(parents=True)
    (folder / "sft.jsonl").write_text('{"text": ')
    assert len(_lines(ensure_sample(folder, TINY))) == 3
    assert len(_lines(ensure_sample(folder, TINY.model_copy(update={"pairs": 2})))) == 2
    assert not (folder / "photos/3.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_ensure_sample_interrupted_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make, "_attribution", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_sample(tmp_path / "sample", TINY)
    assert list(tmp_path.iterdir()) == []
    assert len(_lines(ensure_sample(tmp_path / "sample", TINY))) == 3


def test_two_at_once_both_get_the_complete_sample(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(lambda _: ensure_sample(tmp_path / "sample", TINY), range(2)))
    assert manifests == [tmp_path / "sample" / "sft.jsonl"] * 2
    assert len(_lines(manifests[0])) == TINY.pairs
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
