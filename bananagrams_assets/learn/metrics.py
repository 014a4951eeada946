"""Mask metrics over a split, computed from pixel counts per sample.

Only valid pixels count. A sample is reduced to a few numbers, so that memory does not depend on image sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
"""(…, 3): numbers of true positive, false positive and false negative pixels."""
Mask: TypeAlias = npt.NDArray[np.bool_]
Values: TypeAlias = npt.NDArray[Any]
"""(N,): one number per sample."""
Interval: TypeAlias = list[float]

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = 256
"""Number of bins of the histogram of probabilities."""
THRESHOLDS = np.arange(1, 32) / 32
"""Candidates for the best threshold."""
DEFAULT_THRESHOLD = 0.5
RESAMPLES = 1000
COVERAGE = 0.95
BUCKETS = (0.01, 0.05, 0.2, 0.5)
"""Limits of the buckets of mask size, as fractions of the valid pixels."""
BOUNDARY_TOLERANCE = 0.008
"""Tolerance as a fraction of the image diagonal, as in DAVIS (Perazzi et al. 2016)."""


def pixel_counts(predicted: Mask, truth: Mask, valid: Mask) -> tuple[int, int, int]:
    """Return true positives, false positives and false negatives of one sample; all masks bool (H, W)."""
    true_positive = int((predicted & truth & valid).sum())
    false_positive = int((predicted & valid).sum()) - true_positive
    return true_positive, false_positive, int((truth & valid).sum()) - true_positive


def level_histogram(probability: npt.NDArray[np.float32], truth: Mask, valid: Mask) -> Counts:
    """Count the valid pixels by truth and bin of probability 0..1 (H, W): int64 (2, LEVELS)."""
    levels = np.minimum(probability[valid] * LEVELS, LEVELS - 1).astype(np.int64)
    return np.bincount(levels + LEVELS * truth[valid], minlength=2 * LEVELS).reshape(2, LEVELS)


def counts_by_threshold(histogram: Counts) -> Counts:
    """Return the pixel counts of `probability >= threshold` for each of THRESHOLDS: int64 (K, 3).

    `histogram` is a sample's level_histogram.
    """
    above = histogram[:, ::-1].cumsum(1)[:, ::-1]
    false_positive, true_positive = above[:, (THRESHOLDS * LEVELS).astype(int)]
    return np.stack([true_positive, false_positive, histogram[1].sum() - true_positive], 1)


def ious(counts: Counts) -> npt.NDArray[np.float64]:
    """Return intersection over union, float64 (…); 1 where prediction and truth are both empty."""
    union = counts.sum(-1)
    return np.where(union == 0, 1.0, counts[..., 0] / np.maximum(union, 1))


def average_precision(histogram: Counts) -> float:
    """Return the area under the precision-recall curve of pixels (as in CLIPSeg, Lüddecke and Ecker 2022).

    `histogram` is the sum of the samples' level_histograms; pixels in the same bin are tied. 0 if the truth
    is empty.
    """
    false_positive, true_positive = histogram[:, ::-1].cumsum(1)
    if not true_positive[-1]:
        return 0.0
    precision = true_positive / np.maximum(true_positive + false_positive, 1)
    return float((precision * np.diff(true_positive, prepend=0)).sum() / true_positive[-1])


def boundary_f_relative(predicted: Mask, truth: Mask, valid: Mask) -> float:
    """Return the F-measure of boundary pixels matched within BOUNDARY_TOLERANCE (Perazzi et al. 2016).

    Mask pixels at the image border are boundary pixels, so that a full mask has a boundary too. 1 if neither
    mask has a boundary, 0 if only one has.
    """
    boundaries = [_boundary(mask) & valid for mask in (predicted, truth)]
    if not boundaries[0].any() or not boundaries[1].any():
        return float(boundaries[0].any() == boundaries[1].any())
    tolerance_px = max(1.0, BOUNDARY_TOLERANCE * float(np.hypot(*truth.shape)))
    precision, recall = (
        float((_distance_to(other)[boundary] <= tolerance_px).mean())
        for boundary, other in (boundaries, boundaries[::-1])
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_threshold(counts: Counts) -> float:
    """Return the one of THRESHOLDS with the highest mean IoU; among ties the nearest to 0.5.

    `counts` (N, K, 3) are the samples' counts_by_threshold.
    """
    means = ious(counts).mean(0)
    best = THRESHOLDS[means >= means.max() - 1e-9]
    return float(best[np.argmin(np.abs(best - DEFAULT_THRESHOLD))])


def summarise(counts: Counts, boundary: Values | None = None) -> dict[str, float]:
    """Return metrics over N ≥ 1 samples from counts (N, 3) and, optionally, their boundary F (N,).

    `mean_iou` is the mean over samples, `overall_iou` is over all pixels (papers on referring segmentation
    report both, such as LAVT, Yang et al. 2022), `precision` and `recall` are over all pixels, `p_at_0.5` …
    `p_at_0.9` are the fractions of samples with at least that IoU, `boundary_f` is the mean over samples.
    """
    return {name: _ratio(*terms) for name, terms in _ratio_terms(counts, boundary).items()}


def intervals(counts: Counts, sources: Sequence[str], boundary: Values | None = None) -> dict[str, Interval]:
    """Return a 95% interval for each metric of `summarise`, by bootstrap over source photos."""
    return {name: ratio_interval(*terms, sources) for name, terms in _ratio_terms(counts, boundary).items()}


def mean_interval(values: Values, sources: Sequence[str]) -> Interval:
    """Return a 95% interval for the mean of values (N,), one per sample, such as paired differences."""
    return ratio_interval(values, np.ones(len(values)), sources)


def ratio_interval(numerator: Values, denominator: Values, sources: Sequence[str]) -> Interval:
    """Return a 95% percentile interval for sum(numerator) / sum(denominator), both (N,).

    Samples of one source photo are not independent, so the bootstrap draws photos, each with all its samples
    (cluster bootstrap: Davison and Hinkley 1997, section 3.8).
    """
    names, photo = np.unique(np.asarray(sources), return_inverse=True)
    numerators, denominators = (
        np.bincount(photo, np.asarray(values, np.float64)) for values in (numerator, denominator)
    )
    rng = np.random.default_rng(0)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        ratios[i] = _ratio(times @ numerators, times @ denominators)
    low, high = np.quantile(ratios, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return [float(low), float(high)]


def by_group(
    counts: Counts, groups: Mapping[str, Sequence[str]], sources: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `samples`, `mean_iou` and its `interval` of each label of each grouping.

    `groups` maps a grouping's name to the samples' labels.
    """
    sample_ious = ious(counts)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, labels in groups.items():
        result[name] = {}
        for label in sorted(set(labels)):
            chosen = [index for index, other in enumerate(labels) if other == label]
            result[name][label] = {
                "samples": len(chosen),
                "mean_iou": float(sample_ious[chosen].mean()),
                "interval": mean_interval(sample_ious[chosen], [sources[index] for index in chosen]),
            }
    return result


