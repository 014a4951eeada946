"""Commands: their output, exit status and errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner, Result
from PIL import Image

from bananagrams_assets.cli import main

SMALL = [
    *("--set", "splits.train={ratio: 0.6, shards: 1}"),
    *("--set", "overlays.max_samples=4"),
    # A missing local image is downloaded from this prefix, which refuses connections.
    *("--set", "source.cdn_prefix=http://127.0.0.1:9/"),
]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bananagrams` in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "bananagrams_assets.cli", *arguments],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=600,
    )  # fmt: skip


def invoke(*arguments: str) -> Result:
    """Run `bananagrams` in this process."""
    return CliRunner().invoke(main, list(arguments))


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


def write_photo(path: Path, seed: int, size: tuple[int, int] = (200, 160)) -> np.ndarray:
    """Write an image of smooth colors and sharp rectangles; return it as uint8 (H, W, 3)."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).copy()
    for _ in range(60):
        x, y = generator.integers(0, size[0] - 20), generator.integers(0, size[1] - 20)
        w, h = generator.integers(4, 20, 2)
        image[y : y + h, x : x + w] = generator.integers(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
    return image


def small_manifest(folder: Path, pairs: int = 12) -> Path:
    """Write pairs with a changed patch; return their manifest.

    The edited image of pair 3 is missing, and that of 4 is an HTML page.
    """
    lines = []
    for number in range(pairs):
        image = write_photo(folder / "photos" / f"{number}.jpg", number)
        image[40:90, 50:120] = (255, 0, 90)
        name = f"images/positive-edit/{number}.png"
        edited = folder / name
        edited.parent.mkdir(parents=True, exist_ok=True)
        if number == 4:
            edited.write_text("<!DOCTYPE html><title>Not here</title>")
        elif number != 3:
            Image.fromarray(image).save(edited)
        record = {
            "open_image_input_url": f"https://example.org/photos/{number}.jpg",
            "local_input_image": f"photos/{number}.jpg",
            "text": "Paint a pink patch in the middle",
            "output_image": name,
            "edit_type": "Add a new object to the scene",
            "summarized_text": "Pink patch added.",
        }
        lines.append(json.dumps(record))
    path = folder / "sft.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in main.commands:
        assert name in result.output
        assert invoke(name, "--help").exit_code == 0


def test_config_show_prints_every_setting_with_its_source(tmp_path: Path) -> None:
    result = invoke("config", "show", "--set", "mask.open_px=3", "--store", str(tmp_path))
    assert result.exit_code == 0
    lines = {line.split(":")[0]: line.split("  # ") for line in result.output.splitlines()[1:]}
    assert [part.strip() for part in lines["mask.open_px"]] == ["mask.open_px: 3", "command line"]
    assert lines["store.url"][1] == "command line"
    assert lines["splits.train.shards"][1] == "profile demo"
    assert lines["mask.border_px"][1] == "default"


def test_a_missing_profile_is_a_one_line_error() -> None:
    assert_one_line_error(command("build", "--profile", "nope"), "'nope' does not exist", "demo, pico-banana")


def test_an_unknown_setting_is_a_one_line_error() -> None:
    assert_one_line_error(
        command("build", "--set", "mask.blur=3"), "mask.blur: unknown key", "blur_kernel_px"
    )


def test_a_store_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    manifest = small_manifest(tmp_path / "pairs", 2)
    done = command("build", "--manifest", str(manifest), "--store", str(tmp_path / "file" / "store"))
    assert_one_line_error(done, str(tmp_path / "file" / "store"))


def test_a_manifest_that_is_not_tinvoke(tmp_path: Path) -> None:
    done = command("build", "--manifest", str(tmp_path / "no.jsonl"), "--store", str(tmp_path / "store"))
    assert_one_line_error(done, "no.jsonl", "No such file")


def test_an_empty_manifest_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    done = command("build", "--manifest", str(tmp_path / "empty.jsonl"), "--store", str(tmp_path / "store"))
    assert_one_line_error(done, "empty.jsonl")


def test_predict_without_a_champion_is_a_one_line_error(tmp_path: Path) -> None:
    write_photo(tmp_path / "cat.jpg", 1)
    done = command(
        "predict", str(tmp_path / "cat.jpg"), "Remove the cat", "--output", str(tmp_path / "m.png")
    )
    assert_one_line_error(done, "no champion yet", "bananagrams train")


def test_a_photo_that_is_no_image_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("<html>")
    done = command(
        "predict", str(tmp_path / "cat.jpg"), "Remove the cat", "--output", str(tmp_path / "m.png")
    )
    assert_one_line_error(done, "cat.jpg")


def test_mask_of_one_pair_covers_the_edit(tmp_path: Path) -> None:
    image = write_photo(tmp_path / "before.png", 5)
    image[40:90, 50:120] = (255, 0, 90)
    Image.fromarray(image).save(tmp_path / "after.png")
    result = invoke(
        "mask", str(tmp_path / "before.png"), str(tmp_path / "after.png"),
        "--output", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "overlay.jpg"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    truth = np.zeros_like(mask)
    truth[40:90, 50:120] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert Image.open(tmp_path / "overlay.jpg").size == (200, 160)


def test_unrelated_images_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_photo(tmp_path / "one.png", 1)
    write_photo(tmp_path / "two.png", 2)
    result = invoke(
        "mask", str(tmp_path / "one.png"), str(tmp_path / "two.png"), "--output", str(tmp_path / "m.png")
    )
    assert result.exit_code == 1
    assert "cannot be aligned" in result.output
    assert not (tmp_path / "m.png").exists()


def test_a_build_from_local_files_keeps_a_row_for_every_unreadable_image(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "pairs")
    store = tmp_path / "store"
    arguments = ["build", "--manifest", str(manifest), "--store", str(store), "--dev", *SMALL]
    done = command(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = pd.concat(pd.read_parquet(path) for path in sorted((store / "image_pairs").glob("*.parquet")))
    failed = rows[rows.status != "ok"]
    assert len(rows) == 12
    assert len(failed) == 2
    assert failed.reason.str.contains("DOCTYPE").sum() == 1
    assert failed.reason.str.contains("127.0.0.1").sum() == 1
    samples = pd.concat(pd.read_parquet(path) for path in sorted((store / "shards").rglob("*.parquet")))
    assert len(samples) == 12
    assert (samples.status == "written").sum() == 10
    extracted = list((Path(os.environ["DAGSTER_HOME"]) / "extracted").rglob("*.mask.png"))
    assert len(extracted) == 10

    again = command(*arguments)
    assert again.returncode == 0
    assert "everything is up to date" in again.stdout

    pages = command(
        "validate", str(next((store / "shards" / "train").glob("*.tar"))), "--output", str(tmp_path / "pages")
    )
    assert pages.returncode == 0, pages.stderr
    assert list((tmp_path / "pages").rglob("index.html"))


def test_sample_writes_pairs_masks_and_a_manifest(tmp_path: Path) -> None:
    result = invoke(
        "sample", "--count", "16", "--set", "source.sample.side_px=160", "--output", str(tmp_path / "pairs")
    )
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "pairs" / "sft.jsonl").read_text().splitlines()) == 16
    assert len(list((tmp_path / "pairs" / "masks").glob("*.png"))) == 16


def test_mask_prints_area_alignment_and_confidence(tmp_path: Path) -> None:
    image = write_photo(tmp_path / "before.png", 5)
    image[40:90, 50:120] = (255, 0, 90)
    Image.fromarray(image).save(tmp_path / "after.png")
    before, after, mask = (str(tmp_path / name) for name in ("before.png", "after.png", "mask.png"))
    edited = invoke("mask", before, after, "--output", mask)
    assert re.search(
        r"local edit over 1\d\.\d% of the image, in 1 part; \w+ confidence \(0\.\d\d\)", edited.output
    )
    assert re.search(
        r"aligned by \w+ with \d+ inliers, residual \d\.\d\d px, over .*; high confidence \(", edited.output
    )
    same = invoke("mask", before, before, "--output", mask)
    assert "no visible edit; low confidence" in same.output


def test_mask_errors_name_the_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    write_photo(tmp_path / "one.png", 1)
    (tmp_path / "page.png").write_text("<html>")
    one, page = str(tmp_path / "one.png"), str(tmp_path / "page.png")
    broken = invoke("mask", one, page, "--output", str(tmp_path / "m.png"))
    assert broken.exit_code == 1
    assert "page.png" in broken.output
    assert "starts with '<html>'" in broken.output
    nowhere = invoke("mask", one, one, "--output", str(tmp_path / "no" / "m.png"))
    assert nowhere.exit_code == 1
    assert "its folder does not exist" in nowhere.output


def test_the_embedded_sample_has_only_one_strength(tmp_path: Path) -> None:
    two = invoke("sample", "--strength", "0", "--strength", "1", "--output", str(tmp_path / "pairs"))
    assert two.exit_code == 2
    assert "several need --photos" in two.output
    one = invoke(
        "sample", "--strength", "0", "--side", "128", "--count", "1", "--output", str(tmp_path / "pairs")
    )
    assert one.exit_code == 0, one.output
    assert json.loads((tmp_path / "pairs" / "truth.jsonl").read_text())["strength"] == 0
