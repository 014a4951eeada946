"""The embedded sample: a folder of made pairs with true masks, and a manifest for a build."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config import SampleSettings
from ..progress import Log, ignore_progress
from .pairs import SAMPLE_VERSION, Pair, Scenes, make_pair, make_photo_pair
from .photos import Photo, folder_photos, packaged_photos, read_photo

MANIFEST = "sft.jsonl"
TRUTH = "truth.jsonl"
_MARKER = "complete.json"
_JPEG_QUALITY = 95


def make_sample(
    output: Path,
    settings: SampleSettings,
    folder: Path | None = None,
    log: Log = ignore_progress,
    workers: int | None = None,
    strengths: Sequence[float] = (),
) -> dict[str, Any]:
    """Write made pairs with true masks to `output`. Returns counts by edit type and by photo.

    Files: `sft.jsonl` (pico-banana records), `photos/<n>.jpg` (input), `images/positive-edit/<n>.png`
    (edited), `masks/<n>.png` (0/255, exact, of the input's size), `truth.jsonl` (homography edited → input
    px, is_global, verdict, family, strength, visibility in dE), `ATTRIBUTION.csv`.

    Without `folder`, the pairs show the packaged photos. A folder of photos has its own families of edits
    (PHOTO_COUNTS), which edit labelled objects if there are labels, and uses `strengths` (default: the
    settings' strength) in turn. The bytes do not depend on `workers`. Raises PhotoError if there is no photo.
    """
    photos = packaged_photos() if folder is None else folder_photos(folder, log)
    for name in ("photos", "images/positive-edit", "masks"):
        (output / name).mkdir(parents=True, exist_ok=True)
    read = lru_cache(maxsize=32)(read_photo)
    scenes = None if folder is None else Scenes(photos, settings.side_px)

    def write(number: int) -> tuple[dict[str, str], dict[str, Any], float]:
        if scenes is None:
            pair = make_pair(number, photos, settings, read)
        else:
            pair = make_photo_pair(number, scenes, settings, tuple(strengths) or (settings.strength,))
        return _write_pair(output, number, pair)

    written = []
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        for number, result in enumerate(pool.map(write, range(settings.pairs)), start=1):
            written.append(result)
            if number % 100 == 0:
                log(f"{number} of {settings.pairs} pairs made")
    records, truths, areas = zip(*written, strict=True)
    used = {truth["photo"] for truth in truths}
    attribution = _attribution([photo for photo in photos if photo.name in used])
    (output / "ATTRIBUTION.csv").write_text(attribution, encoding="utf-8")
    (output / TRUTH).write_text(_json_lines(truths), encoding="utf-8")
    (output / MANIFEST).write_text(_json_lines(records), encoding="utf-8")
    return _statistics(records, truths, areas)


def _statistics(
    records: Sequence[dict[str, str]], truths: Sequence[dict[str, Any]], areas: Sequence[float]
) -> dict[str, Any]:
    local = [area for area, truth in zip(areas, truths, strict=True) if truth["verdict"] == "local"]
    by_photo = Counter(truth["photo"] for truth in truths)
    return {
        "pairs": len(records),
        "photos": len(by_photo),
        "by_type": dict(sorted(Counter(record["edit_type"] for record in records).items())),
        "by_photo": dict(sorted(by_photo.items())),
        "local": len(local),
        "mean_local_area": round(float(np.mean(local)), 4) if local else None,
    }


def ensure_sample(output: Path, settings: SampleSettings, log: Log = ignore_progress) -> Path:
    """Return the manifest of the sample in `output`; make the sample unless it is complete for the settings.

    It is made in a sibling folder and renamed at the end, so that an interrupted run leaves no folder that
    looks complete. Of two concurrent processes, the later one keeps the earlier one's folder.
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
    """Rename `fresh` to `output`, unless another process has completed `output` meanwhile. Raises OSError."""
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
    raise OSError(f"{output}: cannot be replaced by a new sample; delete this folder and try again")


def _is_complete(output: Path, marker: dict[str, str]) -> bool:
    try:
        content = json.loads((output / _MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(content == marker)


def _write_pair(output: Path, number: int, pair: Pair) -> tuple[dict[str, str], dict[str, Any], float]:
    """Write a pair's images. Returns its manifest record, its line of truth.jsonl and its mask's area."""
    name = str(number + 1)
    local_input, mask = f"photos/{name}.jpg", f"masks/{name}.png"
    output_image = f"images/positive-edit/{name}.png"
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
