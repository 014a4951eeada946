"""Prediction of single images and of batches from folders, tables and shards, including invalid input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bananagrams_assets.learn import checkpoint
from bananagrams_assets.learn.batch_prediction import InputError, Output, Row, list_items, predict_all
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.predict import (
    Predictor,
    encode_soft,
    load_model,
    make_predictor,
    predict_file,
    predict_masks,
)
from bananagrams_assets.learn.publish import model_sections
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.open_store import open_store

from .tiny import make_dataset, profile, sample_parts, write_shard

SIZES = [(48, 40), (130, 75), (7, 300), (1, 1)]


@pytest.fixture(scope="module")
def model() -> Predictor:
    """Return an untrained network; its masks depend on image and instruction, and most are partly true."""
    torch.manual_seed(1)
    return make_predictor(MaskNet(profile().model, fetch=False), 32, "cpu")


def write_photo(path: Path, size: tuple[int, int] = (48, 40), **options: Any) -> Path:
    pixels = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def run(model: Predictor, sources: list[Path], text: str | None, folder: Path, **output: Any) -> Any:
    """Predict all sources into a folder; return the rows of predictions.csv and the failed rows."""
    rows: list[Row] = []
    target = Output(open_store(str(folder)), **output)
    failed = predict_all(model, list_items(sources, text), target, 10**7, rows.append, batch_size=3)
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    return table, failed


def test_a_folder_of_images_of_any_size_and_kind(model: Predictor, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number, size in enumerate(SIZES):
        write_photo(photos / f"{number}.png", size)
    write_photo(photos / "deep" / "grey.webp", (33, 21))
    (photos / "notes.txt").write_text("not an image")
    table, failed = run(model, [photos], "Remove the cup", tmp_path / "out")
    assert not failed
    assert [Path(row["photo"]).name for row in table] == ["0.png", "1.png", "2.png", "3.png", "grey.webp"]
    for row, size in zip(table, [*SIZES, (33, 21)], strict=True):
        mask = Image.open(tmp_path / "out" / row["mask"])
        assert mask.size == size == (int(row["width"]), int(row["height"]))
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert table[4]["mask"] == "deep/grey.mask.png"


def test_an_image_with_exif_orientation_is_predicted_upright(model: Predictor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_photo(tmp_path / "side.jpg", (60, 20), exif=exif.tobytes())
    table, _ = run(model, [tmp_path / "side.jpg"], "Remove the cup", tmp_path / "out")
    assert (table[0]["width"], table[0]["height"]) == ("20", "60")
    assert predict_file(model, tmp_path / "side.jpg", "Remove the cup").shape == (60, 20)


def test_invalid_images_become_failed_rows_and_the_batch_continues(model: Predictor, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photo(photos / "a.jpg")
    (photos / "b.jpg").write_text("<html>not here</html>")
    whole = write_photo(photos / "c.jpg", (200, 200)).read_bytes()
    (photos / "c.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "d.jpg").write_bytes(b"")
    write_photo(photos / "e.png", (4000, 3000))
    write_photo(photos / "f.jpg")
    table, failed = run(model, [photos], "Remove the cup", tmp_path / "out")
    assert [row["status"] for row in table] == ["ok", "failed", "failed", "failed", "failed", "ok"]
    assert len(failed) == 4
    assert "not a picture" in table[1]["reason"]
    assert "empty" in table[3]["reason"]
    assert "too large: 4000 x 3000" in table[4]["reason"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.mask.png", "f.mask.png"]


def test_a_table_contains_its_own_instructions(model: Predictor, tmp_path: Path) -> None:
    write_photo(tmp_path / "photos/cat, black.jpg")
    with (tmp_path / "edits.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "instruction"])
        for name in ("photos/cat, black.jpg", "photos/none.jpg", "photos/cat, black.jpg"):
            writer.writerow([name, 'Write "HELLO"\nin red'])
        writer.writerow(["photos/cat, black.jpg", ""])
    table, _ = run(model, [tmp_path / "edits.csv"], None, tmp_path / "out")
    assert [row["status"] for row in table] == ["ok", "failed", "ok", "failed"]
    assert [row["mask"] for row in table] == ["cat, black.mask.png", "", "cat, black-2.mask.png", ""]
    assert table[0]["instruction"] == 'Write "HELLO"\nin red'
    assert "No such file" in table[1]["reason"]
    assert "a row needs" in table[3]["reason"]


def test_json_lines_and_manifest_records_are_tables(model: Predictor, tmp_path: Path) -> None:
    write_photo(tmp_path / "cat.jpg")
    lines = [
        json.dumps({"photo": "cat.jpg", "instruction": "Remove the cat"}),
        "{broken",
        json.dumps({"local_input_image": "cat.jpg", "text": "Recolor the cat", "edit_type": "x"}),
        "[]",
    ]
    (tmp_path / "edits.jsonl").write_text("\n\n".join(lines))
    table, _ = run(model, [tmp_path / "edits.jsonl"], None, tmp_path / "out")
    assert [row["status"] for row in table] == ["ok", "failed", "ok", "failed"]
    assert table[1]["reason"].startswith("not JSON")
    (tmp_path / "latin.csv").write_bytes(b"photo,instruction\ncat.jpg,caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.csv: cannot be read as a table"):
        list(list_items([tmp_path / "latin.csv"], None))


def test_a_shard_and_its_extracted_folder_give_the_same_masks(model: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = {f"k-{number}": sample_parts(number, rng) for number in range(4)}
    write_shard(open_store(str(tmp_path)), "test-00000", samples)
    for key, parts in samples.items():
        for part, data in parts.items():
            (tmp_path / "folder" / f"{key}.{part}").parent.mkdir(exist_ok=True)
            (tmp_path / "folder" / f"{key}.{part}").write_bytes(data)
    for name, source in (("tar", paths.shard_tar("test-00000")), ("dir", "folder")):
        table, failed = run(model, [tmp_path / source], None, tmp_path / name)
        assert not failed
        assert [row["instruction"] for row in table] == [
            samples[f"k-{number}"]["text.txt"].decode() for number in range(4)
        ]
    for number in range(4):
        name = f"k-{number}.mask.png"
        assert (tmp_path / "tar" / name).read_bytes() == (tmp_path / "dir" / name).read_bytes()


def test_a_truncated_shard_gives_its_complete_samples_and_a_failed_row(
    model: Predictor, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    store = open_store(str(tmp_path))
    write_shard(store, "test-00000", {f"k-{number}": sample_parts(number, rng) for number in range(3)})
    whole = store.read(paths.shard_tar("test-00000"))
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    write_photo(tmp_path / "after.jpg")
    table, failed = run(model, [tmp_path / "cut.tar", tmp_path / "after.jpg"], "Remove it", tmp_path / "out")
    assert len(failed) == 1
    assert "cut.tar" in failed[0].item.photo
    assert "not a whole tar" in failed[0].reason
    assert table[-1]["status"] == "ok"


def test_soft_masks_thresholds_and_overlays_agree(model: Predictor, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "cat.png", (64, 48))
    probability = predict_file(model, photo, "Remove the cat")
    threshold = float(np.median(probability))
    overlays = open_store(str(tmp_path / "overlays"))
    run(model, [photo], "Remove the cat", tmp_path / "soft", soft=True, overlays=overlays)
    run(model, [photo], "Remove the cat", tmp_path / "hard", threshold=threshold)
    soft = np.asarray(Image.open(tmp_path / "soft/cat.soft.png"))
    assert np.abs(soft / 255 - probability).max() <= 0.5 / 255 + 1e-6
    hard = np.asarray(Image.open(tmp_path / "hard/cat.mask.png"))
    assert np.array_equal(hard == 255, probability >= threshold)
    assert Image.open(tmp_path / "overlays/cat.overlay.jpg").size == (64, 48)


def test_a_batch_and_single_calls_give_the_same_probabilities(model: Predictor, tmp_path: Path) -> None:
    images = [
        np.asarray(Image.open(write_photo(tmp_path / f"{n}.png", size))) for n, size in enumerate(SIZES)
    ]
    texts = ["left", "right half", "the cup", "top"]
    together = predict_masks(model, images, texts, batch_size=3)
    for image, text, batched in zip(images, texts, together, strict=True):
        alone = predict_masks(model, [image], [text])[0]
        assert batched.dtype == np.float32
        assert batched.shape == image.shape[:2]
        assert np.allclose(batched, alone, atol=1e-4)
    with pytest.raises(ValueError, match="1 images and 2 instructions"):
        predict_masks(model, images[:1], texts[:2])


def test_an_invalid_source_raises_before_prediction(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        list(list_items([tmp_path / "none"], "x"))
    with pytest.raises(InputError, match="needs an instruction"):
        list(list_items([write_photo(tmp_path / "cat.jpg")], None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no images"):
        list(list_items([tmp_path / "empty"], "x"))


def test_a_checkpoint_predicts_like_its_network(model: Predictor, tmp_path: Path) -> None:
    settings = profile()
    store = make_dataset(tmp_path / "store")
    checkpoint.save(store, "mask_model/checkpoints/ab-best", model.net, None, model_sections(settings))
    photo = write_photo(tmp_path / "cat.png")
    expected = predict_file(model, photo, "Remove the cat")
    by_path = load_model(tmp_path / "store/mask_model/checkpoints/ab-best", settings)
    by_name = load_model("mask_model/checkpoints/ab-best", profile(store__url=str(tmp_path / "store")))
    for loaded in (by_path, by_name):
        assert np.array_equal(predict_file(loaded, photo, "Remove the cat"), expected)
    with pytest.raises(checkpoint.CheckpointError, match="is no model"):
        load_model("mask_model/checkpoints/none", profile(store__url=str(tmp_path / "store")))


def test_a_soft_mask_is_a_grayscale_png() -> None:
    data = encode_soft(np.array([[0, 0.5], [0.999, 1]], np.float32))
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [[0, 128], [255, 255]]
