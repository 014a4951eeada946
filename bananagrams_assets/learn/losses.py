"""Losses on the pixels that are known."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mask_loss(
    logits: Tensor, truth: Tensor, known: Tensor, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    """Weighted binary cross-entropy and Dice of logits float, truth and known 0/1, all (B, 1, H, W).

    Returns a scalar. Cross-entropy is the mean over known pixels. Dice (Milletari et al. 2016, V-Net) is
    taken of each picture, so that a small edit weighs as much as a large one; 1 is added to both terms of
    its ratio, so that an empty truth rewards an empty prediction.
    """
    logits, truth, known = logits.float(), truth.float(), known.float()
    each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    bce = each.sum() / known.sum().clamp(min=1)
    predicted, truth = logits.sigmoid() * known, truth * known
    shared = (predicted * truth).sum((1, 2, 3))
    total = predicted.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    dice = 1 - (2 * shared + 1) / (total + 1)
    return bce_weight * bce + dice_weight * dice.mean()
