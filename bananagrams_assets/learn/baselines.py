"""Baseline masks that use neither the image nor the instruction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..vision.images import resize
from .dataset import Split, to_square

SIDE_PX = 64
MAX_MASKS = 2000
"""Number of training masks that the mean is computed from; more do not change it visibly."""

Mask = npt.NDArray[np.bool_]


def mean_mask(train: Split) -> Mask:
    """Return the mean training mask, bool (64, 64), at the threshold with the best mean IoU on those masks.

    At a fixed threshold of one half the mean of small masks would be empty.
    """
    chosen = np.linspace(0, len(train) - 1, min(len(train), MAX_MASKS)).astype(int)
    masks = np.stack([to_square(train.mask(int(index)), SIDE_PX) for index in chosen]).astype(bool)
    mean = masks.mean(0)
    thresholds = np.linspace(0.02, 0.98, 25)
    scores = [_mean_iou(mean >= threshold, masks) for threshold in thresholds]
    return np.asarray(mean >= thresholds[int(np.argmax(scores))])


def trivial_masks(mean: Mask, shape: tuple[int, int]) -> dict[str, Mask]:
    """Return the masks `empty`, `full` and `mean`, bool of `shape` (H, W)."""
    resized = resize(mean.astype(np.uint8) * np.uint8(255), (shape[1], shape[0])) >= 128
    return {"empty": np.zeros(shape, bool), "full": np.ones(shape, bool), "mean": np.asarray(resized)}


def _mean_iou(predicted: Mask, truths: Mask) -> float:
    intersection = (truths & predicted).sum((1, 2))
    union = (truths | predicted).sum((1, 2))
    return float(np.where(union == 0, 1.0, intersection / np.maximum(union, 1)).mean())
