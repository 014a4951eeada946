"""The `aligned_pairs` stage: the homography from each edited image to its input."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from ..storage import paths
from ..storage.sample_tar import read_samples
from ..storage.tables import ALIGNED_COLUMNS, write_table
from ..vision.align import Alignment, align
from ..vision.geometry import warp
from ..vision.images import RGB, ImageError, fit
from .image_pairs import decode_pair
from .stage import StageResult, StageRun
from .statistics import (
    PREVIEW_PAIRS,
    PREVIEW_TILE_PX,
    counts,
    histogram,
    median,
    preview,
    reasons,
    side_by_side,
)


def align_pairs(run: StageRun) -> StageResult:
    """Write `aligned_pairs/<shard>.parquet`, one row for each pair of the shard's images.

    The row of a pair that cannot be aligned has `accepted` false and a reason. Raises StoreError, and
    SampleError for a damaged tar of images.
    """
    store, settings, shard = run.store, run.settings, run.partition
    rows: list[dict[str, Any]] = []
    strips: list[RGB] = []
    # The matrices are too small for BLAS threads to pay off.
    with store.open(paths.pairs_tar(shard)) as file, threadpool_limits(1, "blas"):
        for sample in read_samples(file):
            try:
                before, after = decode_pair(sample, settings.fetch.max_pixels)
                alignment = align(before, after, settings.align)
            except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                rows.append(_rejected(sample.key, str(error)))
                continue
            rows.append(_row(sample.key, before, after, alignment))
            if alignment.accepted and len(strips) < PREVIEW_PAIRS:
                strips.append(_strip(before, after, alignment))
            if len(rows) % 100 == 0:
                run.log(f"{shard}: {len(rows)} pairs aligned")
    name = paths.aligned_table(shard)
    files = {name: write_table(store, name, ALIGNED_COLUMNS, rows)}
    return StageResult(
        files, _stats(rows), preview(strips, [[row["key"]] for row in _accepted(rows)][: len(strips)])
    )


def _row(key: str, before: RGB, after: RGB, alignment: Alignment) -> dict[str, Any]:
    return {
        "key": key,
        "accepted": alignment.accepted,
        "reason": alignment.reason,
        "method": alignment.method,
        "homography": alignment.homography.ravel().tolist(),
        "inliers": alignment.inliers,
        "inlier_ratio": alignment.inlier_ratio,
        "residual_px": alignment.residual_px,
        "overlap": alignment.overlap.ravel().tolist(),
        "overlap_share": alignment.overlap_share,
        "confidence": alignment.confidence,
        "width": before.shape[1],
        "height": before.shape[0],
        "edited_width": after.shape[1],
        "edited_height": after.shape[0],
    }


def _rejected(key: str, reason: str) -> dict[str, Any]:
    return {
        "key": key,
        "accepted": False,
        "reason": reason,
        "method": "none",
        "homography": np.eye(3).ravel().tolist(),
        "inliers": 0,
        "inlier_ratio": 0.0,
        "residual_px": 0.0,
        "overlap": [],
        "overlap_share": 0.0,
        "confidence": 0.0,
        "width": 0,
        "height": 0,
        "edited_width": 0,
        "edited_height": 0,
    }


def _strip(before: RGB, after: RGB, alignment: Alignment) -> RGB:
    """Return the input, the aligned edited image and their average, which shows misalignment as ghosting."""
    size = (before.shape[1], before.shape[0])
    warped, valid = warp(after, alignment.homography, size)
    warped = np.where(valid[..., None], warped, 255).astype(np.uint8)
    blend = np.asarray(cv2.addWeighted(before, 0.5, warped, 0.5, 0), np.uint8)
    return side_by_side([fit(image, PREVIEW_TILE_PX) for image in (before, warped, blend)])


def _accepted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["accepted"]]


def _stats(rows: list[dict[str, Any]]) -> dict[str, Any]:
    accepted = _accepted(rows)
    return {
        "pairs": len(rows),
        "accepted": len(accepted),
        "rejected": len(rows) - len(accepted),
        "accepted_share": round(len(accepted) / len(rows), 4) if rows else 1.0,
        "reasons": reasons(rows),
        "methods": counts(row["method"] for row in accepted),
        "median_inliers": median(row["inliers"] for row in accepted),
        "median_residual_px": median(row["residual_px"] for row in accepted),
        "median_confidence": median(row["confidence"] for row in accepted),
        "median_overlap_share": median(row["overlap_share"] for row in accepted),
        "confidence_histogram": histogram(row["confidence"] for row in accepted),
    }
