"""Homographies, polygons and warps.

A homography is float64 (3, 3) with H[2, 2] = 1. It maps (x, y) with x to the right and y down. Pixel centres
lie at integers, so the frame of an image of width W spans -0.5..W - 0.5.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from .images import RGB, Mask

Floats: TypeAlias = NDArray[np.float64]
Size: TypeAlias = tuple[int, int]
"""(width, height)"""


def image_size(image: NDArray[Any]) -> Size:
    """Return the (width, height) of an (H, W, ...) array."""
    return image.shape[1], image.shape[0]


def resize_homography(source: Size, target: Size) -> Floats:
    """Return the homography of a plain resize: x' = (x + 0.5) s - 0.5, because pixel centres are mapped."""
    x, y = target[0] / source[0], target[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]], np.float64)


def rescale_homography(
    homography: Floats, source: Size, new_source: Size, target: Size, new_target: Size
) -> Floats:
    """Return the same mapping for images resized from `source` to `new_source`, `target` to `new_target`."""
    return normalise_homography(
        resize_homography(target, new_target) @ homography @ resize_homography(new_source, source)
    )


def normalise_homography(homography: Floats) -> Floats:
    """Scale a homography to H[2, 2] = 1."""
    return np.asarray(homography / homography[2, 2], np.float64)


def project(homography: Floats, points: Floats) -> Floats:
    """Map (N, 2) points. A point that the homography maps to infinity becomes inf or nan."""
    mapped = points @ homography[:, :2].T + homography[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(mapped[:, :2] / mapped[:, 2:], np.float64)


def jacobians(homography: Floats, points: Floats) -> Floats:
    """Return the (N, 2, 2) derivatives d(x', y') / d(x, y) of the mapping at (N, 2) points."""
    depth = points @ homography[2, :2] + homography[2, 2]
    mapped = project(homography, points)
    linear = homography[:2, :2] - mapped[:, :, None] * homography[2, :2]
    return np.asarray(linear / depth[:, None, None], np.float64)


def frame_corners(size: Size) -> Floats:
    """Return the four corners (4, 2) of an image's frame, clockwise from the top left."""
    right, bottom = size[0] - 0.5, size[1] - 0.5
    return np.array([[-0.5, -0.5], [right, -0.5], [right, bottom], [-0.5, bottom]], np.float64)


def overlap_polygon(homography: Floats, source: Size, target: Size) -> Floats:
    """Map the source's frame into the target and clip it there: (N, 2), empty if the two are disjoint."""
    polygon = project(homography, frame_corners(source))
    low, high = frame_corners(target)[0], frame_corners(target)[2]
    for axis in (0, 1):
        polygon = _clip(polygon, axis, low[axis], 1.0)
        polygon = _clip(polygon, axis, high[axis], -1.0)
    return polygon


def polygon_area(polygon: Floats) -> float:
    """Return the area in px² (shoelace formula), 0 for fewer than three corners."""
    return abs(_signed_area(polygon)) if len(polygon) >= 3 else 0.0


def polygon_mask(polygon: Floats, size: Size) -> Mask:
    """Rasterise a convex polygon to a bool (H, W) mask of a (width, height) image.

    A pixel is set if its centre lies in the polygon or within about 1e-6 px of its edge. The polygon,
    float64 (N, 2), may be empty and may run in either direction.
    """
    y = np.arange(size[1], dtype=np.float64)
    left, right = np.full(size[1], -np.inf), np.full(size[1], np.inf)
    orientation = np.sign(_signed_area(polygon)) if len(polygon) >= 3 else 0.0
    if orientation == 0:
        return np.zeros((size[1], size[0]), bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        # Inside is slope x + offset >= 0. The last term keeps pixels on an edge despite rounding errors.
        slope = -orientation * (by - ay)
        offset = orientation * ((bx - ax) * (y - ay) + (by - ay) * ax) + 1e-6 * (abs(bx - ax) + abs(by - ay))
        if slope > 0:
            left = np.maximum(left, -offset / slope)
        elif slope < 0:
            right = np.minimum(right, -offset / slope)
        else:
            left = np.where(offset >= 0, left, np.inf)
    x = np.arange(size[0], dtype=np.float64)
    return (x >= left[:, None]) & (x <= right[:, None])


def warp(after: RGB, homography: Floats, size: Size) -> tuple[RGB, Mask]:
    """Warp `after` onto a (width, height) frame; also return the bool (H, W) mask of valid pixels.

    Interpolation is bilinear. An image that shrinks below 3/4 is first reduced by area averaging, which
    avoids aliasing of fine detail.
    """
    source = image_size(after)
    valid = polygon_mask(overlap_polygon(homography, source, size), size)
    if np.array_equal(homography, np.eye(3)) and source == size:
        return after, valid
    target_area = polygon_area(project(homography, frame_corners(source)))
    scale = float(np.sqrt(target_area / (source[0] * source[1])))  # target px per source px
    image: NDArray[Any] = after
    if scale < 0.75:
        smaller = max(1, round(source[0] * scale)), max(1, round(source[1] * scale))
        image = cv2.resize(after, smaller, interpolation=cv2.INTER_AREA)
        homography = homography @ resize_homography(smaller, source)
    warped = cv2.warpPerspective(
        image, homography, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.uint8), valid


def _clip(polygon: Floats, axis: int, limit: float, side: float) -> Floats:
    """Clip a convex polygon at an axis-parallel line; `side` 1 keeps larger coordinates, -1 smaller ones.

    Sutherland and Hodgman (1974).
    """
    distance = side * (polygon[:, axis] - limit)
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
