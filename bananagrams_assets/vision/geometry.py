"""Homographies, polygons, warps. Pixel centres are at integers, so a frame of width W spans -0.5..W-0.5.

A homography is float64 (3, 3) with H[2, 2] = 1 and maps (x, y), x right and y down.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.vision.images import RGB, Mask

Floats: TypeAlias = NDArray[np.float64]
Size: TypeAlias = tuple[int, int]
"""(width, height)"""


def resizing(source: Size, target: Size) -> Floats:
    """The homography of a plain resize: x' = (x + 0.5) s - 0.5, as pixel centres move."""
    x, y = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], np.float64)


def rescaled(homography: Floats, source: Size, source_now: Size, target: Size, target_now: Size) -> Floats:
    """The same mapping between resized pictures: source → source_now, target → target_now."""
    return normalised(resizing(target, target_now) @ homography @ resizing(source_now, source))


def normalised(homography: Floats) -> Floats:
    """Scaled so that H[2, 2] = 1."""
    return np.asarray(homography / homography[2, 2], np.float64)


def project(homography: Floats, points: Floats) -> Floats:
    """(N, 2) points mapped; where the homography sends a point to infinity, so does this."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(mapped[:, :2] / mapped[:, 2:], np.float64)


def jacobians(homography: Floats, points: Floats) -> Floats:
    """(N, 2, 2) derivatives of the mapping, d(x', y') / d(x, y), at (N, 2) points."""
    depth = points @ homography[2, :2] + homography[2, 2]
    mapped = project(homography, points)
    linear = homography[:2, :2] - mapped[:, :, None] * homography[2, :2]
    return np.asarray(linear / depth[:, None, None], np.float64)


def frame(size: Size) -> Floats:
    """The four corners (4, 2) of a picture's outline, clockwise as seen, from the top left."""
    right, bottom = size[0] - 0.5, size[1] - 0.5
    return np.array([[-0.5, -0.5], [right, -0.5], [right, bottom], [-0.5, bottom]], np.float64)


def overlap_polygon(homography: Floats, source: Size, target: Size) -> Floats:
    """The source's frame mapped into the target and clipped to its frame: (N, 2), empty where disjoint."""
    polygon = project(homography, frame(source))
    low, high = frame(target)[0], frame(target)[2]
    for axis in (0, 1):
        polygon = _clip(polygon, axis, low[axis], 1.0)
        polygon = _clip(polygon, axis, high[axis], -1.0)
    return polygon


def polygon_area(polygon: Floats) -> float:
    """Area in px² (shoelace formula); 0 for fewer than three corners."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def polygon_mask(polygon: Floats, size: Size) -> Mask:
    """The pixels of a (width, height) picture whose centres lie in a convex polygon: bool (H, W)."""
    y = np.arange(size[1], dtype=np.float64)
    left, right = np.full(size[1], -np.inf), np.full(size[1], np.inf)
    turn = np.sign(_signed_area(polygon)) if len(polygon) >= 3 else 0.0
    if turn == 0:
        return np.zeros((size[1], size[0]), bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        # Inside is slope x + rest >= 0; a rounding error must not lose the pixels that an edge runs through.
        slope = -turn * (by - ay)
        rest = turn * ((bx - ax) * (y - ay) + (by - ay) * ax) + 1e-6 * (abs(bx - ax) + abs(by - ay))
        if slope > 0:
            left = np.maximum(left, -rest / slope)
        elif slope < 0:
            right = np.minimum(right, -rest / slope)
        else:
            left = np.where(rest >= 0, left, np.inf)
    x = np.arange(size[0], dtype=np.float64)
    return (x >= left[:, None]) & (x <= right[:, None])


def warp(after: RGB, homography: Floats, size: Size) -> tuple[RGB, Mask]:
    """`after` drawn onto a (width, height) frame, and the bool (H, W) mask of where it is known.

    Bilinear; a picture that shrinks on its way is averaged over areas first, so that fine detail
    does not alias into a difference.
    """
    source = (after.shape[1], after.shape[0])
    known = polygon_mask(overlap_polygon(homography, source, size), size)
    if np.array_equal(homography, np.eye(3)) and source == size:
        return after, known
    shrink = _shrinkage(homography, source, size)
    image: NDArray[Any] = after
    if shrink < 0.75:
        smaller = max(1, round(source[0] * shrink)), max(1, round(source[1] * shrink))
        image = cv2.resize(after, smaller, interpolation=cv2.INTER_AREA)
        homography = homography @ resizing(smaller, source)
    warped = cv2.warpPerspective(
        image, homography, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8), known


def _clip(polygon: Floats, axis: int, limit: float, keep: float) -> Floats:
    """Sutherland and Hodgman (1974): the part of a convex polygon on one side of an axis-parallel line."""
    distance = keep * (polygon[:, axis] - limit)
    corners: list[Floats] = []
    for i in range(len(polygon)):
        here, there = distance[i], distance[(i + 1) % len(polygon)]
        if here >= 0:
            corners.append(polygon[i])
        if (here >= 0) != (there >= 0):
            crossing = polygon[i] + (polygon[(i + 1) % len(polygon)] - polygon[i]) * here / (here - there)
            crossing[axis] = limit
            corners.append(crossing)
    return np.array(corners, np.float64).reshape(-1, 2)


def _signed_area(polygon: Floats) -> float:
    x, y = polygon.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _shrinkage(homography: Floats, source: Size, target: Size) -> float:
    """Target px per source px, over the whole frame."""
    area = polygon_area(project(homography, frame(source)))
    return float(np.sqrt(area / (source[0] * source[1])))
