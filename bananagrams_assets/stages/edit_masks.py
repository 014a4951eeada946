"""The `edit_masks` stage: the pixels of the input that each edit changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from ..storage import paths
from ..storage.sample_tar import read_samples, sample_writer
from ..storage.tables import MASKS_COLUMNS, by_key, read_table, write_table
from ..vision.geometry import warp
from ..vision.images import RGB, ImageError, encode_png_mask
from ..vision.mask import EditMask, edit_mask
from .image_pairs import decode_pair
from .stage import StageResult, StageRun
from .statistics import (
    PREVIEW_PAIRS,
    PREVIEW_TILE_PX,
    by_edit_type,
    counts,
    histogram,
    median,
    preview,
    reasons,
)

MASK_PART = "mask.png"


def make_masks(run: StageRun) -> StageResult:
    """Write `edit_masks/<shard>.tar`, one-bit PNGs of the inputs' sizes, and the table of masks.

    The table has one row for each accepted pair. The row of a failed mask has an empty verdict and a reason.
    Raises StoreError, SampleError.
    """
    store, settings, shard = run.store, run.settings, run.partition
    records = by_key(read_table(store, paths.manifest_table(shard)))
    alignments = by_key(read_table(store, paths.aligned_table(shard)))
    rows: list[dict[str, Any]] = []
    strips: list[RGB] = []
    captions: list[list[str]] = []
    # The matrices are too small for BLAS threads to pay off.
    with (
        store.open(paths.pairs_tar(shard)) as file,
        sample_writer(store, paths.masks_tar(shard)) as tar,
        threadpool_limits(1, "blas"),
    ):
        for sample in read_samples(file):
            alignment = alignments.get(sample.key)
            if alignment is None or not alignment["accepted"] or sample.key not in records:
                continue
            homography = np.array(alignment["homography"], np.float64).reshape(3, 3)
            overlap = np.array(alignment["overlap"], np.float64).reshape(-1, 2)
            try:
                before, after = decode_pair(sample, settings.fetch.max_pixels)
                result = edit_mask(
                    before, after, homography, overlap, settings.mask, records[sample.key]["scope"]
                )
            except (ImageError, cv2.error, np.linalg.LinAlgError) as error:
                rows.append(_rejected(sample.key, str(error)))
                continue
            tar.add(sample.key, MASK_PART, encode_png_mask(result.mask, one_bit=True))
            rows.append(_row(sample.key, result))
            if len(strips) < PREVIEW_PAIRS:
                strips.append(_strip(before, after, homography, result))
                captions.append([records[sample.key]["summary"]])
            if len(rows) % 100 == 0:
                run.log(f"{shard}: {len(rows)} masks made")
    files = {
        paths.masks_tar(shard): tar.file.info,
        paths.masks_table(shard): write_table(store, paths.masks_table(shard), MASKS_COLUMNS, rows),
    }
    types = {key: record["edit_type"] for key, record in records.items()}
    return StageResult(files, _stats(rows, alignments.values(), types), preview(strips, captions))


def _row(key: str, result: EditMask) -> dict[str, Any]:
    return {
        "key": key,
        "verdict": result.verdict,
        "is_global": result.is_global,
        "area": result.area,
        "components": result.components,
        "confidence": result.confidence,
        "noise": result.noise,
        "reason": "",
    }


def _rejected(key: str, reason: str) -> dict[str, Any]:
    numbers = {"area": 0.0, "components": 0, "confidence": 0.0, "noise": 0.0}
    return {"key": key, "verdict": "", "is_global": False, **numbers, "reason": reason}


def _strip(before: RGB, after: RGB, homography: Any, result: EditMask) -> RGB:
    from ..vision.overlay import panel_strip

    warped, _ = warp(after, homography, (before.shape[1], before.shape[0]))
    return panel_strip(before, warped, result.difference, result.mask, PREVIEW_TILE_PX)


def _stats(
    rows: list[dict[str, Any]], alignments: Iterable[dict[str, Any]], types: dict[str, str]
) -> dict[str, Any]:
    made = [row for row in rows if row["verdict"]]
    return {
        "pairs": len(rows),
        "masks": len(made),
        "rejected": len(rows) - len(made),
        "reasons": reasons(rows),
        "verdicts": counts(row["verdict"] for row in made),
        "median_area": median(row["area"] for row in made),
        "median_confidence": median(row["confidence"] for row in made),
        "median_noise": median(row["noise"] for row in made),
        "area_histogram": histogram(row["area"] for row in made),
        "confidence_histogram": histogram(row["confidence"] for row in made),
        "aligned_by_edit_type": by_edit_type(
            (row for row in alignments if row["key"] in types),
            types,
            "aligned",
            lambda row: bool(row["accepted"]),
        ),
        "by_edit_type": by_edit_type(rows, types, "local", lambda row: row["verdict"] == "local"),
    }
