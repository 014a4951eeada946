"""The colour difference of an aligned pair and its noise."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from .images import RGB, Mask

Difference: TypeAlias = NDArray[np.float32]
"""(H, W), CIE Lab dE"""

LAB_WEIGHTS = np.array([[(100 / 255) ** 2, 1, 1]], np.float32)
"""Squared units of 8-bit Lab: L 0..100 is stored as 0..255; a and b are not scaled."""


def lab_difference(before: RGB, after: RGB, blur_px: int) -> Difference:
    """Return the dE of two aligned images, insensitive to movement by a pixel and to sharpening.

    It is the distance in CIE Lab of each pixel to the range of the other image's 3 x 3 neighbourhood, the
    larger of both directions. An edge that moved a little stays within the range; new content does not. 8-bit
    Lab (steps of 0.4 in L, 1 in a and b) takes a quarter of the time of floats and gives equally good masks.
    """
    one, other = lab_8bit(before, blur_px), lab_8bit(after, blur_px)
    squared = cv2.max(_squared_distance_to_range(one, other), _squared_distance_to_range(other, one))
    return np.asarray(cv2.sqrt(squared), np.float32)


def lab_8bit(image: RGB, blur_px: int) -> RGB:
    """Convert to 8-bit CIE Lab after a Gaussian blur with a window of `blur_px` (1: none)."""
    if blur_px > 1:
        image = np.asarray(cv2.GaussianBlur(image, (blur_px, blur_px), 0), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)


def _squared_distance_to_range(one: RGB, other: RGB) -> Difference:
    """Return the squared dE (H, W) of `one` to the range of `other` around each pixel; both 8-bit Lab."""
    kernel = np.ones((3, 3), np.uint8)
    above = cv2.subtract(one, cv2.dilate(other, kernel))
    distance = cv2.add(above, cv2.subtract(cv2.erode(other, kernel), one)).astype(np.float32)
    return np.asarray(cv2.transform(cv2.multiply(distance, distance), LAB_WEIGHTS), np.float32)


def noise_level(difference: Difference, unchanged: Mask) -> float:
    """Return the typical dE of the unchanged pixels, 0 if there are none; large images are subsampled.

    It is 1.3 times the mean of the lower three quarters, approximately the median. A median itself would
    jump between the few values of 8-bit Lab.
    """
    step = max(1, max(difference.shape) // 320)
    values = difference[::step, ::step][unchanged[::step, ::step]]
    if not values.size:
        return 0.0
    lower = (3 * values.size + 3) // 4
    return 1.3 * float(np.sort(values)[:lower].mean())
