"""Rough registration of two images: SIFT features, or the plain resize where features fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import AlignSettings
from .geometry import (
    Floats,
    Size,
    frame_corners,
    image_size,
    normalise_homography,
    overlap_polygon,
    polygon_mask,
    project,
    rescale_homography,
    resize_homography,
)
from .images import RGB, resize
from .transform_models import select_model, squared_distances

FIRST_FEATURES = 250
FIRST_SIDE_SHARE = 0.375
"""Features of the first attempt, and its image size as a share of the working size (192 of 512 px)."""

TONE_CURVE_SIGMA = 4.0
"""Smoothing of the tone curve in `match_grey_levels`, in grey levels."""

DETAIL_PX = 17
"""Side of the window in which grey levels are normalised to equal mean and contrast."""
DETAIL_FLOOR = 6.0
"""Contrast in grey levels that counts as noise: detail below it fades instead of being amplified."""
DETAIL_GAIN = 40.0

CORRELATION_CELL_PX = 16
"""Side of the cells in which detail is correlated, at the working size."""


Plane: TypeAlias = NDArray[np.uint8]
"""(H, W), grey levels or detail"""


class View(NamedTuple):
    """One image: its full size, and at the working `size` its grey levels and detail, uint8 (H, W)."""

    full_size: Size
    size: Size
    grey: Plane
    detail: Plane


class Start(NamedTuple):
    """A rough homography between working sizes and the number of feature matches that agree with it.

    `negative`: whether the edited image is a negative of the input.
    """

    homography: Floats
    matches: int
    negative: bool


def make_view(image: RGB, side_px: float) -> View:
    """Prepare an image for registration at a working size of `side_px`."""
    full_size = image_size(image)
    size = working_size(full_size, side_px)
    grey = np.asarray(resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size), np.uint8)
    return View(full_size, size, grey, _local_detail(grey))


def match_grey_levels(fixed: View, moving: View, homography: Floats) -> View:
    """Map each grey level of `fixed` to its mean in `moving`, aligned by a rough homography.

    This is the conditional expectation in the joint histogram (correlation ratio: Roche et al., MICCAI
    1998). It helps with stylised images: in a poster of four colours, an outline lies where the input
    crosses a level, not at an edge of the input.
    """
    warped = cv2.warpPerspective(moving.grey, homography, fixed.size)
    valid = polygon_mask(overlap_polygon(homography, moving.size, fixed.size), fixed.size)
    grey = cv2.GaussianBlur(fixed.grey, (0, 0), 1)
    count, total = (
        cv2.GaussianBlur(
            np.bincount(grey[valid], weights, 256)[None].astype(np.float64), (0, 0), TONE_CURVE_SIGMA
        )[0]
        for weights in (None, warped[valid].astype(np.float64))
    )
    frequent = count > 1
    if not frequent.any():
        return fixed
    levels = np.interp(np.arange(256), np.flatnonzero(frequent), total[frequent] / count[frequent])
    mapped = np.rint(levels).astype(np.uint8)[grey]
    return View(fixed.full_size, fixed.size, mapped, _local_detail(mapped))


def working_size(size: Size, side_px: float) -> Size:
    """Return a size with longest side `side_px` and shorter side at least a quarter of it, never enlarged.

    The lower bound of the shorter side keeps features in panoramas.
    """
    scale = min(1.0, max(side_px / max(size), side_px / 4 / min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _local_detail(grey: Plane) -> Plane:
    """Normalise grey levels to equal mean (128) and contrast around each pixel, independent of tone."""
    level, window = grey.astype(np.float32), (DETAIL_PX, DETAIL_PX)
    high = level - cv2.blur(level, window)
    equal = high / cv2.sqrt(cv2.blur(high * high, window) + DETAIL_FLOOR**2)
    return np.asarray(cv2.addWeighted(equal, DETAIL_GAIN, equal, 0, 128, dtype=cv2.CV_8U), np.uint8)


def rough_starts(fixed: View, moving: View, settings: AlignSettings) -> Iterator[Start | str]:
    """Yield rough homographies, or why there is none, from the cheapest method to the costliest."""
    side = settings.working_side_px
    first_features = min(FIRST_FEATURES, settings.features)
    yield _start_from_features(fixed, moving, FIRST_SIDE_SHARE * side, first_features, settings)
    yield start_from_resize(fixed, moving)
    yield _start_from_features(fixed, moving, side, settings.features, settings)


def start_from_resize(fixed: View, moving: View) -> Start:
    """Return the plain resize, for stylised or smooth images in which features fail."""
    homography = resize_homography(moving.size, fixed.size)
    resized = resize(moving.detail, fixed.size)
    correlations = _cell_correlations(fixed.detail, resized, frame_corners(fixed.size))
    return Start(homography, 0, bool(len(correlations)) and float(np.mean(correlations)) < -0.1)


def _start_from_features(
    fixed: View, moving: View, side_px: float, max_features: int, settings: AlignSettings
) -> Start | str:
    """Match SIFT features on copies with longest side `side_px`; if that fails, match the negative."""
    small_fixed, small_moving = (working_size(view.full_size, side_px) for view in (fixed, moving))
    fixed_points, fixed_descriptors = _features(resize(fixed.grey, small_fixed), max_features)
    moving_points, moving_descriptors = _features(resize(moving.grey, small_moving), max_features)
    needed = max(4, settings.min_inliers // 2)
    problem = ""
    for negative in (False, True):
        descriptors = _negative_descriptors(moving_descriptors) if negative else moving_descriptors
        pairs = _match(descriptors, fixed_descriptors, settings.ratio)
        if len(pairs) < needed:
            problem = problem or f"only {len(pairs)} features match; {needed} needed"
            continue
        source, target = moving_points[pairs[:, 0]], fixed_points[pairs[:, 1]]
        start = _magsac(source, target, settings.ransac_px)
        if start is None:
            start = resize_homography(small_moving, small_fixed)
        selected = select_model(
            source, target, start, small_moving, small_fixed, settings.ransac_px, needed, settings
        )
        if isinstance(selected, str):
            problem = problem or selected
            continue
        _, small_homography = selected
        inliers = squared_distances(small_homography, source, target) <= settings.ransac_px**2
        homography = rescale_homography(small_homography, small_moving, moving.size, small_fixed, fixed.size)
        return Start(homography, int(inliers.sum()), negative)
    return problem


def _features(grey: NDArray[Any], max_features: int) -> tuple[Floats, NDArray[np.float32]]:
    """Return SIFT positions (N, 2) and RootSIFT descriptors (N, 128) of unit length.

    RootSIFT: Arandjelović and Zisserman, CVPR 2012.
    """
    sift = cv2.SIFT.create(nfeatures=max_features, contrastThreshold=0.02, sigma=1.3)
    keypoints, raw_descriptors = sift.detectAndCompute(grey, None)
    if raw_descriptors is None or len(keypoints) == 0:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    descriptors = np.asarray(raw_descriptors, np.float32)
    descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7)
    return np.array([point.pt for point in keypoints], np.float64), np.sqrt(descriptors)


def _negative_descriptors(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the descriptors of the negative: its gradients, and with them the patch, turn by 180°."""
    return np.ascontiguousarray(descriptors.reshape(-1, 4, 4, 8)[:, ::-1, ::-1].reshape(-1, 128))


