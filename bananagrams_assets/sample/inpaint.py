"""Inpainting of a removed object by shifted content of the same image.

A single shift for the whole hole, where the surroundings match best, is the simplest patch-based method (He
and Sun, ECCV 2012, combine several shifts). A smooth correction of the difference along the rim replaces
Poisson blending (Pérez et al., SIGGRAPH 2003).
"""

from __future__ import annotations

import cv2
import numpy as np

from .compositing import dilated
from .photos import RGB, Mask
from .visibility import Invisible

SEARCH_SIDE_PX = 240


def inpaint(image: RGB, hole: Mask, excluded: Mask) -> RGB:
    """Return `image` with `hole` filled by shifted content, which contains no pixel of `excluded`.

    Raises Invisible if there is no such shift.
    """
    height, width = hole.shape
    x, y = _best_shift(image, hole, excluded)
    move = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
    shifted = cv2.warpAffine(
        image, move, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
    )
    rim_px = max(4, round(max(height, width) / 80))
    rim = dilated(hole, rim_px) & ~hole
    sigma = max(rim_px, float(np.sqrt(hole.sum())) / 5)
    difference = (image.astype(np.float32) - shifted) * rim[..., None]
    weight = cv2.GaussianBlur(rim.astype(np.float32), (0, 0), sigma)
    correction = cv2.GaussianBlur(difference, (0, 0), sigma) / (weight + 1e-3)[..., None]
    fitted = np.clip(shifted + correction, 0, 255)
    alpha = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), max(1.0, max(height, width) / 500))[..., None]
    return np.asarray(np.rint(image * (1 - alpha) + fitted * alpha), np.uint8)


def _best_shift(image: RGB, hole: Mask, excluded: Mask) -> tuple[int, int]:
    """Return the shift (x, y), in px, from the hole to its best-matching source."""
    scale = min(1.0, SEARCH_SIDE_PX / max(hole.shape))
    size = max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    inner = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    blocked = cv2.resize((hole | excluded).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    rim = dilated(inner, 6) & ~inner
    rows, columns = np.nonzero(rim | inner)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    window = (slice(top, bottom), slice(left, right))
    usable = (rim & ~blocked)[window]
    if usable.sum() < 12:
        raise Invisible("the hole has too few surrounding pixels to match")
    mask = np.repeat(usable.astype(np.float32)[..., None], 3, axis=2)
    cost = cv2.matchTemplate(small, small[window], cv2.TM_SQDIFF, mask=mask)
    overlap = cv2.matchTemplate(blocked.astype(np.float32), inner[window].astype(np.float32), cv2.TM_CCORR)
    cost[overlap > 0.5] = np.inf
    best = np.unravel_index(int(np.argmin(cost)), cost.shape)
    if not np.isfinite(cost[best]):
        raise Invisible("no other part of the image can hold the shape of the hole")
    return round((int(best[1]) - left) / scale), round((int(best[0]) - top) / scale)
