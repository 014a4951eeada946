"""Mask metrics, computed from three counts of pixels a sample.

Counts are int64 (N, 3): pixels in both prediction and truth, in the prediction alone, in the truth alone.
Pixels that are not known count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


def count(
    predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]
) -> tuple[int, int, int]:
    """One sample's counts, of three bool (H, W)."""
    both = int((predicted & truth & known).sum())
    return both, int((predicted & known).sum()) - both, int((truth & known).sum()) - both


def ious(counts: Counts) -> npt.NDArray[np.float64]:
    """Intersection over union of each sample, float64 (N,); 1 where prediction and truth are both empty."""
    union = counts.sum(1)
    return np.where(union == 0, 1.0, counts[:, 0] / np.maximum(union, 1))


def summarise(counts: Counts) -> dict[str, float]:
    """Metrics over N ≥ 1 samples.

    `mean_iou` averages over samples, `overall_iou` over pixels (the referring-segmentation literature
    gives both: LAVT, Yang et al. 2022), `precision` and `recall` over pixels, `p_at_0.5` … `p_at_0.9` are
    the shares of samples whose IoU reaches that.
    """
    each = ious(counts)
    both, only_predicted, only_truth = (int(value) for value in counts.sum(0))

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else 1.0

    return {
        "mean_iou": float(each.mean()),
        "overall_iou": ratio(both, both + only_predicted + only_truth),
        "precision": ratio(both, both + only_predicted),
        "recall": ratio(both, both + only_truth),
        **{f"p_at_{limit}": float((each >= limit).mean()) for limit in PRECISION_AT},
    }


def by_group(counts: Counts, groups: Mapping[str, list[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """For each grouping (its name → a label for each sample): label → `samples` and `mean_iou`."""
    each = ious(counts)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, labels in groups.items():
        array = np.asarray(labels)
        result[name] = {
            label: {"samples": int((array == label).sum()), "mean_iou": float(each[array == label].mean())}
            for label in sorted(set(labels))
        }
    return result
