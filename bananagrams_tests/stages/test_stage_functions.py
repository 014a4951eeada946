"""Stage functions from pairs to shards, index and overlays, on a few small photos."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from bananagrams_assets.config import Profile
from bananagrams_assets.dataset.extract import extract_shard
from bananagrams_assets.dataset.validate import draw_shard
from bananagrams_assets.graph import (
    ALIGNED_PAIRS,
    EDIT_MASKS,
    IMAGE_PAIRS,
    MANIFEST,
    SHARDS,
    SPLIT_INDEX,
    VALIDATION_OVERLAYS,
)
from bananagrams_assets.stages.shards import is_plain_jpeg
from bananagrams_assets.stages.stage import StageResult
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import SAMPLE_PARTS, SampleError, read_samples
from bananagrams_assets.storage.store import MissingObject
from bananagrams_assets.storage.tables import ALIGNED_COLUMNS, MASKS_COLUMNS, SHARDS_COLUMNS, read_table
from bananagrams_assets.vision.images import decode_mask, encode_jpeg

from ..photos import edited, local_pairs, make_photo, one_shard, png
from .building import call

SHARD = "train-00000"
STAGES = {
    "pairs": IMAGE_PAIRS,
    "aligned": ALIGNED_PAIRS,
    "masks": EDIT_MASKS,
    "shards": SHARDS,
    "overlays": VALIDATION_OVERLAYS,
}


def build(store: LocalStore, profile: Profile, shard: str = SHARD) -> dict[str, StageResult]:
    call(MANIFEST, store, profile)
    return {name: call(stage, store, profile, shard) for name, stage in STAGES.items()}


def mixed_pairs(folder: Path) -> Path:
    """Write six pairs, and return their manifest: 3 is of unrelated images, the edited image of 4 is broken.

    The others are good. The input of 5 is a PNG file.
    """
    manifest = local_pairs(folder, 6)
    (folder / "images/positive-edit/3.png").write_bytes(png(make_photo(99)))
    (folder / "images/positive-edit/4.png").write_bytes(b"<html>")
    (folder / "photos/5.jpg").write_bytes(png(make_photo(5)))
    return manifest


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Profile, dict[str, StageResult]]:
    folder = tmp_path_factory.mktemp("pairs")
    store, profile = LocalStore(folder / "store"), one_shard(mixed_pairs(folder))
    return store, profile, build(store, profile)


Built = tuple[LocalStore, Profile, dict[str, StageResult]]


def by_number(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return rows by the number in their key."""
    return {int(row["key"].split("-")[1]): row for row in rows}


def dataset(store: LocalStore, shard: str = SHARD) -> dict[int, dict[str, Any]]:
    """Return the samples of a shard, read with the webdataset library, by the number in their key."""
    with store.local_path(paths.shard_tar(shard)) as path:
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    return {int(sample["__key__"].split("-")[1]): sample for sample in samples}


def test_each_fetched_pair_has_a_row_with_its_alignment(built: Built) -> None:
    store, _, results = built
    rows = by_number(read_table(store, paths.aligned_table(SHARD)))
    assert set(rows) == {0, 1, 2, 3, 5}
    assert {number for number, row in rows.items() if row["accepted"]} == {0, 1, 2, 5}
    assert rows[3]["reason"]
    assert list(rows[0]) == list(ALIGNED_COLUMNS)
    assert np.allclose(np.reshape(rows[0]["homography"], (3, 3)), np.eye(3), atol=0.05)
    stats = results["aligned"].stats
    assert (stats["pairs"], stats["accepted"], stats["rejected"]) == (5, 4, 1)
    assert sum(stats["confidence_histogram"]) == 4
    by_edit_type = results["masks"].stats["aligned_by_edit_type"]
    assert by_edit_type == {"Remove an existing object": {"pairs": 5, "aligned": 4}}


