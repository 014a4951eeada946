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
from bananagrams_assets.records.splits import shard_assigner, source_id
from bananagrams_assets.sample import sample_folder
from bananagrams_assets.sample.pairs import FAMILY_COUNTS
from bananagrams_assets.sample.photos import PhotoError
from bananagrams_assets.sample.sample_folder import ensure_sample, make_sample
from bananagrams_assets.sample.vocabulary import FAMILIES

from .conftest import SMALL, MadeSample

TINY = SampleSettings(pairs=3, side_px=128)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_bytes_do_not_depend_on_the_number_of_workers(made: MadeSample, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL, workers=1)
    assert _bytes(tmp_path) == _bytes(made.folder)


def test_a_pair_does_not_depend_on_other_pairs(made: MadeSample, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL.model_copy(update={"pairs": 5}))
    assert _lines(tmp_path / "sft.jsonl") == _lines(made.folder / "sft.jsonl")[:5]
    name = "images/positive-edit/5.png"
    assert (tmp_path / name).read_bytes() == (made.folder / name).read_bytes()


def test_another_seed_gives_other_pairs(made: MadeSample, tmp_path: Path) -> None:
    make_sample(tmp_path, SMALL.model_copy(update={"pairs": 5, "seed": 1}))
    assert _lines(tmp_path / "sft.jsonl") != _lines(made.folder / "sft.jsonl")[:5]


def test_records_have_the_fields_of_the_manifest(made: MadeSample) -> None:
    records = _lines(made.folder / "sft.jsonl")
    assert len(records) == SMALL.pairs == made.statistics["pairs"]
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


def test_each_mask_is_binary_and_has_the_size_of_the_input(made: MadeSample) -> None:
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


def test_the_true_homography_maps_the_center_close_to_the_center(made: MadeSample) -> None:
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


def test_most_edits_are_local_and_every_family_has_pairs() -> None:
    kinds = {kind.name: kind.scope for kind in EDIT_TYPES}
    scopes: Counter[str] = Counter()
    for family, count in FAMILY_COUNTS.items():
        scopes[kinds[FAMILIES[family][0]]] += count
    assert set(FAMILY_COUNTS) == set(FAMILIES)
    assert 0.75 <= scopes["local"] / scopes.total() <= 0.8
    assert set(scopes) == {"local", "global"}


def test_tiles_of_one_photo_are_one_source(made: MadeSample) -> None:
    sources: dict[str, set[str]] = {}
    fragments: Counter[str] = Counter()
    for record in _lines(made.folder / "sft.jsonl"):
        url = record["open_image_input_url"]
        sources.setdefault(url.split("#")[0], set()).add(source_id(url))
        fragments[urlsplit(url).fragment] += 1
    assert all(len(ids) == 1 for ids in sources.values())
    assert len(set.union(*sources.values())) == len(sources) == made.statistics["photos"]
    assert len(fragments) > len(sources) / 2


def test_the_demo_profile_distributes_the_photos_over_splits_and_shards(made: MadeSample) -> None:
    splits: SplitsSettings = load_profile("demo").profile.splits
    pairs: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    photos: dict[str, set[str]] = {}
    for record in _lines(made.folder / "sft.jsonl"):
        source = source_id(record["open_image_input_url"])
        split, shard = shard_assigner(splits)(source)
        pairs[split] += 1
        shards[shard] += 1
        photos.setdefault(split, set()).add(source)
    assert all(len(sources) >= 2 for sources in photos.values())
    for split in ("dev", "test"):
        assert 0.12 <= pairs[split] / pairs.total() <= 0.25
    train = [shards[key] for key in load_profile("demo").profile.shard_keys("train")]
    assert min(train) > 0
    assert max(train) <= 2 * min(train)


def test_the_attribution_lists_every_photo_with_its_licence(made: MadeSample) -> None:
    with (made.folder / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    used = {record["open_image_input_url"].split("#")[0] for record in _lines(made.folder / "sft.jsonl")}
    assert {row["url"] for row in rows} == used
    assert all(all(value for value in row.values()) for row in rows)


def test_unreadable_photos_of_a_folder_are_logged_and_skipped(made: MadeSample, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "inner").mkdir(parents=True)
    good = (made.folder / "photos/1.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(good)
    (photos / "copy of a.jpg").write_bytes(good)
    (photos / "broken.jpg").write_bytes(good[: len(good) // 2])
    (photos / "notes.txt").write_text("not an image")
    Image.new("RGBA", (40, 40), (9, 9, 9, 128)).save(photos / "small.png")
    rgba = np.random.default_rng(0).integers(0, 256, (120, 200, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(photos / "inner/b.webp")
    log: list[str] = []
    statistics = make_sample(tmp_path / "out", TINY.model_copy(update={"pairs": 6}), photos, log.append)
    assert statistics["by_photo"] == {"a.jpg": 2, "copy of a.jpg": 2, "inner/b.webp": 2}
    assert [line for line in log if "broken.jpg" in line]
    assert [line for line in log if "small.png" in line]
    # Copies of one photo are one source, so that they are in one split.
    sources = {source_id(record["open_image_input_url"]) for record in _lines(tmp_path / "out" / "sft.jsonl")}
    assert len(sources) == 2


def test_a_folder_without_a_readable_photo_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(PhotoError, match="no readable photo"):
        make_sample(tmp_path / "out", TINY, tmp_path)
    with pytest.raises(PhotoError, match="not a folder"):
        make_sample(tmp_path / "out", TINY, tmp_path / "absent")


def test_a_uniform_photo_gives_pairs(tmp_path: Path) -> None:
    Image.new("RGB", (160, 120), (0, 0, 0)).save(tmp_path / "black.png")
    statistics = make_sample(tmp_path / "out", TINY.model_copy(update={"pairs": 24}), tmp_path)
    assert statistics["pairs"] == 24


def test_ensure_sample_keeps_a_complete_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = ensure_sample(tmp_path / "sample", TINY)
    before = _bytes(tmp_path / "sample")
    assert len(_lines(manifest)) == TINY.pairs

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the sample was made again")

    monkeypatch.setattr(sample_folder, "make_sample", refuse)
    assert ensure_sample(tmp_path / "sample", TINY) == manifest
    assert _bytes(tmp_path / "sample") == before


def test_ensure_sample_replaces_an_incomplete_folder_and_one_of_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    (folder / "photos").mkdir(parents=True)
    (folder / "sft.jsonl").write_text('{"text": ')
    assert len(_lines(ensure_sample(folder, TINY))) == 3
    assert len(_lines(ensure_sample(folder, TINY.model_copy(update={"pairs": 2})))) == 2
    assert not (folder / "photos/3.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_an_interrupted_ensure_sample_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "_attribution", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_sample(tmp_path / "sample", TINY)
    assert list(tmp_path.iterdir()) == []
    assert len(_lines(ensure_sample(tmp_path / "sample", TINY))) == 3


def test_two_concurrent_calls_both_return_the_complete_sample(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        manifests = list(pool.map(lambda _: ensure_sample(tmp_path / "sample", TINY), range(2)))
    assert manifests == [tmp_path / "sample" / "sft.jsonl"] * 2
    assert len(_lines(manifests[0])) == TINY.pairs
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
