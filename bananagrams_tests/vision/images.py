"""Textured images of seeded noise, and edits on them."""

from __future__ import annotations

import cv2
import numpy as np

from bananagrams_assets.vision.geometry import Floats, Size
from bananagrams_assets.vision.images import RGB, Mask


def textured(seed: int, width: int = 240, height: int = 180) -> RGB:
    """Return coloured noise at several scales, with distinctive features everywhere."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for sigma in (1.5, 4.0, 12.0):
        layer = cv2.GaussianBlur(rng.standard_normal((height, width, 3)).astype(np.float32), (0, 0), sigma)
        total += layer / layer.std()
    return np.clip(128 + 28 * total, 0, 255).astype(np.uint8)


def box(image: RGB, left: float, top: float, right: float, bottom: float) -> Mask:
    """Return a rectangular mask, given as shares of the sides."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def warped(image: RGB, to_target: Floats, size: Size) -> RGB:
    """Warp an image onto a (width, height) frame, mirrored outside."""
    warped_image = cv2.warpPerspective(
        image, to_target, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return np.asarray(warped_image, np.uint8)


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
