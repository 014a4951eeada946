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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.sample import editor
from bananagrams_assets.sample.draw import to_bytes
from bananagrams_assets.sample.edits import Edit, make_edit
from bananagrams_assets.sample.photo_edits import Scene, make_photo_edit
from bananagrams_assets.sample.photos import (
    RGB,
    Log,
    Photo,
    cut_tile,
    folder_photos,
    labels_of,
    packaged_photos,
    read_photo,
    tile_boxes,
    tile_url,
)
from bananagrams_assets.sample.segments import segments_of
from bananagrams_assets.sample.visible import Invisible

SAMPLE_VERSION = "4"
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

# The same for a folder of photographs, a round of 87: 58 local edits, 19 global ones, 6 that move the frame
# and 4 that change nothing.
PHOTO_COUNTS = {
    "add object": 6,
    "remove object": 6,
    "replace object": 5,
    "recolor object": 5,
    "object material": 4,
    "move object": 3,
    "resize object": 3,
    "turn object": 2,
    "pose": 1,
    "replace background": 4,
    "blur background": 2,
    "clothing": 2,
    "accessory": 4,
    "caption": 3,
    "add text": 2,
    "replace text": 2,
    "font color": 1,
    "restyle text": 2,
    "translate text": 1,
    "tone": 2,
    "vintage": 2,
    "lighting": 2,
    "season": 2,
    "weather": 2,
    "sketch": 2,
    "art": 2,
    "historical": 2,
    "anime": 1,
    "cel": 1,
    "ink": 1,
    "zoom in": 3,
    "outpaint": 3,
    "untouched": 4,
}
_PHOTO_FAMILIES = tuple(family for family, count in PHOTO_COUNTS.items() for _ in range(count))


@dataclass(frozen=True)
class Pair:
    """One made pair: the edit, what the editor handed back, and its homography (edited → input px)."""

    edit: Edit
    edited: RGB
    homography: editor.Homography
    url: str
    photo: str
    strength: float


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
        return Pair(edit, edited, homography, tile_url(photo, box), photo.name, settings.strength)
    raise Invisible(f"{photo.path}: {_ATTEMPTS} draws of an edit left no visible change")


class Scenes:
    """The photographs of a folder as scenes, each at most `side_px` long, decoded when it is asked for.

    `enlarge`: smaller photographs are enlarged to that, with grain, as benchmarks of large pictures need.
    """

    def __init__(self, photos: Sequence[Photo], side_px: int, enlarge: bool = False) -> None:
        self.photos = photos
        self._side_px, self._enlarge = side_px, enlarge
        self._labelled = [index for index, photo in enumerate(photos) if labels_of(photo.path)]
        self.get = lru_cache(maxsize=24)(self._get)

    def _get(self, index: int) -> Scene:
        path = self.photos[index].path
        whole = read_photo(path)
        rgb = cut_tile(whole, (0, 0, whole.shape[1], whole.shape[0]), self._side_px)
        if self._enlarge and max(rgb.shape) < self._side_px:
            rgb = _enlarged(rgb, self._side_px, np.random.default_rng(index))
        return Scene(rgb, partial(segments_of, path), self._any, self._labelled_one)

    def _any(self, rng: np.random.Generator) -> Scene:
        return self.get(int(rng.integers(len(self.photos))))

    def _labelled_one(self, rng: np.random.Generator) -> Scene | None:
        if not self._labelled:
            return None
        return self.get(self._labelled[int(rng.integers(len(self._labelled)))])


def _enlarged(rgb: RGB, side_px: int, rng: np.random.Generator) -> RGB:
    scale = side_px / max(rgb.shape[:2])
    size = round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)
    smooth = cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return to_bytes(smooth + 2.5 * rng.standard_normal((*smooth.shape[:2], 1), dtype=np.float32))