def size_bucket(truth: Mask, valid: Mask) -> str:
    """Return the bucket of a mask's fraction of the valid pixels, such as `0.05 to 0.2`."""
    fraction = (truth & valid).sum() / max(1, valid.sum())
    index = int(np.searchsorted(BUCKETS, fraction, "right"))
    limits = (0, *BUCKETS, 1)
    return f"{limits[index]:g} to {limits[index + 1]:g}"


def _ratio_terms(counts: Counts, boundary: Values | None) -> dict[str, tuple[Values, Values]]:
    """Return numerator and denominator (N,) of each metric, which is the ratio of their sums."""
    true_positive, false_positive, false_negative = counts.T
    sample_ious, ones = ious(counts), np.ones(len(counts))
    terms = {
        "mean_iou": (sample_ious, ones),
        "overall_iou": (true_positive, true_positive + false_positive + false_negative),
        "precision": (true_positive, true_positive + false_positive),
        "recall": (true_positive, true_positive + false_negative),
        **{f"p_at_{limit}": (sample_ious >= limit, ones) for limit in PRECISION_AT},
    }
    return terms if boundary is None else {**terms, "boundary_f": (boundary, ones)}


def _ratio(numerator: Any, denominator: Any) -> float:
    total = float(np.sum(denominator))
    return float(np.sum(numerator)) / total if total else 1.0


def _boundary(mask: Mask) -> Mask:
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT,
                       borderValue=0)  # fmt: skip
    return np.asarray(mask & (inside == 0))


def _distance_to(boundary: Mask) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform((~boundary).astype(np.uint8), cv2.DIST_L2, 5), np.float32)
