"""The visible part of an edit, which is the true mask of a made pair.

It is measured before re-encoding, on images that differ by the edit only. The margin of an inpainting mask, a
feathered edge, or an edit on a background of the same colour is invisible, and therefore not in the mask.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .photos import RGB, Mask

VISIBLE_DE = 4.0
"""Smallest visible CIE Lab dE: just under twice the just noticeable difference 2.3 (Mahy et al., 1994)."""
MIN_MEAN_DE = 8.0
"""Smallest mean dE of a true mask; people overlook an edit below it."""
MIN_VISIBLE_SHARE = 0.7
"""Smallest share of the edited pixels that must be visible."""
MIN_AREA = 0.0015
"""Smallest true mask, as a share of the image."""
SUM = np.ones((1, 3), np.float32)
"""Sums a pixel's channels in cv2.transform; numpy's sum over such a short axis takes 30 times as long."""


class Invisible(ValueError):
    """An edit that is not visible enough, or that the photo does not allow; draw again with other choices."""


def color_difference(before: RGB, after: RGB, sigma: float = 0.7) -> npt.NDArray[np.float32]:
    """Return CIE Lab dE76 (H, W) between two registered images after a light blur of `sigma` px."""
    lab: list[npt.NDArray[Any]] = [
        cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), sigma).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for image in (before, after)
    ]
    return np.asarray(np.sqrt(cv2.transform((lab[0] - lab[1]) ** 2, SUM)), np.float32)


def visible_part(before: RGB, after: RGB, painted: Mask, intended: Mask) -> Mask:
    """Return the visible part of an edit, bool (H, W), with small gaps closed and specks removed.

    `painted`: the pixels that the edit painted at half alpha or more. `intended`: those that must change
    visibly, such as an object without the margin that its removal also paints. Raises Invisible if too little
    of `intended` is visible, or the change is too faint.
    """
    side = max(painted.shape)
    difference = color_difference(before, after, max(0.7, side / 640))
    visible = (difference > VISIBLE_DE) & painted
    radius = max(1, round(side / 250))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = (cv2.morphologyEx(visible.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0) & painted
    smallest = max(round(painted.size * 1e-4), 4)
    closed = ~without_specks(~closed, smallest * 10) & painted
    mask = without_specks(closed, smallest)
    share = float(mask[intended].mean()) if intended.any() else 0.0
    mean_de = float(difference[mask].mean()) if mask.any() else 0.0
    if share < MIN_VISIBLE_SHARE:
        raise Invisible(f"only {share:.0%} of the edit is visible")
    if mean_de < MIN_MEAN_DE or mask.mean() < MIN_AREA:
        raise Invisible(f"dE {mean_de:.1f} over {mask.mean():.2%} of the image is too faint or too small")
    return mask


def without_specks(mask: Mask, smallest: int) -> Mask:
    """Return `mask` without components under `smallest` px (4-connected, so that thin gaps stay open)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = np.array([False] + [stats[index, cv2.CC_STAT_AREA] >= smallest for index in range(1, count)])
    kept: Mask = keep[labels]
    return kept
