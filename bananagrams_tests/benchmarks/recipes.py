"""Methods that compute a mask from a pair: ours, and others reimplemented from their descriptions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import AlignSettings, MaskSettings
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.geometry import Floats, resize_homography, warp
from bananagrams_assets.vision.images import RGB, Mask, decode, encode_png_mask
from bananagrams_assets.vision.mask import edit_mask

MAX_PIXELS = 100_000_000


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a method; mask and homography are None if the method failed.

    `seconds`: CPU time by step. `confidences`: those of the alignment and of the mask.
    """

    mask: Mask | None
    is_global: bool
    homography: Floats | None
    seconds: dict[str, float]
    confidences: tuple[float, float] = (0.0, 0.0)


class Clock:
    """Measures CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, step: str) -> None:
        now = time.process_time()
        self.seconds[step] = now - self._last
        self._last = now


def ours(before: bytes, after: bytes, scope: str) -> Outcome:
    """Decode, align, mask and encode, as a build does."""
    clock = Clock()
    first, second = decode(before, MAX_PIXELS), decode(after, MAX_PIXELS)
    clock.lap("decode")
    alignment = align(first, second, AlignSettings())
    clock.lap("align")
    if not alignment.accepted:
        # The homography of a rejected pair is the plain resize, with confidence 0.
        return Outcome(None, False, alignment.homography, clock.seconds)
    result = edit_mask(first, second, alignment.homography, alignment.overlap, MaskSettings(), scope)
    clock.lap("mask")
    encode_png_mask(result.mask, one_bit=True)
    clock.lap("encode")
    confidences = alignment.confidence, result.confidence
    return Outcome(result.mask, result.is_global, alignment.homography, clock.seconds, confidences)


def plain(before: bytes, after: bytes, scope: str) -> Outcome:
    """The usual method from SIFT to a thresholded difference.

    Full-size SIFT, brute-force matches with Lowe's ratio at 0.75, a RANSAC homography within 5 px, the
    absolute grey difference, a Gaussian blur, a threshold of 30, opening and closing.
    """
    clock = Clock()
    first, second = decode(before, MAX_PIXELS), decode(after, MAX_PIXELS)
    clock.lap("decode")
    sift = cv2.SIFT.create()
    points, descriptors = sift.detectAndCompute(cv2.cvtColor(first, cv2.COLOR_RGB2GRAY), None)
    edited_points, edited_descriptors = sift.detectAndCompute(cv2.cvtColor(second, cv2.COLOR_RGB2GRAY), None)
    clock.lap("features")
    if descriptors is None or edited_descriptors is None or len(points) < 2:
        return Outcome(None, False, None, clock.seconds)
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(edited_descriptors, descriptors, k=2)
    matches = [nearest for nearest, other in candidates if nearest.distance < 0.75 * other.distance]
    clock.lap("match")
    if len(matches) < 4:
        return Outcome(None, False, None, clock.seconds)
    source = np.array([edited_points[match.queryIdx].pt for match in matches])
    target = np.array([points[match.trainIdx].pt for match in matches])
    cv2.setRNGSeed(0)
    homography, _ = cv2.findHomography(source, target, cv2.RANSAC, 5.0)
    clock.lap("homography")
    if homography is None:
        return Outcome(None, False, None, clock.seconds)
    warped = cv2.warpPerspective(second, homography, (first.shape[1], first.shape[0]))
    difference = cv2.cvtColor(cv2.absdiff(first, warped), cv2.COLOR_RGB2GRAY)
    _, rough = cv2.threshold(cv2.GaussianBlur(difference, (5, 5), 0), 30, 255, cv2.THRESH_BINARY)
    kernel = np.ones((5, 5), np.uint8)
    mask = cv2.morphologyEx(cv2.morphologyEx(rough, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel) > 0
    clock.lap("mask")
    encode_png_mask(np.asarray(mask), one_bit=True)
    clock.lap("encode")
    return Outcome(np.asarray(mask), False, np.asarray(homography, np.float64), clock.seconds)


def peer(before: bytes, after: bytes, scope: str) -> Outcome:
    """EditSleuth's recipe without LPIPS, which needs a network.

    Resize only. The score is the larger of CIE Lab dE76 and 1 - SSIM, each divided by its 99th percentile.
    Then Otsu's threshold, opening and closing with a disk of radius 2 px, and removal of components under
    0.1%. The edit is global if the mean score is 0.62 or more.
    """
    clock = Clock()
    first, second = decode(before, MAX_PIXELS), decode(after, MAX_PIXELS)
    clock.lap("decode")
    size = first.shape[1], first.shape[0]
    resized = cv2.resize(second, size, interpolation=cv2.INTER_LINEAR)
    clock.lap("resize")
    one, other = (
        cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for image in (first, resized)
    )
    color = np.sqrt(np.sum((one - other) ** 2, axis=2))
    structure = 1 - _ssim(first, np.asarray(resized, np.uint8))
    score = np.maximum(
        *(np.clip(part / max(float(np.percentile(part, 99)), 1e-6), 0, 1) for part in (color, structure))
    )
    clock.lap("score")
    if float(score.mean()) >= 0.62:
        mask = np.ones(score.shape, bool)
    else:
        _, rough = cv2.threshold(np.rint(score * 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
        smooth = cv2.morphologyEx(cv2.morphologyEx(rough, cv2.MORPH_OPEN, disk), cv2.MORPH_CLOSE, disk)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(smooth.astype(np.uint8), connectivity=8)
        keep = stats[:, cv2.CC_STAT_AREA] >= 0.001 * score.size
        keep[0] = False
        mask = keep.take(np.asarray(labels))
    clock.lap("mask")
    encode_png_mask(mask, one_bit=True)
    clock.lap("encode")
    source = second.shape[1], second.shape[0]
    return Outcome(mask, bool(mask.all()), resize_homography(source, size), clock.seconds)


def floor(before: bytes, after: bytes, scope: str) -> Outcome:
    """The minimum work of any method: decode both images, warp one, encode a mask. The mask is empty."""
    clock = Clock()
    first, second = decode(before, MAX_PIXELS), decode(after, MAX_PIXELS)
    clock.lap("decode")
    size, source = (first.shape[1], first.shape[0]), (second.shape[1], second.shape[0])
    # Not exactly a resize, so that `warp` does not take a shortcut.
    homography = resize_homography(source, size)
    homography[0, 1] = 0.001
    warped, valid = warp(second, homography, size)
    clock.lap("warp")
    encode_png_mask(valid & (warped[..., 0] > 250), one_bit=True)
    clock.lap("encode")
    return Outcome(np.zeros(first.shape[:2], bool), False, resize_homography(source, size), clock.seconds)


def _ssim(first: RGB, second: RGB) -> NDArray[np.float32]:
    """Return the SSIM (H, W) of the grey images, Gaussian window of 1.5 px (Wang et al., TIP 2004)."""
    one, other = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (first, second))

    def blur(image: Any) -> Any:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    a, b = blur(one), blur(other)
    covariance = blur(one * other) - a * b
    spread = blur(one * one) - a * a + blur(other * other) - b * b
    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * a * b + c) * (2 * covariance + d) / ((a * a + b * b + c) * (spread + d))
    return np.asarray(similarity, np.float32)


RECIPES: dict[str, Callable[[bytes, bytes, str], Outcome]] = {
    "ours": ours,
    "plain": plain,
    "peer": peer,
    "floor": floor,
}
