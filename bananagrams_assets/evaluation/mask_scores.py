"""Scores of a mask against a true mask, and calibration of a confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..vision.images import Mask

BOUNDARY_TOLERANCE_PX = 2
"""Largest distance between matching outline pixels in boundary F."""
BINS = 10
"""Bins of confidence in `reliability`."""


@dataclass(frozen=True)
class MaskScores:
    """Scores 0..1. `false_area`: share of the valid pixels that are wrongly in the mask."""

    iou: float
    precision: float
    recall: float
    boundary_f: float
    false_area: float


def score_mask(mask: Mask, truth: Mask, valid: Mask) -> MaskScores:
    """Score a mask over the valid pixels; all three bool (H, W).

    Two empty masks score 1. The precision of an empty mask and the recall of an empty truth are 1.
    """
    mask, truth = mask & valid, truth & valid
    intersection, union = int((mask & truth).sum()), int((mask | truth).sum())
    area, true_area = int(mask.sum()), int(truth.sum())
    return MaskScores(
        iou=intersection / union if union else 1.0,
        precision=intersection / area if area else 1.0,
        recall=intersection / true_area if true_area else 1.0,
        boundary_f=boundary_f_px(mask, truth, valid),
        false_area=(area - intersection) / max(1, int(valid.sum())),
    )


def boundary_f_px(mask: Mask, truth: Mask, valid: Mask) -> float:
    """Return the F-measure of outline pixels within BOUNDARY_TOLERANCE_PX (Perazzi et al., CVPR 2016).

    A mask has no outline where it meets invalid pixels or the image's frame. Two masks without an outline
    score 1, one with and one without score 0.
    """
    outline, true_outline = _outline(mask, valid), _outline(truth, valid)
    if not outline.any() or not true_outline.any():
        return float(outline.any() == true_outline.any())
    precision = _share_within(outline, true_outline)
    recall = _share_within(true_outline, outline)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_within(outline: Mask, other: Mask) -> float:
    """Return the share of an outline's pixels within BOUNDARY_TOLERANCE_PX of the other outline."""
    distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, 5)
    return float((distance <= BOUNDARY_TOLERANCE_PX)[outline].mean())


def _outline(mask: Mask, valid: Mask) -> Mask:
    """Return pixels of the mask with a valid pixel outside the mask above, below, left or right."""
    cross = np.asarray(cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.uint8)
    outside = (valid & ~mask).astype(np.uint8)
    return np.asarray(mask & (cv2.dilate(outside, cross, borderValue=0) > 0))


def auroc(confidence: Sequence[float], good: Sequence[bool]) -> float | None:
    """Return the probability that a good item has a higher confidence than a bad one; ties count half.

    None if all items are good or all are bad.
    """
    values, is_good = np.asarray(confidence, np.float64), np.asarray(good, bool)
    positive, negative = values[is_good], values[~is_good]
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    below_or_equal = np.searchsorted(ordered, positive, "right")
    return float((below + below_or_equal).sum() / (2 * len(positive) * len(negative)))


def reliability(confidence: Sequence[float], good: Sequence[bool]) -> list[dict[str, float]]:
    """Return the nonempty bins of confidence: `from`, `to`, `count`, mean `confidence` and share `good`."""
    values: NDArray[np.float64] = np.asarray(confidence, np.float64)
    is_good = np.asarray(good, bool)
    index = np.clip((values * BINS).astype(int), 0, BINS - 1)
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "count": int((index == number).sum()),
            "confidence": float(values[index == number].mean()),
            "good": float(is_good[index == number].mean()),
        }
        for number in range(BINS)
        if (index == number).any()
    ]


def calibration_error(confidence: Sequence[float], good: Sequence[bool]) -> float | None:
    """Return the expected calibration error (Guo et al., ICML 2017): mean |confidence - share good|."""
    rows = reliability(confidence, good)
    if not rows:
        return None
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["good"]) for row in rows) / total
