"""A simulated generative editor: its changes to the whole image, besides the instructed edit.

A generative editor returns an image of another size, with slightly shifted content, other tones and
re-synthesised texture everywhere (an input of 1024 by 858 px becomes 1152 by 896). `reencode` simulates that
with classical filters and returns the exact geometry, as ground truth for masks and alignment.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..vision.geometry import resize_homography
from .draw import noise, to_bytes
from .photos import RGB, Rng
from .visibility import SUM

Homography = npt.NDArray[np.float64]

MEAN = SUM / 3
SIDE_STEP_PX = 8
"""Sides of generated images are multiples of this."""


def reencode(image: RGB, strength: float, rng: Rng) -> tuple[RGB, Homography]:
    """Return the image as re-encoded by the simulated editor, and the homography.

    `strength` 0 changes geometry and size only, 1 is a typical re-synthesis, 2 a heavy one. The homography,
    float64 (3, 3) with H[2,2] = 1, maps pixels of the result to pixels of `image`.
    """
    height, width = image.shape[:2]
    scale = rng.uniform(0.87, 1.15)
    stretch = 1 + rng.uniform(-0.03, 0.03)
    size = (_step(width * scale * stretch), _step(height * scale / stretch))
    homography = _geometry((width, height), size, rng)
    result = cv2.warpPerspective(
        image,
        homography,
        size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    if strength > 0:
        return _resynthesise(result.astype(np.float32), strength, rng), homography
    return result.astype(np.uint8), homography


def _step(side: float) -> int:
    return max(round(side / SIDE_STEP_PX), 1) * SIDE_STEP_PX


def _geometry(source: tuple[int, int], target: tuple[int, int], rng: Rng) -> Homography:
    """Return target → source px: a resize, then zoom, shift, rotation and perspective about the centre."""
    center = np.array([(source[0] - 1) / 2, (source[1] - 1) / 2])
    angle = np.deg2rad(rng.uniform(-1, 1))
    zoom = rng.uniform(0.95, 1.01)
    side = max(source)
    warp = np.eye(3)
    warp[:2, :2] = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    warp[:2, 2] = rng.uniform(-0.015, 0.015, 2) * side
    warp[2, :2] = rng.uniform(-0.02, 0.02, 2) / side
    to_center, back = np.eye(3), np.eye(3)
    to_center[:2, 2], back[:2, 2] = -center, center
    result = back @ warp @ to_center @ resize_homography(target, source)
    homography: Homography = result / result[2, 2]
    return homography


def _resynthesise(image: npt.NDArray[np.float32], strength: float, rng: Rng) -> RGB:
    shape = (image.shape[0], image.shape[1])
    base = cv2.bilateralFilter(image, 5, 12 + 14 * strength, 1.5 + strength)
    detail = image - base
    energy = cv2.GaussianBlur(cv2.transform(np.abs(detail), MEAN), (0, 0), 2.5)[..., None]
    synthetic = noise(shape, rng, max(shape) / 2.2, 1)[..., None] * energy * 0.55 * strength
    kept = 1 - 0.22 * strength
    smooth = cv2.GaussianBlur(base, (0, 0), 1.2)
    sharpened = base + rng.uniform(0.2, 0.5) * strength * (base - smooth)
    result = sharpened + kept * detail + synthetic

    result = 255 * np.power(np.clip(result, 0, 255) / 255, 1 + rng.uniform(-0.07, 0.07) * strength)
    gray = cv2.transform(result, MEAN)[..., None]
    result = gray + (result - gray) * (1 + rng.uniform(-0.08, 0.12) * strength)
    gain = (1 + rng.uniform(-0.025, 0.025, 3) * strength).astype(np.float32)
    offset = (rng.uniform(-3.5, 3.5, 3) * strength).astype(np.float32)
    field = noise(shape, rng, 3, 1)[..., None] + 0.4 * np.dstack([noise(shape, rng, 3, 1) for _ in range(3)])
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return to_bytes(result * gain + offset + 1.6 * strength * field + 0.9 * strength * grain)