def test_each_accepted_pair_has_a_mask(built: Built) -> None:
    store, _, results = built
    rows = by_number(read_table(store, paths.masks_table(SHARD)))
    assert set(rows) == {0, 1, 2, 5}
    assert list(rows[0]) == list(MASKS_COLUMNS)
    with store.open(paths.masks_tar(SHARD)) as file:
        for sample in read_samples(file):
            assert Image.open(io.BytesIO(sample.parts["mask.png"])).mode == "1"
            mask = decode_mask(sample.parts["mask.png"])
            truth = np.zeros((144, 192), bool)
            truth[48:96, 64:128] = True
            assert (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert results["masks"].stats["verdicts"] == {"local": 4}
    assert sum(results["masks"].stats["area_histogram"]) == 4


def test_previews_are_small_images(built: Built) -> None:
    _, _, results = built
    for name in ("aligned", "masks", "overlays"):
        preview = results[name].preview
        assert preview is not None
        assert len(preview) <= 40_000
        assert Image.open(io.BytesIO(preview)).format == "JPEG"


def test_every_record_has_a_row_in_the_table_of_the_shard(built: Built) -> None:
    store, _, results = built
    rows = by_number(read_table(store, paths.shard_table(SHARD)))
    assert {number: (row["status"], row["stage"]) for number, row in rows.items()} == {
        0: ("written", ""), 1: ("written", ""), 2: ("written", ""), 3: ("dropped", "aligned_pairs"),
        4: ("dropped", "image_pairs"), 5: ("written", ""),
    }  # fmt: skip
    assert list(rows[0]) == list(SHARDS_COLUMNS)
    assert "not a picture" in rows[4]["reason"]
    assert (results["shards"].stats["written"], results["shards"].stats["dropped"]) == (4, 2)
    assert results["shards"].stats["dropped_by_stage"] == {"aligned_pairs": 1, "image_pairs": 1}


def test_samples_read_through_webdataset(built: Built, tmp_path: Path) -> None:
    store, profile, _ = built
    samples = dataset(store)
    assert sorted(samples) == [0, 1, 2, 5]
    for sample in samples.values():
        assert {name for name in sample if not name.startswith("__")} == set(SAMPLE_PARTS)
        assert sample["text.txt"] == b"Remove the red flag from the upper right."
        assert sample["summary.txt"] == b"Flag removed."
        photo, mask = Image.open(io.BytesIO(sample["input.jpg"])), Image.open(io.BytesIO(sample["mask.png"]))
        meta = json.loads(sample["meta.json"])
        assert (photo.format, mask.mode) == ("JPEG", "L")
        assert photo.size == mask.size == (meta["width"], meta["height"]) == (192, 144)
        assert set(np.unique(np.asarray(mask))) == {0, 255}
        assert meta["key"] == sample["__key__"]
        assert (meta["shard"], meta["split"]) == (SHARD, "train")
        assert meta["mask"]["verdict"] == "local"
        assert meta["license"] == profile.source.license
        assert sample["meta.json"].decode() == json.dumps(
            meta, sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )


def test_metadata_holds_every_field(built: Built) -> None:
    store, _, _ = built
    meta = json.loads(dataset(store)[0]["meta.json"])
    assert set(meta) == {
        "key", "edit_type", "category", "scope", "kind", "turn", "source_id", "split", "shard", "input_url",
        "output_url", "output_image", "width", "height", "edited_width", "edited_height", "homography",
        "alignment", "overlap", "mask", "sha256", "license", "attribution", "rotation", "version",
        "config_digest",
    }  # fmt: skip
    assert set(meta["alignment"]) == {"method", "inliers", "inlier_ratio", "residual_px", "confidence"}
    assert {"area", "components", "confidence", "is_global"} <= set(meta["mask"])
    assert np.shape(meta["homography"]) == (3, 3)
    assert np.shape(meta["overlap"])[1] == 2


def test_a_plain_jpeg_is_packed_unchanged(built: Built) -> None:
    store, _, _ = built
    samples = dataset(store)
    for number in (0, 1, 2):
        digest = hashlib.sha256(samples[number]["input.jpg"]).hexdigest()
        assert digest == json.loads(samples[number]["meta.json"])["sha256"]["input"]
    digest = hashlib.sha256(samples[5]["input.jpg"]).hexdigest()
    assert digest != json.loads(samples[5]["meta.json"])["sha256"]["input"]


def test_only_upright_rgb_jpegs_are_packed_unchanged() -> None:
    photo = make_photo(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated, plain, gray = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(photo).save(rotated, "JPEG", exif=exif)
    Image.fromarray(photo).save(plain, "JPEG")
    Image.fromarray(photo[..., 0]).save(gray, "JPEG")
    assert is_plain_jpeg(plain.getvalue())
    assert not is_plain_jpeg(rotated.getvalue())
    assert not is_plain_jpeg(gray.getvalue())
    assert not is_plain_jpeg(png(photo))


def test_equal_inputs_give_equal_bytes(built: Built, tmp_path: Path) -> None:
    store, _, results = built
    again = build(LocalStore(tmp_path / "store"), one_shard(mixed_pairs(tmp_path)))
    for name in ("aligned", "masks", "shards"):
        assert again[name].files == results[name].files
    assert again["pairs"].content == results["pairs"].content
    other = LocalStore(tmp_path / "store")
    assert other.read(paths.shard_tar(SHARD)) == store.read(paths.shard_tar(SHARD))


def test_downscaled_samples_have_scaled_geometry(built: Built, tmp_path: Path) -> None:
    large, _, _ = built
    store = LocalStore(tmp_path / "store")
    build(store, one_shard(mixed_pairs(tmp_path), shards={"largest_side_px": 96}))
    for number, sample in dataset(store).items():
        meta, full_meta = (json.loads(item["meta.json"]) for item in (sample, dataset(large)[number]))
        assert Image.open(io.BytesIO(sample["input.jpg"])).size == (96, 72) == (meta["width"], meta["height"])
        mask = np.asarray(Image.open(io.BytesIO(sample["mask.png"]))) > 0
        assert mask.shape == (72, 96)
        assert mask.mean() == pytest.approx(48 * 64 / (144 * 192), abs=0.02)
        # The center of pixel (x, y) is at ((x + 0.5) / 2 - 0.5, …) in an image of half the size.
        point = np.array([100.0, 40.0, 1.0])
        full, half = (np.array(fields["homography"]) @ point for fields in (full_meta, meta))
        assert half[:2] / half[2] == pytest.approx((full[:2] / full[2] + 0.5) / 2 - 0.5)
        assert np.max(meta["overlap"]) <= 95.5
        assert meta["alignment"]["residual_px"] == pytest.approx(full_meta["alignment"]["residual_px"] / 2)


def test_an_untouched_dataset_has_only_images_with_their_original_bytes(tmp_path: Path) -> None:
    manifest = mixed_pairs(tmp_path)
    untouched = {"untouched": True}
    store = LocalStore(tmp_path / "store")
    build(store, one_shard(manifest, shards=untouched))
    samples = dataset(store)
    assert sorted(samples) == [0, 1, 2]
    for sample in samples.values():
        digest = hashlib.sha256(sample["input.jpg"]).hexdigest()
        assert digest == json.loads(sample["meta.json"])["sha256"]["input"]
    rows = by_number(read_table(store, paths.shard_table(SHARD)))
    assert (rows[5]["stage"], rows[5]["sha256"]) == ("shards", [])
    assert "would have to be encoded" in rows[5]["reason"]

    small = one_shard(manifest, shards={**untouched, "largest_side_px": 100})
    call(SHARDS, store, small, SHARD)
    rows = by_number(read_table(store, paths.shard_table(SHARD)))
    assert "larger than shards.largest_side_px" in rows[0]["reason"]

    fitted = LocalStore(tmp_path / "fitted")
    build(fitted, one_shard(manifest, shards=untouched, fetch={"largest_side_px": 100}))
    rows = by_number(read_table(fitted, paths.shard_table(SHARD)))
    assert "was fitted" in rows[0]["reason"]


def test_the_index_describes_the_split(built: Built) -> None:
    store, profile, results = built
    result = call(SPLIT_INDEX, store, profile, "train")
    index = json.loads(store.read(paths.index_json("train")))
    name = paths.shard_tar(SHARD)
    info = results["shards"].files[name]
    assert index["shards"] == [
        {"shard": SHARD, "name": name, "samples": 4, "bytes": info.bytes, "sha256": info.sha256}
    ]
    assert (index["samples"], index["photographs"]) == (4, 4)
    assert index["by_edit_type"] == {"Remove an existing object": 4}
    assert (index["by_scope"], index["by_verdict"]) == ({"local": 4}, {"local": 4})
    assert sum(index["area_histogram"]) == sum(index["confidence_histogram"]) == 4
    assert sum(index["rejected"]["image_pairs"].values()) == 1
    assert sum(index["rejected"]["aligned_pairs"].values()) == 1
    card = store.read(paths.index_card("train")).decode()
    assert "4 samples of 4 photographs in 1 shards" in card
    assert profile.source.license in card
    credits = store.read(paths.index_attribution("train")).decode().splitlines()
    assert len(credits) == 5
    assert credits[0] == "source_id,samples,title,author,license,link,dataset_license"
    assert all("https://photos.example.org/" in line for line in credits[1:])
    assert index["alignment"] == {
        "pairs": 5, "aligned": 4, "by_edit_type": {"Remove an existing object": {"pairs": 5, "aligned": 4}},
    }  # fmt: skip
    assert set(result.files) == {
        paths.index_json("train"), paths.index_card("train"), paths.index_attribution("train"),
        paths.index_image("train"), paths.index_wids("train"),
    }  # fmt: skip


def test_an_index_without_its_shards_is_an_error(built: Built) -> None:
    store, profile, _ = built
    with pytest.raises(MissingObject, match="dev-00000"):
        call(SPLIT_INDEX, store, profile, "dev")


def test_an_empty_shard_passes_through_every_stage(tmp_path: Path) -> None:
    store, profile = LocalStore(tmp_path / "store"), one_shard(local_pairs(tmp_path, 1))
    results = build(store, profile, "dev-00000")
    assert results["shards"].stats["records"] == 0
    assert results["overlays"].preview is None
    call(SPLIT_INDEX, store, profile, "dev")
    assert json.loads(store.read(paths.index_json("dev")))["samples"] == 0


def test_the_overlay_page_shows_masks_and_rejected_pairs(built: Built) -> None:
    store, _, results = built
    rows = by_number(rows_of(store.read(paths.overlays_page(SHARD)).decode()))
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]
    panels = {number: row["panels"] for number, row in rows.items() if row["picture"]}
    assert panels == {0: 3, 1: 3, 2: 3, 3: 2, 5: 3}
    assert (rows[4]["picture"], rows[4]["mask"]) == ("", "rejected")
    assert "not a picture" in rows[4]["reason"]
    names = store.list(f"overlays/{SHARD}/pictures/")
    assert len(names) == 5
    assert set(names) < set(results["overlays"].files) == set(store.list("overlays/"))
    assert (results["overlays"].stats["masks"], results["overlays"].stats["rejected"]) == (4, 2)


def test_max_samples_limits_the_overlays_and_deletes_earlier_images(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    manifest = local_pairs(tmp_path, 4)
    build(store, one_shard(manifest))
    assert len(store.list(f"overlays/{SHARD}/pictures/")) == 4
    few = one_shard(manifest, overlays={"max_samples": 2})
    result = call(VALIDATION_OVERLAYS, store, few, SHARD)
    assert len(store.list(f"overlays/{SHARD}/pictures/")) == result.stats["drawn"] == 2
    masks = sorted(read_table(store, paths.masks_table(SHARD)), key=lambda row: row["confidence"])
    for row in masks[:2]:
        assert store.exists(f"overlays/{SHARD}/pictures/{row['key']}.jpg")


def test_a_shard_and_an_extracted_folder_can_be_drawn(built: Built, tmp_path: Path) -> None:
    store, profile, _ = built
    tar = Path(store.describe(paths.shard_tar(SHARD)))
    extract_shard(tar, tmp_path / "plain")
    pages = [draw_shard(path, tmp_path / "pages", profile) for path in (tar, tmp_path / "plain")]
    assert [page.parent.name for page in pages] == [SHARD, "plain"]
    for page, panels in zip(pages, (3, 1), strict=True):  # only a shard in its store has edited images
        rows = rows_of(page.read_text(encoding="utf-8"))
        assert [row["panels"] for row in rows] == [panels] * 4
        assert [row["confidence"] for row in rows] == sorted(row["confidence"] for row in rows)
        assert len(list((page.parent / "pictures").iterdir())) == 4
        for row in rows:
            image = Image.open(page.parent / row["picture"])
            assert image.size == (panels * row["width"], row["height"])
            assert row["outline"].startswith("M")
    contents = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert f'const names = ["plain", "{SHARD}"];' in contents


def test_the_page_shows_the_reason_of_a_broken_sample(tmp_path: Path) -> None:
    folder, profile = tmp_path / "plain", one_shard("unused.jsonl")
    folder.mkdir()
    photo = encode_jpeg(edited(make_photo(1)), 90)
    mask = io.BytesIO()
    Image.new("L", (10, 10)).save(mask, "PNG")
    files = {"a.input.jpg": photo, "b.input.jpg": photo, "b.mask.png": mask.getvalue(), "c.meta.json": b"{"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    page = draw_shard(folder, tmp_path / "out", profile).read_text(encoding="utf-8")
    reasons = {row["key"]: row["reason"] for row in rows_of(page)}
    assert reasons["a"] == "no mask.png in this sample"
    assert reasons["b"] == "the mask is 10 x 10, the photo 192 x 144"
    assert reasons["c"].startswith("meta.json cannot be read: ")
    assert {row["mask"] for row in rows_of(page)} == {"rejected"}


def rows_of(page: str) -> list[dict[str, Any]]:
    """Return the rows embedded in a page, in their order."""
    start = '<script id="rows" type="application/json">'
    rows: list[dict[str, Any]] = json.loads(page.partition(start)[2].partition("</script>")[0])
    return rows


def test_a_file_that_is_no_tar_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.tar"
    path.write_text("not a tar at all")
    with pytest.raises(SampleError, match=r"notes\.tar: not a whole tar"):
        draw_shard(path, tmp_path / "out", one_shard("unused.jsonl"))
