"""Losses on the pixels that are known."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mask_loss(
    logits: Tensor, truth: Tensor, known: Tensor, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    """Weighted binary cross-entropy and Dice of each picture: float32 (B,).

    logits float, truth the edited share of each pixel 0..1, and known 0/1, all (B, 1, H, W). Both terms
    are taken of each picture by itself, cross-entropy as the mean over its known pixels: a small edit
    weighs as much as a large one in Dice, and the sum over a step does not depend on how its pictures are
    spread over devices. Dice has squares below (Milletari et al. 2016, V-Net), so that a half-edited pixel
    is best predicted as one half; 1 is added to both terms of its ratio, so that an empty truth rewards an
    empty prediction.
    """
    logits, truth, known = logits.float(), truth.float(), known.float()
    each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
    bce = each.sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)
    predicted, truth = logits.sigmoid() * known, truth * known
    shared = (predicted * truth).sum((1, 2, 3))
    total = (predicted**2 + truth**2).sum((1, 2, 3))
    return bce_weight * bce + dice_weight * (1 - (2 * shared + 1) / (total + 1))
