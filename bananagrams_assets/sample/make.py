"""The embedded sample: edited pairs with exact masks, as a manifest that a build takes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.sample import editor
from bananagrams_assets.sample.edits import Edit, Invisible, make_edit
from bananagrams_assets.sample.photos import (
    RGB,
    Photo,
    Say,
    cut_tile,
    folder_photos,
    packaged_photos,
    read_photo,
    tile_boxes,
    tile_url,
)

SAMPLE_VERSION = "1"
"""Changes whenever the same settings would give other pairs."""
MANIFEST = "sft.jsonl"
TRUTH = "truth.jsonl"
_MARKER = "complete.json"
_ATTEMPTS = 24
_JPEG_QUALITY = 95

# How many pairs of a round of 63 are of each family: 49 local edits, 14 global ones.
FAMILY_COUNTS = {
    "add": 5,
    "remove": 7,
    "replace": 4,
    "recolor": 4,
    "region color": 5,
    "region material": 4,
    "relocate": 3,
    "resize": 3,
    "add text": 4,
    "replace text": 2,
    "font color": 2,
    "region scene": 4,
    "keep object": 2,
    "tone": 3,
    "vintage": 2,
    "lighting": 3,
    "season": 2,
    "weather": 2,
    "sketch": 2,
}
_FAMILIES = tuple(family for family, count in FAMILY_COUNTS.items() for _ in range(count))


@dataclass(frozen=True)
class Pair:
    """One made pair: the edit, what the editor handed back, and its homography (edited → input px)."""

    edit: Edit
    edited: RGB
    homography: editor.Homography
    url: str
    photo: str


def make_pair(
    number: int, photos: Sequence[Photo], settings: SampleSettings, read: Callable[[Path], RGB] = read_photo
) -> Pair:
    """Pair `number`; it depends on the photographs, the settings and its number, not on other pairs.

    `read` decodes a photograph. Raises Invisible where no draw of any edit left a visible change.
    """
    photo = photos[_dealt(number, len(photos), settings.seed, 0)]
    family = _FAMILIES[_dealt(number, len(_FAMILIES), settings.seed, 1)]
    rgb = read(photo.path)
    boxes = tile_boxes(rgb.shape[1], rgb.shape[0], settings.side_px)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, number, attempt])
        # The first box is the whole photograph, and the one that shows most: every third pair has it.
        box = boxes[0 if rng.random() < 1 / 3 else int(rng.integers(len(boxes)))]
        # Some photographs cannot show some edits at all (a sketch of a black sky): another family then.
        if attempt >= _ATTEMPTS // 2:
            family = _FAMILIES[int(rng.integers(len(_FAMILIES)))]
        try:
            edit = make_edit(family, cut_tile(rgb, box, settings.side_px), rng)
        except Invisible:
            continue
        edited, homography = editor.reencode(edit.after, settings.strength, rng)
        return Pair(edit, edited, homography, tile_url(photo, box), photo.name)
    raise Invisible(f"{photo.path}: {_ATTEMPTS} draws of an edit left no visible change")


def make_sample(
    output: Path,
    settings: SampleSettings,
    photos: Path | None = None,
    say: Say | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write edited pairs with exact masks under `output`; returns counts by edit type and by photograph.

    Files: `sft.jsonl` (pico-banana records), `photos/<n>.jpg` (before), `images/positive-edit/<n>.png`
    (after), `masks/<n>.png` (0/255, exact, of the before picture's size), `truth.jsonl` (homography edited →
    input px, is_global, family), `ATTRIBUTION.csv`. `photos` is a folder of photographs to use instead of
    the packaged ones. The bytes depend on neither `workers` nor what else runs. Raises PhotoError where
    there is no photograph.
    """
    tell: Say = say or (lambda message: None)
    found = packaged_photos() if photos is None else folder_photos(photos, tell)
    for folder in ("photos", "images/positive-edit", "masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)

    read = lru_cache(maxsize=32)(read_photo)

    def write(number: int) -> tuple[dict[str, str], dict[str, Any], float]:
        return _write_pair(output, number, make_pair(number, found, settings, read))

    lines, truths, areas = [], [], []
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        for number, (record, truth, area) in enumerate(pool.map(write, range(settings.pairs)), start=1):
            lines.append(record)
            truths.append(truth)
            areas.append(area)
            if number % 100 == 0:
                tell(f"{number} of {settings.pairs} pairs made")
    used = {truth["photo"] for truth in truths}
    (output / "ATTRIBUTION.csv").write_text(
        _attribution([photo for photo in found if photo.name in used]), encoding="utf-8"
    )
    (output / TRUTH).write_text(_json_lines(truths), encoding="utf-8")
    (output / MANIFEST).write_text(_json_lines(lines), encoding="utf-8")
    local = [area for area, truth in zip(areas, truths, strict=True) if not truth["is_global"]]
    return {
        "pairs": len(lines),
        "photos": len(used),
        "by_type": dict(sorted(Counter(line["edit_type"] for line in lines).items())),
        "by_photo": dict(sorted(Counter(truth["photo"] for truth in truths).items())),
        "local": len(local),
        "mean_local_area": round(float(np.mean(local)), 4) if local else None,
    }


def ensure_sample(output: Path, settings: SampleSettings, say: Say | None = None) -> Path:
    """The manifest of a complete sample of these settings in `output`, made first where there is none.

    It is made in a folder beside and renamed at the end, so that an interrupted run leaves nothing that
    looks complete, and of two processes at once the later one keeps the earlier one's folder.
    """
    marker = {"version": SAMPLE_VERSION, "settings": settings.digest()}
    if not _is_complete(output, marker):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
        try:
            fresh = scratch / "sample"
            make_sample(fresh, settings, say=say)
            (fresh / _MARKER).write_text(json.dumps(marker, sort_keys=True) + "\n", encoding="utf-8")
            _publish(fresh, output, marker, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return output / MANIFEST


def _publish(fresh: Path, output: Path, marker: dict[str, str], scratch: Path) -> None:
    for attempt in range(10):
        try:
            fresh.rename(output)
            return
        except OSError:
            if not output.exists():
                raise
        if _is_complete(output, marker):
            return
        try:
            output.rename(scratch / f"stale-{attempt}")
        except FileNotFoundError:
            continue
    raise OSError(f"{output}: cannot be replaced by a fresh sample; delete this folder and try again")


def _is_complete(output: Path, marker: dict[str, str]) -> bool:
    try:
        found = json.loads((output / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(found == marker)


def _dealt(number: int, options: int, seed: int, stream: int) -> int:
    """Which of `options` pair `number` gets: each round deals every option once, in an order of its own."""
    rng = np.random.default_rng([seed, stream, number // options, options])
    return int(rng.permutation(options)[number % options])


def _write_pair(output: Path, number: int, pair: Pair) -> tuple[dict[str, str], dict[str, Any], float]:
    name = str(number + 1)
    local_input, output_image, mask = (
        f"photos/{name}.jpg",
        f"images/positive-edit/{name}.png",
        f"masks/{name}.png",
    )
    edit = pair.edit
    Image.fromarray(edit.before).save(output / local_input, quality=_JPEG_QUALITY, subsampling=0)
    Image.fromarray(pair.edited).save(output / output_image, compress_level=4)
    Image.fromarray(edit.mask.astype(np.uint8) * 255).save(output / mask)
    record = {
        "open_image_input_url": pair.url,
        "text": edit.text,
        "output_image": output_image,
        "edit_type": edit.edit_type,
        "summarized_text": edit.summary,
        "local_input_image": local_input,
    }
    truth = {
        "output_image": output_image,
        "mask": mask,
        "homography": [float(value) for value in pair.homography.ravel()],
        "is_global": edit.is_global,
        "family": edit.family,
        "photo": pair.photo,
    }
    return record, truth, float(edit.mask.mean())


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _attribution(photos: Sequence[Photo]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "author", "title", "license", "source", "url"])
    for photo in photos:
        writer.writerow([photo.name, photo.author, photo.title, photo.license, photo.source, photo.url])
    return text.getvalue()
