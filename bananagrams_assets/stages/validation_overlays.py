"""The `validation_overlays` stage, and the same for any shard: pages to judge masks by eye."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..config import MaskSettings, Profile
from ..progress import Log
from ..storage import paths
from ..storage.files import write_file
from ..storage.local import LocalStore
from ..storage.sample_tar import Sample, SampleError, read_folder, read_samples
from ..storage.store import FileInfo, Store
from ..storage.tables import by_key, read_table
from ..vision.geometry import Floats, frame, project, rescaled, resizing, warp
from ..vision.images import RGB, ImageError, Mask, decode, decode_mask, encode_jpeg, fitted_size, resize
from ..vision.mask import edit_mask
from ..vision.overlay import heat_map, outline, preview_jpeg, sheet, strip, tinted
from ..vision.page import REJECTED, PageRow, render_contents, render_page, render_summary
from .edit_masks import with_masks
from .image_pairs import decode_pair
from .stage import StageResult
from .statistics import PREVIEW_BYTES, PREVIEW_PAIRS, histogram, median, side_by_side

CONTENTS = "index.html"
SHEET_TILE_PX = 256
SHEET_SAMPLES = 12
_MAX_PIXELS = 2**28
"""Of a picture in a dataset shard, which has passed the limit of its own profile."""


@dataclass(frozen=True)
class View:
    """A sample as drawn, all of one size (H, W): `after` and `difference` (dE) None where not known."""

    before: RGB
    after: RGB | None
    difference: np.ndarray[Any, np.dtype[np.float32]] | None
    mask: Mask


def draw_overlays(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
    """Write `overlays/<shard>/`: a picture a sample, a contact sheet, and the page that shows them.

    Samples come least confident first, `overlays.max_samples` of them; then every record that was lost,
    with its reason. `overlays/index.html`, the page over all shards, is the same whichever shard writes
    it. Raises StoreError, SampleError.
    """
    records = by_key(read_table(store, paths.manifest_table(shard)))
    lost = _lost(store, shard, records)
    made = {row["key"]: row for row in read_table(store, paths.masks_table(shard)) if row["verdict"]}
    wanted = _least_confident(made, profile.overlays.max_samples)
    rejected = sorted(lost)
    drawing = _Drawing(store, f"{paths.OVERLAYS}{shard}/", profile, [*wanted, *rejected])
    aligned = by_key(read_table(store, paths.aligned_table(shard)))
    to_draw = {*wanted, *rejected[: profile.overlays.max_samples]}
    with store.open(paths.pairs_tar(shard)) as pairs, store.open(paths.masks_tar(shard)) as masks:
        for pair, mask in with_masks(read_samples(pairs), read_samples(masks)):
            if pair.key not in to_draw or pair.key not in aligned:
                continue
            try:
                drawing.add(pair.key, _view(pair, mask, aligned[pair.key], records[pair.key], profile))
            except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                lost.setdefault(pair.key, str(error))
    rows = [_page_row(records[key], made.get(key), lost.get(key, "")) for key in (*wanted, *rejected)]
    result = drawing.finish(shard, rows, len(made), median(row["confidence"] for row in made.values()))
    page = render_contents("Edit masks", profile.shard_keys()).encode()
    contents = {paths.OVERLAYS_CONTENTS: write_file(store, paths.OVERLAYS_CONTENTS, page)}
    return replace(result, files={**result.files, **contents})


def draw_overlays_of(path: Path, output: Path, profile: Profile) -> Path:
    """Draw any dataset shard, a tar or an extracted folder, into `<output>/<its name>`; returns the page.

    The edited picture, and with it the difference, is shown where it can be had: as a part `edited` of the
    sample, or from the pictures of the store that the shard lies in. Samples come least confident first; one
    that cannot be drawn is on the page with its reason. `<output>/index.html` shows all shards drawn there.
    Raises SampleError for what is no shard, StoreError, OSError.
    """
    rows: dict[str, PageRow] = {}
    with _samples(path) as samples:
        for sample in samples:
            rows[sample.key] = _told(sample)
    ordered = sorted(rows, key=lambda key: (rows[key].confidence, key))
    wanted = ordered[: profile.overlays.max_samples]
    drawing = _Drawing(LocalStore(output), f"{path.stem}/", profile, wanted)
    with _samples(path) as samples:
        for sample in samples:
            if sample.key in drawing.order:
                try:
                    drawing.add(sample.key, _view_of(sample, profile))
                except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                    reason = rows[sample.key].reason or str(error)
                    rows[sample.key] = replace(rows[sample.key], mask=REJECTED, reason=reason)
    shown = [rows[key] for key in wanted]
    confidence = median(row.confidence for row in rows.values() if row.mask != REJECTED)
    drawing.finish(path.stem, shown, sum(row.mask != REJECTED for row in rows.values()), confidence)
    names = sorted(file.parent.name for file in output.glob("*/summary.js"))
    LocalStore(output).write(CONTENTS, render_contents("Edit masks", names).encode())
    return output / path.stem / CONTENTS


class _Drawing:
    """The pictures of one page, written as they come; the first ones are kept for the contact sheet."""

    def __init__(self, store: Store, root: str, profile: Profile, order: Sequence[str]) -> None:
        self.store, self.settings = store, profile.overlays
        self.order = {key: position for position, key in enumerate(order)}
        self.files: dict[str, FileInfo] = {}
        self._root = root
        self._sheet: dict[str, RGB] = {}
        self._drawn: dict[str, dict[str, Any]] = {}

    def add(self, key: str, view: View) -> None:
        panels = [view.before]
        if view.after is not None:
            panels.append(view.after)
        if view.difference is not None:
            panels.append(heat_map(view.difference))
        name = f"pictures/{key}.jpg"
        self._write(name, encode_jpeg(np.concatenate(panels, axis=1), self.settings.jpeg_quality))
        height, width = view.before.shape[:2]
        self._drawn[key] = {
            "image": name, "panels": len(panels), "width": width, "height": height,
            "outline": outline(view.mask, (width, height)),
        }  # fmt: skip
        if self.order[key] < SHEET_SAMPLES:
            self._sheet[key] = _on_sheet(view)

    def finish(self, name: str, rows: Sequence[PageRow], masks: int, confidence: float | None) -> StageResult:
        """The pages; `masks` and their median `confidence` are of the whole shard, drawn or not."""
        rows = [replace(row, **self._drawn.get(row.key, {})) for row in rows]
        captions = {row.key: [row.text] for row in rows}
        preview = None
        keys = sorted(self._sheet, key=lambda key: self.order[key])
        if keys:
            whole = sheet([self._sheet[key] for key in keys], [captions[key] for key in keys])
            self._write("sheet.jpg", encode_jpeg(whole, self.settings.jpeg_quality))
            first = keys[:PREVIEW_PAIRS]
            few = sheet([self._sheet[key] for key in first], [captions[key] for key in first])
            preview = preview_jpeg(few, PREVIEW_BYTES)
        sure = [row for row in rows if row.mask != REJECTED]
        figures = {
            "masks": masks,
            "rejected": len(rows) - len(sure),
            "unsure": sum(row.confidence < 0.5 for row in sure),
            "confidence": confidence,
            "histogram": histogram(row.confidence for row in sure),
        }
        split = next((row.split for row in rows), paths.split_of(name))
        self._write("summary.js", render_summary(name, split, figures, rows).encode())
        self._write("index.html", render_page(f"Edit masks: {name}", name, rows, f"../{CONTENTS}").encode())
        self._delete_others()
        stats = {name: figures[name] for name in ("masks", "rejected", "unsure")}
        return StageResult(self.files, {**stats, "drawn": len(self._drawn)}, preview)

    def _write(self, name: str, data: bytes) -> None:
        self.files[self._root + name] = write_file(self.store, self._root + name, data)

    def _delete_others(self) -> None:
        """Pictures of an earlier drawing, which no page shows any more."""
        for name in self.store.list(f"{self._root}pictures/"):
            if name not in self.files and name.endswith(".jpg"):
                self.store.delete(name)


def _least_confident(rows: dict[str, dict[str, Any]], most: int) -> list[str]:
    return sorted(rows, key=lambda key: (rows[key]["confidence"], key))[:most]


def _lost(store: Store, shard: str, records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Reason by key of the records that gave no mask."""
    tests: dict[str, Callable[[dict[str, Any]], bool]] = {
        paths.pairs_table(shard): lambda row: row["status"] == "ok",
        paths.aligned_table(shard): lambda row: bool(row["accepted"]),
        paths.masks_table(shard): lambda row: bool(row["verdict"]),
    }
    lost = {}
    for name, passed in tests.items():
        for row in read_table(store, name):
            if row["key"] in records and not passed(row):
                lost[row["key"]] = row["reason"]
    return lost


