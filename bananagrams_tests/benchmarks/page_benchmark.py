"""Time until an overlay page of many samples shows its first image: `... page_benchmark --samples 500`.

The page is opened from its file in headless Chromium, several times, each in a fresh profile. The plain
alternative is a page of as many `<img>`, with all panels in each image and without lazy loading.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from bananagrams_assets.vision.images import encode_jpeg
from bananagrams_assets.vision.overlay import heat_map, outline_path
from bananagrams_assets.vision.page import PageRow, render_page
from bananagrams_tests.vision.images import box, textured

SIZE = (512, 384)
ROUNDS = 5
FIRST_IMAGE_SHOWN = """() => new Promise((resolve) => {
  const check = () => {
    const shown = document.querySelector("#stage img, body > img");
    if (shown && shown.complete && shown.naturalWidth) resolve(performance.now());
    else requestAnimationFrame(check);
  };
  check();
})"""


def write_pages(folder: Path, samples: int) -> list[PageRow]:
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(samples):
        before = textured(number % 7, *SIZE)
        mask = box(before, 0.2, 0.2, 0.6, 0.7)
        panels = [before, 255 - before, heat_map(mask.astype(np.float32) * 30)]
        name = f"pictures/{number}.jpg"
        (folder / name).write_bytes(encode_jpeg(np.concatenate(panels, axis=1), 85))
        rows.append(
            PageRow(
                f"k-{number}",
                f"Instruction {number}.",
                "Add",
                "local",
                "local",
                number / samples,
                0.2,
                "here",
                "train",
                "train-00000",
                "",
                name,
                3,
                *SIZE,
                outline_path(mask, SIZE),
            )
        )
    (folder / "index.html").write_text(render_page("Edit masks", "train-00000", rows))
    plain = "".join(f'<img src="{row.image}"><p>{row.text}</p>' for row in rows)
    (folder / "plain.html").write_text(f"<!doctype html><body>{plain}</body>")
    return rows


def load_seconds(browser: Browser, page_file: Path) -> float:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(page_file.as_uri(), wait_until="commit")
    milliseconds: float = page.evaluate(FIRST_IMAGE_SHOWN)
    page.close()
    return milliseconds / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    samples = parser.parse_args().samples
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_pages(folder, samples)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        times_by_page: dict[str, list[float]] = {"index.html": [], "plain.html": []}
        for _ in range(ROUNDS):
            for page, times in times_by_page.items():
                times.append(load_seconds(browser, folder / page))
        browser.close()
    ours, plain = (statistics.median(times) for times in times_by_page.values())
    worst = max(times_by_page["index.html"])
    print(
        f"{samples} samples: first image after {ours:.2f} s (worst {worst:.2f}), "
        f"plain page {plain:.2f} s, ratio {plain / ours:.2f}"
    )


if __name__ == "__main__":
    main()
