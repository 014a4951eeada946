"""What a person can see of an edit: the truth that a mask is held to.

Truths are measured before re-encoding, on pictures that differ by the edit alone. A dilated inpainting mask,
a feathered edge or an edit on flat ground of its own colour is not seen, and so is not truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bananagrams_assets.sample.photos import RGB

Mask = npt.NDArray[np.bool_]

VISIBLE_DE = 4.0
"""CIE Lab dE of a visible change: not quite twice the just noticeable 2.3 of Mahy et al., 1994."""
LEAST_MEAN_DE = 8.0
"""Mean dE of a truth: below, people overlook the whole edit."""
LEAST_SHOWN = 0.7
"""Share of what was edited that must be visible."""
LEAST_SHARE = 0.0015
"""Of the picture."""
SUM = np.ones((1, 3), np.float32)
"""Of a pixel's channels, for cv2.transform: numpy's sum over so short an axis takes 30 times as long."""


class Invisible(ValueError):
    """An edit that changes too little to be seen; draw it again with other choices."""


@dataclass(frozen=True, eq=False)
class Truth:
    """`mask`: bool (H, W), the visible change. `visibility`: its mean dE. `shown`: the share of the edit
    that it holds."""

    mask: Mask
    visibility: float
    shown: float


def colour_change(before: RGB, after: RGB, sigma: float = 0.7) -> npt.NDArray[np.float32]:
    """CIE Lab dE76 (H, W) between two registered pictures after a light blur of `sigma` px."""
    lab: list[npt.NDArray[Any]] = [
        cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), sigma).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for image in (before, after)
    ]
    return np.asarray(np.sqrt(cv2.transform((lab[0] - lab[1]) ** 2, SUM)), np.float32)


def visible_truth(before: RGB, after: RGB, painted: Mask, meant: Mask) -> Truth:
    """The visible part of an edit.

    `painted` is where the edit drew at half alpha or more, `meant` the part that has to show (an object
    without the margin that its removal paints over). Small gaps are closed, specks dropped. Raises
    Invisible where too little of `meant` shows, or too faintly.
    """
    side = max(painted.shape)
    change = colour_change(before, after, max(0.7, side / 640))
    seen = (change > VISIBLE_DE) & painted
    radius = max(1, round(side / 250))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = (cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0) & painted
    smallest = max(round(painted.size * 1e-4), 4)
    closed = ~without_specks(~closed, smallest * 10) & painted
    mask = without_specks(closed, smallest)
    shown = float(mask[meant].mean()) if meant.any() else 0.0
    visibility = float(change[mask].mean()) if mask.any() else 0.0
    if shown < LEAST_SHOWN:
        raise Invisible(f"{shown:.0%} of the edit can be seen")
    if visibility < LEAST_MEAN_DE or mask.mean() < LEAST_SHARE:
        raise Invisible(f"dE {visibility:.1f} over {mask.mean():.2%} of the picture is overlooked")
    return Truth(mask, visibility, shown)


def without_specks(mask: Mask, smallest: int) -> Mask:
    """`mask` without its components under `smallest` px (4-connected, so that thin gaps stay open)."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = np.array([False] + [stats[index, cv2.CC_STAT_AREA] >= smallest for index in range(1, count)])
    kept: Mask = keep[labels]
    return kept
