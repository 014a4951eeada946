"""The review page of one shard: an image for each sample, a contact sheet, and the HTML that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import MaskSettings, OverlaySettings
from ..storage import paths
from ..storage.hashed_files import write_file
from ..storage.store import FileInfo, Store
from ..vision.geometry import Floats, project, rescale_homography, resize_homography, warp
from ..vision.images import RGB, Mask, encode_jpeg, fitted_size, resize
from ..vision.mask import edit_mask
from ..vision.overlay import contact_sheet, heat_map, mask_overlay, outline_path, panel_strip, preview_jpeg
from ..vision.page import REJECTED, PageRow, render_page, render_summary
from .stage import StageResult
from .statistics import PREVIEW_BYTES, PREVIEW_PAIRS, histogram, side_by_side

CONTENTS = "index.html"
SHEET_TILE_PX = 256
SHEET_SAMPLES = 12


@dataclass(frozen=True)
class SampleView:
    """The images of one sample at the size of the page, (H, W) each.

    `after` is the aligned edited image and `difference` the color difference (dE); each is None if unknown.
    """

    before: RGB
    after: RGB | None
    difference: np.ndarray[Any, np.dtype[np.float32]] | None
    mask: Mask


class OverlayPage:
    """Writes the images of one page as they are drawn, and keeps the first ones for the contact sheet."""

    def __init__(self, store: Store, root: str, settings: OverlaySettings, order: Sequence[str]) -> None:
        self.store, self.settings = store, settings
        self.order = {key: position for position, key in enumerate(order)}
        self.files: dict[str, FileInfo] = {}
        self._root = root
        self._sheet: dict[str, RGB] = {}
        self._drawn: dict[str, dict[str, Any]] = {}

    def add(self, key: str, view: SampleView) -> None:
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
            "outline": outline_path(view.mask, (width, height)),
        }  # fmt: skip
        if self.order[key] < SHEET_SAMPLES:
            self._sheet[key] = _on_sheet(view)

    def finish(self, name: str, rows: Sequence[PageRow], masks: int, confidence: float | None) -> StageResult:
        """Write the page and its summary; return the result of the stage.

        `masks` and their median `confidence` are those of the whole shard, including masks not drawn.
        """
        rows = [replace(row, **self._drawn.get(row.key, {})) for row in rows]
        captions = {row.key: [row.text] for row in rows}
        preview = None
        keys = sorted(self._sheet, key=lambda key: self.order[key])
        if keys:
            sheet = contact_sheet([self._sheet[key] for key in keys], [captions[key] for key in keys])
            self._write("sheet.jpg", encode_jpeg(sheet, self.settings.jpeg_quality))
            first = keys[:PREVIEW_PAIRS]
            small_sheet = contact_sheet([self._sheet[key] for key in first], [captions[key] for key in first])
            preview = preview_jpeg(small_sheet, PREVIEW_BYTES)
        accepted = [row for row in rows if row.mask != REJECTED]
        figures = {
            "masks": masks,
            "rejected": len(rows) - len(accepted),
            "unsure": sum(row.confidence < 0.5 for row in accepted),
            "confidence": confidence,
            "histogram": histogram(row.confidence for row in accepted),
        }
        split = next((row.split for row in rows), paths.split_of(name))
        self._write("summary.js", render_summary(name, split, figures, rows).encode())
        self._write("index.html", render_page(f"Edit masks: {name}", name, rows, f"../{CONTENTS}").encode())
        self._delete_outdated()
        stats = {name: figures[name] for name in ("masks", "rejected", "unsure")}
        return StageResult(self.files, {**stats, "drawn": len(self._drawn)}, preview)

    def _write(self, name: str, data: bytes) -> None:
        self.files[self._root + name] = write_file(self.store, self._root + name, data)

    def _delete_outdated(self) -> None:
        """Delete images of an earlier version of the page that this one does not show."""
        for name in self.store.list(f"{self._root}pictures/"):
            if name not in self.files and name.endswith(".jpg"):
                self.store.delete(name)


def sample_view(
    before: RGB,
    after: RGB | None,
    homography: Floats,
    overlap: Floats,
    mask: Mask,
    scope: str,
    settings: MaskSettings,
    tile_px: int,
) -> SampleView:
    """Return the view of a pair, fitted to `tile_px`.

    `homography` and `overlap` refer to the sizes of the given images. The difference is computed at the
    fitted size, which is several times faster than at full size.
    """
    size = before.shape[1], before.shape[0]
    small = fitted_size(size, tile_px)
    shown, small_mask = fit_image(before, small), _fit_mask(mask, small)
    if after is None:
        return SampleView(shown, None, None, small_mask)
    source = after.shape[1], after.shape[0]
    homography = rescale_homography(homography, source, source, size, small)
    result = edit_mask(
        shown, after, homography, project(resize_homography(size, small), overlap), settings, scope
    )
    return SampleView(shown, warp(after, homography, small)[0], result.difference, small_mask)


def fit_image(image: RGB, size: tuple[int, int]) -> RGB:
    """Return the image resized to `size` (width, height)."""
    same = (image.shape[1], image.shape[0]) == size
    return image if same else np.asarray(resize(image, size), np.uint8)


def _fit_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    same = (mask.shape[1], mask.shape[0]) == size
    return mask if same else np.asarray(resize(mask.astype(np.float32), size) >= 0.5)


def _on_sheet(view: SampleView) -> RGB:
    if view.after is None:
        return side_by_side([view.before, mask_overlay(view.before, view.mask, max(view.before.shape))])
    difference = np.zeros(view.mask.shape, np.float32) if view.difference is None else view.difference
    return panel_strip(view.before, view.after, difference, view.mask, SHEET_TILE_PX)
