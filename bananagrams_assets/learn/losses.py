"""Losses over valid pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mask_loss(
    logits: Tensor, truth: Tensor, valid: Tensor, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    """Return the weighted sum of binary cross-entropy and Dice loss of each sample: float32 (B,).

    `logits` float, `truth` the edited fraction 0..1 of each pixel, `valid` 0/1; all (B, 1, H, W).

    Both terms are computed per sample; cross-entropy is the mean over its valid pixels. A small edit
    therefore has the same weight in Dice as a large one, and the sum over a step does not depend on how its
    samples are divided among devices. The Dice denominator contains squares (Milletari et al. 2016, V-Net),
    so that the optimal prediction for a half-edited pixel is one half. 1 is added to numerator and
    denominator, so that an empty truth rewards an empty prediction.
    """
    logits, truth, valid = logits.float(), truth.float(), valid.float()
    pixel_bce = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    bce = pixel_bce.sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp(min=1)
    predicted, truth = logits.sigmoid() * valid, truth * valid
    intersection = (predicted * truth).sum((1, 2, 3))
    total = (predicted**2 + truth**2).sum((1, 2, 3))
    return bce_weight * bce + dice_weight * (1 - (2 * intersection + 1) / (total + 1))
