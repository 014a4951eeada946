"""Mask metrics over a split, from counts of pixels that are kept for each sample and level.

Pixels that are not known count nowhere. What is kept of a sample is a row of numbers, never its pixels, so
that a split of any length is scored in little memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
"""(…, 3): pixels in both prediction and truth, in the prediction alone, in the truth alone."""
Mask: TypeAlias = npt.NDArray[np.bool_]
Interval: TypeAlias = list[float]

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = 256
"""Steps that probabilities are counted in."""
THRESHOLDS = np.arange(1, 32) / 32
"""Those that a best one is chosen from."""
DEFAULT = 0.5
RESAMPLES = 1000
COVERAGE = 0.95
BUCKETS = (0.01, 0.05, 0.2, 0.5)
"""Bounds of the buckets of mask size, as shares of the known pixels."""
BOUNDARY_TOLERANCE = 0.008
"""Of the picture's diagonal, as DAVIS takes it (Perazzi et al. 2016)."""


def count(predicted: Mask, truth: Mask, known: Mask) -> tuple[int, int, int]:
    """One sample's counts, of three bool (H, W)."""
    both = int((predicted & truth & known).sum())
    return both, int((predicted & known).sum()) - both, int((truth & known).sum()) - both


def level_histogram(probability: npt.NDArray[np.float32], truth: Mask, known: Mask) -> Counts:
    """Known pixels by truth and level of probability 0..1 (H, W) → int64 (2, LEVELS)."""
    levels = np.minimum(probability[known] * LEVELS, LEVELS - 1).astype(np.int64)
    return np.bincount(levels + LEVELS * truth[known], minlength=2 * LEVELS).reshape(2, LEVELS)


def counts_by_threshold(histogram: Counts) -> Counts:
    """A level_histogram → int64 (len(THRESHOLDS), 3): the counts of `probability >= threshold` for each."""
    above = histogram[:, ::-1].cumsum(1)[:, ::-1]
    false, true = above[:, (THRESHOLDS * LEVELS).astype(int)]
    return np.stack([true, false, histogram[1].sum() - true], 1)


def ious(counts: Counts) -> npt.NDArray[np.float64]:
    """Intersection over union, float64 (…); 1 where prediction and truth are both empty."""
    union = counts.sum(-1)
    return np.where(union == 0, 1.0, counts[..., 0] / np.maximum(union, 1))


def average_precision(histogram: Counts) -> float:
    """Area under precision over recall of single pixels (CLIPSeg, Lüddecke and Ecker 2022), 0 without truth.

    `histogram` is the sum of the samples' level_histograms; pixels of one level count as tied.
    """
    false, true = histogram[:, ::-1].cumsum(1)
    if not true[-1]:
        return 0.0
    precision = true / np.maximum(true + false, 1)
    return float((precision * np.diff(true, prepend=0)).sum() / true[-1])


def boundary_f(predicted: Mask, truth: Mask, known: Mask) -> float:
    """F-measure of the two boundaries, each matched within BOUNDARY_TOLERANCE (Perazzi et al. 2016).

    The picture's frame bounds a mask that reaches it, so that a mask of everything has a boundary too.
    1 where neither has a boundary, 0 where only one has.
    """
    lines = [_boundary(mask) & known for mask in (predicted, truth)]
    if not lines[0].any() or not lines[1].any():
        return float(lines[0].any() == lines[1].any())
    reach = max(1.0, BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)))
    precision, recall = (
        float((_distance_to(other)[line] <= reach).mean()) for line, other in (lines, lines[::-1])
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_threshold(counts: Counts) -> float:
    """The one of THRESHOLDS with the highest mean IoU; of equals the nearest to 0.5. counts (N, K, 3)."""
    means = ious(counts).mean(0)
    best = THRESHOLDS[means >= means.max() - 1e-9]
    return float(best[np.argmin(np.abs(best - DEFAULT))])


def summarise(counts: Counts, boundary: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """Metrics over N ≥ 1 samples of counts (N, 3), and boundary F (N,) if that is given.

    `mean_iou` averages over samples, `overall_iou` over pixels (the referring-segmentation literature
    gives both: LAVT, Yang et al. 2022), `precision` and `recall` over pixels, `p_at_0.5` … `p_at_0.9` are
    the shares of samples whose IoU reaches that, `boundary_f` averages over samples.
    """
    return {name: _ratio(*parts) for name, parts in _parts(counts, boundary).items()}


def intervals(
    counts: Counts, sources: Sequence[str], boundary: npt.NDArray[np.float64] | None = None
) -> dict[str, Interval]:
    """A 95% interval for each figure of `summarise`, by bootstrap over source photographs."""
    return {name: ratio_interval(*parts, sources) for name, parts in _parts(counts, boundary).items()}


def mean_interval(values: npt.NDArray[np.float64], sources: Sequence[str]) -> Interval:
    """A 95% interval for the mean of one value a sample; of differences, that of a paired gain."""
    return ratio_interval(values, np.ones(len(values)), sources)


def ratio_interval(part: npt.NDArray[Any], whole: npt.NDArray[Any], sources: Sequence[str]) -> Interval:
    """A 95% percentile interval for sum(part) / sum(whole), both (N,).

    Samples of one source photograph are not independent, so photographs are drawn, each with all its
    samples (cluster bootstrap: Davison and Hinkley 1997, section 3.8).
    """
    names, cluster = np.unique(np.asarray(sources), return_inverse=True)
    parts, wholes = (np.bincount(cluster, np.asarray(values, np.float64)) for values in (part, whole))
    rng = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        drawn[i] = _ratio(times @ parts, times @ wholes)
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return [float(low), float(high)]


def by_group(
    counts: Counts, groups: Mapping[str, Sequence[str]], sources: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each grouping (name → a label a sample): label → `samples`, `mean_iou` and its `interval`."""
    each = ious(counts)
    named = np.asarray(sources)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, labels in groups.items():
        array = np.asarray(labels)
        result[name] = {}
        for label in sorted(set(labels)):
            chosen = array == label
            result[name][label] = {
                "samples": int(chosen.sum()),
                "mean_iou": float(each[chosen].mean()),
                "interval": mean_interval(each[chosen], named[chosen].tolist()),
            }
    return result


def size_bucket(truth: Mask, known: Mask) -> str:
    """The bucket of a mask's share of the known pixels, such as `0.05 to 0.2`."""
    share = (truth & known).sum() / max(1, known.sum())
    at = int(np.searchsorted(BUCKETS, share, "right"))
    bounds = (0, *BUCKETS, 1)
    return f"{bounds[at]:g} to {bounds[at + 1]:g}"


def _parts(
    counts: Counts, boundary: npt.NDArray[np.float64] | None
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Each figure as the two numbers a sample whose sums it is the ratio of."""
    both, only_predicted, only_truth = counts.T
    each, ones = ious(counts), np.ones(len(counts))
    parts = {
        "mean_iou": (each, ones),
        "overall_iou": (both, both + only_predicted + only_truth),
        "precision": (both, both + only_predicted),
        "recall": (both, both + only_truth),
        **{f"p_at_{limit}": (each >= limit, ones) for limit in PRECISION_AT},
    }
    return parts if boundary is None else {**parts, "boundary_f": (boundary, ones)}


def _ratio(part: Any, whole: Any) -> float:
    total = float(np.sum(whole))
    return float(np.sum(part)) / total if total else 1.0


def _boundary(mask: Mask) -> Mask:
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT,
                       borderValue=0)  # fmt: skip
    return np.asarray(mask & (inside == 0))


def _distance_to(line: Mask) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, 5), np.float32)
