"""How good a mask is against a true one, and how far a confidence can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.vision.images import Mask

BOUNDARY_PX = 2
"""How far an outline may be off in boundary F."""


@dataclass(frozen=True)
class MaskScores:
    """All 0..1. `false_area`: the share of known pixels that the mask holds wrongly."""

    iou: float
    precision: float
    recall: float
    boundary_f: float
    false_area: float


def score_mask(found: Mask, truth: Mask, known: Mask) -> MaskScores:
    """Scores of a mask over the known pixels; all three bool (H, W).

    Of two empty masks everything is 1. Precision of an empty mask is 1, recall of an empty truth is 1.
    """
    found, truth = found & known, truth & known
    both, either = int((found & truth).sum()), int((found | truth).sum())
    area, true_area = int(found.sum()), int(truth.sum())
    return MaskScores(
        iou=both / either if either else 1.0,
        precision=both / area if area else 1.0,
        recall=both / true_area if true_area else 1.0,
        boundary_f=boundary_f(found, truth, known),
        false_area=(area - both) / max(1, int(known.sum())),
    )


def boundary_f(found: Mask, truth: Mask, known: Mask, tolerance_px: int = BOUNDARY_PX) -> float:
    """F-measure of outlines that may be `tolerance_px` apart (Perazzi et al., CVPR 2016).

    Where a mask runs into the unknown or out of the picture it has no outline. 1 where both have none, 0
    where one has.
    """
    one, other = _outline(found, known), _outline(truth, known)
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    near_other = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, 5) <= tolerance_px
    near_one = cv2.distanceTransform((~one).astype(np.uint8), cv2.DIST_L2, 5) <= tolerance_px
    precision, recall = float(near_other[one].mean()), float(near_one[other].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask: Mask, known: Mask) -> Mask:
    """Pixels of the mask with a known pixel outside the mask above, below, left or right."""
    cross = np.asarray(cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.uint8)
    outside = (known & ~mask).astype(np.uint8)
    return np.asarray(mask & (cv2.dilate(outside, cross, borderValue=0) > 0))


def auroc(confidence: Sequence[float], good: Sequence[bool]) -> float | None:
    """The chance that a good one has a higher confidence than a bad one, ties counting half.

    None where all are good or all are bad.
    """
    values, is_good = np.asarray(confidence, np.float64), np.asarray(good, bool)
    wins, losses = values[is_good], values[~is_good]
    if not len(wins) or not len(losses):
        return None
    ordered = np.sort(losses)
    below, up_to = np.searchsorted(ordered, wins, "left"), np.searchsorted(ordered, wins, "right")
    return float((below + up_to).sum() / (2 * len(wins) * len(losses)))


def reliability(confidence: Sequence[float], good: Sequence[bool], bins: int = 10) -> list[dict[str, float]]:
    """For each tenth of the range of confidence that occurs: `from`, `to`, `count`, mean `confidence`, share
    `good`."""
    values: NDArray[np.float64] = np.asarray(confidence, np.float64)
    is_good = np.asarray(good, bool)
    index = np.clip((values * bins).astype(int), 0, bins - 1)
    return [
        {
            "from": number / bins,
            "to": (number + 1) / bins,
            "count": int((index == number).sum()),
            "confidence": float(values[index == number].mean()),
            "good": float(is_good[index == number].mean()),
        }
        for number in range(bins)
        if (index == number).any()
    ]


def calibration_error(confidence: Sequence[float], good: Sequence[bool], bins: int = 10) -> float | None:
    """Expected calibration error (Guo et al., ICML 2017): |confidence - share good|, averaged over all."""
    rows = reliability(confidence, good, bins)
    if not rows:
        return None
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["confidence"] - row["good"]) for row in rows) / total