def _view(
    pair: Sample, mask_png: bytes | None, aligned: dict[str, Any], record: dict[str, Any], profile: Profile
) -> View:
    """One pair; for one without a mask the edited picture as a plain resize."""
    before, after = decode_pair(pair, profile.fetch.max_pixels)
    tile_px = profile.overlays.tile_px
    if mask_png is None:
        size = before.shape[1], before.shape[0]
        small = fitted_size(size, tile_px)
        nothing = np.zeros((small[1], small[0]), bool)
        return View(_at(before, small), _at(after, small), None, nothing)
    homography = np.array(aligned["homography"], np.float64).reshape(3, 3)
    overlap = np.array(aligned["overlap"], np.float64).reshape(-1, 2)
    return draw(
        before, after, homography, overlap, decode_mask(mask_png), record["scope"], profile.mask, tile_px
    )


def draw(
    before: RGB,
    after: RGB | None,
    homography: Floats,
    overlap: Floats,
    mask: Mask,
    scope: str,
    settings: MaskSettings,
    tile_px: int,
) -> View:
    """A pair fitted to `tile_px`: homography and overlap are those of the pictures as given.

    The difference is measured anew at this size, which is several times faster than at the pictures' own.
    """
    size = before.shape[1], before.shape[0]
    small = fitted_size(size, tile_px)
    shown, fitted = _at(before, small), _mask_at(mask, small)
    if after is None:
        return View(shown, None, None, fitted)
    source = after.shape[1], after.shape[0]
    homography = rescaled(homography, source, source, size, small)
    found = edit_mask(shown, after, homography, project(resizing(size, small), overlap), settings, scope)
    return View(shown, warp(after, homography, small)[0], found.difference, fitted)


