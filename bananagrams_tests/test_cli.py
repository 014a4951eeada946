"""Commands as a person meets them: what they print, how they fail."""

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
    # Where a missing local picture is looked for: nowhere that a test may reach.
    *("--set", "source.cdn_prefix=http://127.0.0.1:9/"),
]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bananagrams` in a process of its own, as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "bananagrams_assets.cli", *arguments],
        capture_output=True, text=True, check=False, env=dict(os.environ), timeout=600,
    )  # fmt: skip


def here(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[0]


def photograph(path: Path, seed: int, size: tuple[int, int] = (200, 160)) -> np.ndarray:
    """A random but picture-like image: smooth colours and sharp rectangles."""
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
    """Local pairs with a patch changed; the edited picture of pair 3 is missing, that of 4 is HTML."""
    lines = []
    for number in range(pairs):
        image = photograph(folder / "photos" / f"{number}.jpg", number)
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


def test_help_teaches_every_command() -> None:
    result = here("--help")
    assert result.exit_code == 0
    for name in main.commands:
        assert name in result.output
        assert here(name, "--help").exit_code == 0


def test_config_show_prints_every_setting_with_its_source(tmp_path: Path) -> None:
    result = here("config", "show", "--set", "mask.open_px=3", "--store", str(tmp_path))
    assert result.exit_code == 0
    lines = {line.split(":")[0]: line.split("  # ") for line in result.output.splitlines()[1:]}
    assert [part.strip() for part in lines["mask.open_px"]] == ["mask.open_px: 3", "command line"]
    assert lines["store.url"][1] == "command line"
    assert lines["splits.train.shards"][1] == "profile demo"
    assert lines["mask.border_px"][1] == "default"


def test_a_profile_that_does_not_exist() -> None:
    assert_one_line_error(command("build", "--profile", "nope"), "'nope' does not exist", "demo, pico-banana")


def test_an_unknown_setting() -> None:
    assert_one_line_error(
        command("build", "--set", "mask.blur=3"), "mask.blur: unknown key", "blur_kernel_px"
    )


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    manifest = small_manifest(tmp_path / "pairs", 2)
    done = command("build", "--manifest", str(manifest), "--store", str(tmp_path / "file" / "store"))
    assert_one_line_error(done, str(tmp_path / "file" / "store"))


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    done = command("build", "--manifest", str(tmp_path / "no.jsonl"), "--store", str(tmp_path / "store"))
    assert_one_line_error(done, "no.jsonl", "No such file")


def test_an_empty_manifest(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    done = command("build", "--manifest", str(tmp_path / "empty.jsonl"), "--store", str(tmp_path / "store"))
    assert_one_line_error(done, "empty.jsonl")


def test_predict_before_any_champion(tmp_path: Path) -> None:
    photograph(tmp_path / "cat.jpg", 1)
    done = command(
        "predict", str(tmp_path / "cat.jpg"), "Remove the cat", "--output", str(tmp_path / "m.png")
    )
    assert_one_line_error(done, "no champion yet", "bananagrams train")


def test_a_photo_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("<html>")
    done = command(
        "predict", str(tmp_path / "cat.jpg"), "Remove the cat", "--output", str(tmp_path / "m.png")
    )
    assert_one_line_error(done, "cat.jpg")


def test_mask_of_one_pair(tmp_path: Path) -> None:
    image = photograph(tmp_path / "before.png", 5)
    image[40:90, 50:120] = (255, 0, 90)
    Image.fromarray(image).save(tmp_path / "after.png")
    result = here(
        "mask", str(tmp_path / "before.png"), str(tmp_path / "after.png"),
        "--output", str(tmp_path / "mask.png"), "--overlay", str(tmp_path / "overlay.jpg"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    truth = np.zeros_like(found)
    truth[40:90, 50:120] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert Image.open(tmp_path / "overlay.jpg").size == (200, 160)


def test_images_with_nothing_in_common_are_refused_with_the_reason(tmp_path: Path) -> None:
    photograph(tmp_path / "one.png", 1)
    photograph(tmp_path / "two.png", 2)
    result = here(
        "mask", str(tmp_path / "one.png"), str(tmp_path / "two.png"), "--output", str(tmp_path / "m.png")
    )
    assert result.exit_code == 1
    assert "cannot be aligned" in result.output
    assert not (tmp_path / "m.png").exists()


def test_a_build_from_local_files_keeps_a_row_for_every_lost_image(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "pairs")
    store = tmp_path / "store"
    arguments = ["build", "--manifest", str(manifest), "--store", str(store), "--dev", *SMALL]
    done = command(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = pd.concat(pd.read_parquet(path) for path in sorted((store / "image_pairs").glob("*.parquet")))
    lost = rows[rows.status != "ok"]
    assert len(rows) == 12
    assert len(lost) == 2
    assert lost.reason.str.contains("DOCTYPE").sum() == 1
    assert lost.reason.str.contains("127.0.0.1").sum() == 1
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


def test_sample_makes_a_manifest_that_build_takes(tmp_path: Path) -> None:
    result = here(
        "sample", "--count", "16", "--set", "source.sample.side_px=160", "--output", str(tmp_path / "pairs")
    )
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "pairs" / "sft.jsonl").read_text().splitlines()) == 16
    assert len(list((tmp_path / "pairs" / "masks").glob("*.png"))) == 16


def test_mask_says_how_sure_it_is_in_words(tmp_path: Path) -> None:
    image = photograph(tmp_path / "before.png", 5)
    image[40:90, 50:120] = (255, 0, 90)
    Image.fromarray(image).save(tmp_path / "after.png")
    before, after, mask = (str(tmp_path / name) for name in ("before.png", "after.png", "mask.png"))
    edited = here("mask", before, after, "--output", mask)
    assert re.search(
        r"local edit over 1\d\.\d% of the image, in 1 part; \w+ confidence \(0\.\d\d\)", edited.output
    )
    assert re.search(r"aligned by \w+ with \d+ inliers, .* px off.*; high confidence \(", edited.output)
    same = here("mask", before, before, "--output", mask)
    assert "no visible edit; low confidence" in same.output


def test_mask_refuses_what_it_cannot_read_or_write_in_one_line(tmp_path: Path) -> None:
    photograph(tmp_path / "one.png", 1)
    (tmp_path / "page.png").write_text("<html>")
    one, page = str(tmp_path / "one.png"), str(tmp_path / "page.png")
    broken = here("mask", one, page, "--output", str(tmp_path / "m.png"))
    assert broken.exit_code == 1
    assert "page.png" in broken.output
    assert "starts with '<html>'" in broken.output
    nowhere = here("mask", one, one, "--output", str(tmp_path / "no" / "m.png"))
    assert nowhere.exit_code == 1
    assert "its folder does not exist" in nowhere.output


def test_one_strength_alone_goes_with_the_embedded_sample(tmp_path: Path) -> None:
    two = here("sample", "--strength", "0", "--strength", "1", "--output", str(tmp_path / "pairs"))
    assert two.exit_code == 2
    assert "several need --photos" in two.output
    one = here(
        "sample", "--strength", "0", "--side", "128", "--count", "1", "--output", str(tmp_path / "pairs")
    )
    assert one.exit_code == 0, one.output
    assert json.loads((tmp_path / "pairs" / "truth.jsonl").read_text())["strength"] == 0