def make_photo_pair(
    number: int,
    scenes: Scenes,
    settings: SampleSettings,
    strengths: Sequence[float],
    families: Sequence[str] = _PHOTO_FAMILIES,
) -> Pair:
    """Pair `number` of a folder of photographs, with each family and strength dealt in turn.

    It depends on the photographs, the settings and its number, not on other pairs. Raises Invisible where no
    draw of any edit left a visible change.
    """
    dealt = _dealt(number, len(scenes.photos), settings.seed, 0)
    family = families[_dealt(number, len(families), settings.seed, 1)]
    strength = strengths[number % len(strengths)]
    for attempt in range(3 * _ATTEMPTS):
        rng = np.random.default_rng([settings.seed, number, attempt, 1])
        # Not every photograph can show every edit: first another photograph, in the end another family.
        index = dealt if attempt < 4 else int(rng.integers(len(scenes.photos)))
        if attempt >= 2 * _ATTEMPTS:
            family = families[int(rng.integers(len(families)))]
        scene, photo = scenes.get(index), scenes.photos[index]
        try:
            edit = make_photo_edit(family, scene, rng)
        except Invisible:
            continue
        edited, homography = editor.reencode(edit.after, strength, rng)
        if edit.homography is not None:
            homography = edit.homography @ homography
            homography /= homography[2, 2]
        whole = (0, 0, scene.rgb.shape[1], scene.rgb.shape[0])
        return Pair(edit, edited, homography, tile_url(photo, whole), photo.name, strength)
    raise Invisible(f"pair {number}: {3 * _ATTEMPTS} draws of an edit left no visible change")


def make_sample(
    output: Path,
    settings: SampleSettings,
    photos: Path | None = None,
    log: Log | None = None,
    workers: int | None = None,
    strengths: Sequence[float] = (),
) -> dict[str, Any]:
    """Write edited pairs with exact masks under `output`; returns counts by edit type and by photograph.

    Files: `sft.jsonl` (pico-banana records), `photos/<n>.jpg` (before), `images/positive-edit/<n>.png`
    (after), `masks/<n>.png` (0/255, exact, of the before picture's size), `truth.jsonl` (homography edited →
    input px, is_global, verdict, family, strength, visibility in dE), `ATTRIBUTION.csv`. `photos` is a folder
    of photographs to use instead of the packaged ones, with families of its own (PHOTO_COUNTS), its labelled
    objects edited where it has labels, and one of `strengths` (default: the settings') after the other. The
    bytes depend on neither `workers` nor what else runs. Raises PhotoError where there is no photograph.
    """
    tell: Log = log or (lambda message: None)
    found = packaged_photos() if photos is None else folder_photos(photos, tell)
    for folder in ("photos", "images/positive-edit", "masks"):
        (output / folder).mkdir(parents=True, exist_ok=True)

    read = lru_cache(maxsize=32)(read_photo)
    scenes = None if photos is None else Scenes(found, settings.side_px)

    def write(number: int) -> tuple[dict[str, str], dict[str, Any], float]:
        if scenes is None:
            pair = make_pair(number, found, settings, read)
        else:
            pair = make_photo_pair(number, scenes, settings, tuple(strengths) or (settings.strength,))
        return _write_pair(output, number, pair)

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
    local = [area for area, truth in zip(areas, truths, strict=True) if truth["verdict"] == "local"]
    return {
        "pairs": len(lines),
        "photos": len(used),
        "by_type": dict(sorted(Counter(line["edit_type"] for line in lines).items())),
        "by_photo": dict(sorted(Counter(truth["photo"] for truth in truths).items())),
        "local": len(local),
        "mean_local_area": round(float(np.mean(local)), 4) if local else None,
    }


def ensure_sample(output: Path, settings: SampleSettings, log: Log | None = None) -> Path:
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
            make_sample(fresh, settings, log=log)
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
    Image.fromarray(pair.edited).save(output / output_image, compress_level=1)
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
        "verdict": edit.verdict,
        "family": edit.family,
        "strength": pair.strength,
        "visibility": round(edit.visibility, 2),
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