def _at(image: RGB, size: tuple[int, int]) -> RGB:
    same = (image.shape[1], image.shape[0]) == size
    return image if same else np.asarray(resize(image, size), np.uint8)


def _mask_at(mask: Mask, size: tuple[int, int]) -> Mask:
    same = (mask.shape[1], mask.shape[0]) == size
    return mask if same else np.asarray(resize(mask.astype(np.float32), size) >= 0.5)


def _on_sheet(view: View) -> RGB:
    if view.after is None:
        return side_by_side([view.before, tinted(view.before, view.mask, max(view.before.shape))])
    difference = np.zeros(view.mask.shape, np.float32) if view.difference is None else view.difference
    return strip(view.before, view.after, difference, view.mask, SHEET_TILE_PX)


def _page_row(record: dict[str, Any], mask: dict[str, Any] | None, reason: str) -> PageRow:
    return PageRow(
        key=record["key"],
        text=record["text"],
        type=record["edit_type"],
        scope=record["scope"],
        mask=mask["verdict"] if mask else REJECTED,
        confidence=round(mask["confidence"], 4) if mask else 0.0,
        area=round(mask["area"], 4) if mask else 0.0,
        source=record["attribution"] or record["input_url"],
        split=record["split"],
        shard=record["shard"],
        reason=reason,
    )


