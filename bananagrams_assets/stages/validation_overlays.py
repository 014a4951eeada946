"""The `validation_overlays` stage: pages for judging masks by eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from ..config import Profile
from ..storage import paths
from ..storage.hashed_files import write_file
from ..storage.sample_tar import Sample, join_by_key, read_samples
from ..storage.store import Store
from ..storage.tables import by_key, read_table
from ..vision.images import ImageError, decode_mask, fitted_size
from ..vision.page import REJECTED, PageRow, render_contents
from .edit_masks import MASK_PART
from .image_pairs import decode_pair
from .overlay_page import OverlayPage, SampleView, fit_image, sample_view
from .stage import StageResult, StageRun
from .statistics import median


def draw_overlays(run: StageRun) -> StageResult:
    """Write `overlays/<shard>/`: an image for each sample, a contact sheet, and the page that shows them.

    The page lists `overlays.max_samples` samples, least confident first, then every record without a mask and
    the reason. Every shard writes the same `overlays/index.html`, the page over all shards. Raises
    StoreError, SampleError.
    """
    store, profile, shard = run.store, run.settings, run.partition
    records = by_key(read_table(store, paths.manifest_table(shard)))
    reasons = _reasons_without_mask(store, shard, records)
    masks_by_key = {row["key"]: row for row in read_table(store, paths.masks_table(shard)) if row["verdict"]}
    listed = _least_confident(masks_by_key, profile.overlays.max_samples)
    rejected = sorted(reasons)
    page = OverlayPage(store, f"{paths.OVERLAYS}{shard}/", profile.overlays, [*listed, *rejected])
    aligned = by_key(read_table(store, paths.aligned_table(shard)))
    to_draw = {*listed, *rejected[: profile.overlays.max_samples]}
    with store.open(paths.pairs_tar(shard)) as pairs, store.open(paths.masks_tar(shard)) as masks:
        for pair, mask in join_by_key(read_samples(pairs), read_samples(masks)):
            if pair.key not in to_draw or pair.key not in aligned:
                continue
            try:
                page.add(pair.key, _view(pair, mask, aligned[pair.key], records[pair.key], profile))
            except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                reasons.setdefault(pair.key, str(error))
    rows = [
        _page_row(records[key], masks_by_key.get(key), reasons.get(key, "")) for key in (*listed, *rejected)
    ]
    confidence = median(row["confidence"] for row in masks_by_key.values())
    result = page.finish(shard, rows, len(masks_by_key), confidence)
    html = render_contents("Edit masks", profile.splits.shard_keys()).encode()
    contents = {paths.OVERLAYS_CONTENTS: write_file(store, paths.OVERLAYS_CONTENTS, html)}
    return replace(result, files={**result.files, **contents})


def _least_confident(rows: dict[str, dict[str, Any]], count: int) -> list[str]:
    return sorted(rows, key=lambda key: (rows[key]["confidence"], key))[:count]


def _reasons_without_mask(store: Store, shard: str, records: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the reason by key of every record without a mask."""
    conditions: dict[str, Callable[[dict[str, Any]], bool]] = {
        paths.pairs_table(shard): lambda row: row["status"] == "ok",
        paths.aligned_table(shard): lambda row: bool(row["accepted"]),
        paths.masks_table(shard): lambda row: bool(row["verdict"]),
    }
    reasons = {}
    for name, passed in conditions.items():
        for row in read_table(store, name):
            if row["key"] in records and not passed(row):
                reasons[row["key"]] = row["reason"]
    return reasons


def _view(
    pair: Sample, mask: Sample | None, aligned: dict[str, Any], record: dict[str, Any], profile: Profile
) -> SampleView:
    """Return the view of one pair. Without a mask the edited image is resized, not aligned."""
    before, after = decode_pair(pair, profile.fetch.max_pixels)
    tile_px = profile.overlays.tile_px
    if mask is None:
        size = before.shape[1], before.shape[0]
        small = fitted_size(size, tile_px)
        empty = np.zeros((small[1], small[0]), bool)
        return SampleView(fit_image(before, small), fit_image(after, small), None, empty)
    homography = np.array(aligned["homography"], np.float64).reshape(3, 3)
    overlap = np.array(aligned["overlap"], np.float64).reshape(-1, 2)
    png = mask.parts[MASK_PART]
    return sample_view(
        before, after, homography, overlap, decode_mask(png), record["scope"], profile.mask, tile_px
    )


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
