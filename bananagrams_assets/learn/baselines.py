"""Predictions that look at neither picture nor words: what a model must beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..vision.images import resize
from .dataset import Split, to_square

SIDE_PX = 64
MOST = 2000
"""Training masks that the mean is taken of; more do not change it visibly."""

Mask = npt.NDArray[np.bool_]


def mean_mask(train: Split) -> Mask:
    """The mean of training masks, bool (64, 64), cut at the level that scores best on those same masks.

    Without that choice of level the mean of small masks is nowhere over one half, and the baseline empty.
    """
    chosen = np.linspace(0, len(train) - 1, min(len(train), MOST)).astype(int)
    masks = np.stack([to_square(train.mask(int(index)), SIDE_PX) for index in chosen]).astype(bool)
    mean = masks.mean(0)
    levels = np.linspace(0.02, 0.98, 25)
    scores = [_mean_iou(mean >= level, masks) for level in levels]
    return np.asarray(mean >= levels[int(np.argmax(scores))])


def trivial_masks(mean: Mask, shape: tuple[int, int]) -> dict[str, Mask]:
    """The masks `empty`, `full` and `mean` for a picture of (H, W)."""
    fitted = resize(mean.astype(np.uint8) * np.uint8(255), (shape[1], shape[0])) >= 128
    return {"empty": np.zeros(shape, bool), "full": np.ones(shape, bool), "mean": np.asarray(fitted)}


def _mean_iou(predicted: Mask, truths: Mask) -> float:
    both = (truths & predicted).sum((1, 2))
    union = (truths | predicted).sum((1, 2))
    return float(np.where(union == 0, 1.0, both / np.maximum(union, 1)).mean())