@contextmanager
def _samples(path: Path) -> Iterator[Iterator[Sample]]:
    """The samples of a tar or folder, with the edited pictures of the store that a tar lies in."""
    try:
        if path.is_dir():
            yield read_folder(path)
            return
        pairs = path.absolute().parents[2] / paths.pairs_tar(path.stem) if _is_stored(path) else None
        with path.open("rb") as file:
            if pairs is None or not pairs.is_file():
                yield read_samples(file)
                return
            with pairs.open("rb") as beside:
                yield _with_edited(read_samples(file), read_samples(beside))
    except SampleError as error:
        raise SampleError(f"{path}: {error}") from error


def _is_stored(path: Path) -> bool:
    return path.absolute().as_posix().endswith(f"/{paths.shard_tar(path.stem)}")


def _with_edited(samples: Iterator[Sample], pairs: Iterator[Sample]) -> Iterator[Sample]:
    """Each sample with the picture `edited` of the pair of its key. Both come in key order."""
    pair = next(pairs, None)
    for sample in samples:
        while pair is not None and pair.key < sample.key:
            pair = next(pairs, None)
        edited = pair.part("edited") if pair is not None and pair.key == sample.key else None
        yield sample if edited is None else Sample(sample.key, {**sample.parts, "edited": edited})


def _told(sample: Sample) -> PageRow:
    """What a sample says of itself; unknown where it does not."""
    text = sample.parts.get("text.txt", b"").decode("utf-8", "replace")
    unknown = PageRow(sample.key, text, "", "", REJECTED, 0.0, 0.0, "", "", "")
    try:
        meta = json.loads(sample.parts.get("meta.json", b"{}"))
        mask = meta.get("mask", {})
        return replace(
            unknown,
            type=str(meta.get("edit_type") or ""),
            scope=str(meta.get("scope") or ""),
            mask=str(mask.get("verdict") or ("global" if mask.get("is_global") else "local")),
            confidence=round(float(mask.get("confidence", 0.0)), 4),
            area=round(float(mask.get("area", 0.0)), 4),
            source=str(meta.get("attribution") or meta.get("input_url") or ""),
            split=str(meta.get("split") or ""),
            shard=str(meta.get("shard") or ""),
        )
    except (ValueError, AttributeError, TypeError) as error:
        return replace(unknown, reason=f"meta.json cannot be read: {error}")


def _view_of(sample: Sample, profile: Profile) -> View:
    photo, mask_png, edited = sample.part("input"), sample.parts.get("mask.png"), sample.part("edited")
    if photo is None or mask_png is None:
        raise ImageError(f"no {'input.jpg' if photo is None else 'mask.png'} in this sample")
    image, mask = decode(photo, _MAX_PIXELS), decode_mask(mask_png)
    if mask.shape != image.shape[:2]:
        raise ImageError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]}, the photograph {image.shape[1]} x "
            f"{image.shape[0]}"
        )
    size = image.shape[1], image.shape[0]
    after, homography, overlap, scope = None, np.eye(3), frame(size), ""
    if edited is not None:
        try:
            meta = json.loads(sample.parts["meta.json"])
            homography = np.array(meta["homography"], np.float64).reshape(3, 3)
            overlap = np.array(meta["overlap"], np.float64).reshape(-1, 2)
            scope, told = str(meta["scope"]), (meta["edited_height"], meta["edited_width"])
            after = decode(edited, _MAX_PIXELS)
        except (ValueError, KeyError, TypeError):  # the mask can be judged all the same
            told = None
        if after is not None and after.shape[:2] != told:
            after = None
    return draw(image, after, homography, overlap, mask, scope, profile.mask, profile.overlays.tile_px)