def _match(source: NDArray[np.float32], target: NDArray[np.float32], ratio: float) -> NDArray[np.intp]:
    """Return (N, 2) indices of mutual nearest neighbours that pass Lowe's ratio test (IJCV 2004)."""
    if len(source) < 2 or len(target) < 2:
        return np.empty((0, 2), np.intp)
    similarity = source @ target.T
    rows, to_target, to_source = np.arange(len(source)), similarity.argmax(axis=1), similarity.argmax(axis=0)
    nearest = similarity[rows, to_target]
    similarity[rows, to_target] = -1
    second = np.maximum(similarity.max(axis=1), similarity.max(axis=0)[to_target])
    # Descriptors have unit length, so the squared distance is 2 - 2 x similarity.
    accepted = (to_source[to_target] == rows) & (1 - nearest < ratio**2 * (1 - second))
    return np.stack([rows[accepted], to_target[accepted]], axis=1)


def _magsac(source: Floats, target: Floats, limit_px: float) -> Floats | None:
    """Estimate a homography robustly (MAGSAC: Barath et al., CVPR 2019) with a fixed random seed."""
    cv2.setRNGSeed(0)
    homography, _ = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, limit_px, maxIters=5000, confidence=0.9999
    )
    return None if homography is None else normalise_homography(np.asarray(homography, np.float64))


def _cell_correlations(fixed: Plane, moving: Plane, overlap: Floats) -> Floats:
    """Return (N,) correlations of two aligned images' detail, for the cells of the overlap that have any."""
    height, width = fixed.shape
    # Half size, because editors redraw finer detail.
    half, cells = ((max(1, width // side), max(1, height // side)) for side in (2, CORRELATION_CELL_PX))
    to_half = resize_homography((width, height), half)
    inside = polygon_mask(project(to_half, overlap), half).astype(np.float32)
    a, b = ((resize(image, half).astype(np.float32) - 128) * inside for image in (fixed, moving))
    both, first, second, share = (resize(result, cells) for result in (a * b, a * a, b * b, inside))
    has_detail = (share > 0.5) & (first > 60 * share)
    return np.asarray((both / cv2.sqrt(first * second + 1))[has_detail], np.float64)
