"""What could stand behind an object that is taken out: the rest of the picture, shifted and fitted in.

One shift for the whole hole, chosen where the surroundings agree best, is the simplest of the patch-based
fills (He and Sun, ECCV 2012, mix several); a smooth correction of what differs along the rim stands in for
Poisson blending (Pérez et al., SIGGRAPH 2003).
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from bananagrams_assets.sample.photos import RGB
from bananagrams_assets.sample.visible import Invisible

Mask = npt.NDArray[np.bool_]
SEARCH_SIDE_PX = 240


def fill(image: RGB, hole: Mask, avoid: Mask) -> RGB:
    """`picture` with `hole` filled from elsewhere, not from pixels of `avoid`.

    Raises Invisible where nothing of that shape fits.
    """
    height, width = hole.shape
    x, y = _best_shift(image, hole, avoid)
    move = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
    shifted = cv2.warpAffine(
        image, move, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
    )
    rim_px = max(4, round(max(height, width) / 80))
    rim = _grown(hole, rim_px) & ~hole
    sigma = max(rim_px, float(np.sqrt(hole.sum())) / 5)
    difference = (image.astype(np.float32) - shifted) * rim[..., None]
    weight = cv2.GaussianBlur(rim.astype(np.float32), (0, 0), sigma)
    correction = cv2.GaussianBlur(difference, (0, 0), sigma) / (weight + 1e-3)[..., None]
    fitted = np.clip(shifted + correction, 0, 255)
    alpha = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), max(1.0, max(height, width) / 500))[..., None]
    return np.asarray(np.rint(image * (1 - alpha) + fitted * alpha), np.uint8)


def _best_shift(image: RGB, hole: Mask, avoid: Mask) -> tuple[int, int]:
    """(x, y) px from the hole to where its filling is taken from."""
    scale = min(1.0, SEARCH_SIDE_PX / max(hole.shape))
    size = max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    inner = cv2.resize(hole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    barred = cv2.resize((hole | avoid).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    rim = _grown(inner, 6) & ~inner
    rows, columns = np.nonzero(rim | inner)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    window = (slice(top, bottom), slice(left, right))
    usable = (rim & ~barred)[window]
    if usable.sum() < 12:
        raise Invisible("the hole has no surroundings to fill it from")
    mask = np.repeat(usable.astype(np.float32)[..., None], 3, axis=2)
    cost = cv2.matchTemplate(small, small[window], cv2.TM_SQDIFF, mask=mask)
    clash = cv2.matchTemplate(barred.astype(np.float32), inner[window].astype(np.float32), cv2.TM_CCORR)
    cost[clash > 0.5] = np.inf
    best = np.unravel_index(int(np.argmin(cost)), cost.shape)
    if not np.isfinite(cost[best]):
        raise Invisible("nothing else in the picture has room for the hole's shape")
    return round((int(best[1]) - left) / scale), round((int(best[0]) - top) / scale)


def _grown(mask: Mask, px: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * px + 1, 2 * px + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
