"""Refine a rough registration by tracking corners at the working size and fitting a model to the tracks."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import AlignSettings
from .features import Plane, Start, View, working_size
from .geometry import Floats, Size, frame_corners, project, rescale_homography
from .transform_models import MODELS, corner_uncertainty, fit_homography, select_model, squared_distances

SUFFICIENT_CONFIDENCE = 0.97
"""Fits with this confidence end the search: no costlier method is tried."""

WINDOW_PX = 15
"""Side of the tracked window around a corner."""
MAX_RESIDUAL_SHARE = 0.6
"""A corner shows different content if the residual exceeds this share of the detail in its window."""
MIN_INLIER_RATIO = 0.3
"""With a smaller ratio over all tracks, many of the inliers agree by chance and bias the fit."""
LK_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.03)
"""At most 15 iterations per track; a step under 0.03 px ends it."""
INLIER_PX = 1.0
"""Largest distance of an inlier track from the model, in px at the working size."""
ROUGH_INLIER_PX = 4.0
"""Largest distance of an inlier in the first fit, which starts from the rough homography."""

CONFIDENCE_WEIGHTS = {"": -18.56, "inliers": 1.39, "ratio": 5.82, "uncertainty": -1.69, "coarse": -2.31}
"""Weights of the logistic regression in `confidence_of`; "" is the bias. `inliers`: log of the number of
inliers among the used tracks. `ratio`: their share. `uncertainty`: log of `corner_uncertainty`. `coarse`: log
of the working size over the size of the tracked copies. The number of feature matches adds no information."""


class Fit(NamedTuple):
    """One candidate alignment, with fields as in Alignment. `evidence` has the keys of CONFIDENCE_WEIGHTS."""

    homography: Floats
    method: str
    inliers: int
    inlier_ratio: float
    residual_px: float
    evidence: dict[str, float]

    @property
    def confidence(self) -> float:
        return confidence_of(self.evidence)


class _Tracks(NamedTuple):
    """Tracked corners: float64 (N, 2) px at the working sizes, edited image (source) → input (target).

    `same`: bool (N,), whether both images show the same content at the corner.
    """

    source: Floats
    target: Floats
    same: NDArray[np.bool_]


def confidence_of(evidence: dict[str, float]) -> float:
    """Return the probability that every corner lies within 4 px of its true place on a 1024 px input.

    The logistic regression is fitted to made pairs, most of them hard (up to nine tenths replaced, cropped,
    stylised, without texture, unrelated). `align_benchmark refit` fits the weights, and `align_benchmark
    accuracy` evaluates them on other photos.
    """
    total = CONFIDENCE_WEIGHTS[""] + sum(CONFIDENCE_WEIGHTS[name] * value for name, value in evidence.items())
    return float(1 / (1 + np.exp(-total)))


def strongest_corners(detail: Plane, cell_px: int) -> Floats:
    """Return (N, 2) x and y of the strongest corner in each grid cell (Shi and Tomasi, CVPR 1994)."""
    height, width = detail.shape
    cell = max(4, min(cell_px, max(height, width) // 8))
    rows, columns = height // cell, width // cell
    if min(height, width) < WINDOW_PX:
        return np.empty((0, 2))
    strength = np.zeros((height, width), np.float32)
    margin = _margin((width, height))
    inner = slice(margin, height - margin), slice(margin, width - margin)
    strength[inner] = cv2.cornerMinEigenVal(detail, 5)[inner]
    strength = strength[: rows * cell, : columns * cell]
    blocks = strength.reshape(rows, cell, columns, cell).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    strongest = blocks.argmax(axis=1)
    row, column = np.divmod(np.arange(rows * columns), columns)
    y, x = np.divmod(strongest, cell)
    usable = blocks[np.arange(len(blocks)), strongest] > 1e-3 * strength.max()
    return np.asarray(np.stack([column * cell + x, row * cell + y], axis=1)[usable], np.float64)


def _margin(size: Size) -> int:
    """Return the width in px of the margin without tracks.

    If the other image continues beyond the frame, detail in the margin has different surroundings there.
    """
    return min(WINDOW_PX // 2, min(size) // 8)


def refine(fixed: View, moving: View, corners: Floats, start: Start, settings: AlignSettings) -> Fit | str:
    """Refine `start` by tracking `corners` of the input; return the fit, or why there is none.

    Track a second time from the first result if it moved a corner of the frame by a pixel or more.
    """
    homography = start.homography
    detail = 255 - moving.detail if start.negative else moving.detail
    frame = frame_corners(moving.size)
    fit: Fit | str = ""
    for levels in (2 if start.matches else 4, 1):
        tracks = _track_corners(fixed, detail, homography, corners, levels, settings)
        if isinstance(tracks, str):
            return fit or tracks
        fit = _fit_best_tracks(fixed, moving, homography, tracks, settings)
        if isinstance(fit, str):
            return fit
        refined = rescale_homography(
            fit.homography, moving.full_size, moving.size, fixed.full_size, fixed.size
        )
        movement_px = float(np.abs(project(refined, frame) - project(homography, frame)).max())
        homography = refined
        if movement_px < 1:
            break
    return fit


def _fit_best_tracks(
    fixed: View, moving: View, start: Floats, tracks: _Tracks, settings: AlignSettings
) -> Fit | str:
    """Fit to the tracks with the same content, then to all tracks; return the better fit, or why none.

    If most of the image is replaced, few tracks are meaningful. If it is all redrawn, few corners look the
    same.
    """
    best: Fit | None = None
    problem = ""
    for used in (tracks.same, np.full(len(tracks.same), True)):
        fit = _fit_tracks(fixed, moving, start, tracks, used, settings)
        if isinstance(fit, str):
            problem = fit
        elif best is None or (fit.inlier_ratio > MIN_INLIER_RATIO and fit.confidence > best.confidence):
            best = fit
        if best and best.confidence >= SUFFICIENT_CONFIDENCE:
            break
    return best or problem


def _track_corners(
    fixed: View, detail: Plane, homography: Floats, corners: Floats, levels: int, settings: AlignSettings
) -> _Tracks | str:
    """Track `corners` of the input into the edited image's `detail`, warped by a rough homography.

    Lucas and Kanade, IJCAI 1981; in pyramids: Bouguet, Intel 2000. Returns why if too few corners remain.
    """
    moving_size = (detail.shape[1], detail.shape[0])
    frame, margin = frame_corners(moving_size), _margin(moving_size)
    inverse = np.asarray(np.linalg.inv(homography), np.float64)
    origin = project(inverse, corners)
    tracked = corners[((origin > frame[0] + margin) & (origin < frame[2] - margin)).all(axis=1)]
    if len(tracked) < settings.min_inliers:
        return f"only {len(tracked)} corners to track; {settings.min_inliers} needed"
    points, window = tracked.astype(np.float32), (WINDOW_PX, WINDOW_PX)
    warped = cv2.warpPerspective(detail, homography, fixed.size, borderValue=128)  # 128: no detail
    positions, status, residuals = cv2.calcOpticalFlowPyrLK(
        fixed.detail, warped, points, points.copy(), winSize=window, maxLevel=levels, criteria=LK_CRITERIA
    )
    kept = np.asarray(status).ravel() > 0
    if kept.sum() < settings.min_inliers:
        return f"only {kept.sum()} corners found again; {settings.min_inliers} needed"
    contrast = cv2.blur(cv2.absdiff(fixed.detail, np.full_like(fixed.detail, 128)), window)
    columns, rows = tracked[kept].astype(int).T
    same = np.asarray(residuals).ravel()[kept] <= MAX_RESIDUAL_SHARE * contrast[rows, columns]
    return _Tracks(project(inverse, np.asarray(positions, np.float64)[kept]), tracked[kept], same)


def _fit_tracks(
    fixed: View,
    moving: View,
    start: Floats,
    tracks: _Tracks,
    used: NDArray[np.bool_],
    settings: AlignSettings,
) -> Fit | str:
    """Select and fit a model to the `used` tracks, bool (N,); return why if there is none."""
    needed = settings.min_inliers
    source, target = tracks.source[used], tracks.target[used]
    if len(source) < needed:
        return f"only {len(source)} corners look the same; {needed} needed"
    rough = fit_homography(start, source, target, MODELS["homography"], ROUGH_INLIER_PX)
    selected = select_model(source, target, rough, moving.size, fixed.size, INLIER_PX, needed, settings)
    if isinstance(selected, str):
        return selected
    method, homography = selected
    squared = squared_distances(homography, tracks.source, tracks.target)
    agreeing = squared <= INLIER_PX**2
    inliers = agreeing & used
    residual_px = float(np.sqrt(squared[inliers].mean()))
    frame = frame_corners(moving.size)
    uncertainty = corner_uncertainty(homography, tracks.source[inliers], frame, residual_px)
    full_working_size = working_size(fixed.full_size, settings.working_side_px)
    evidence = {
        "inliers": float(np.log(inliers.sum())),
        "ratio": float(inliers.sum() / used.sum()),
        "uncertainty": float(np.log(uncertainty)),
        "coarse": float(np.log(max(full_working_size) / max(fixed.size))),
    }
    return Fit(
        homography=rescale_homography(homography, moving.size, moving.full_size, fixed.size, fixed.full_size),
        method=method,
        inliers=int(agreeing.sum()),
        inlier_ratio=float(agreeing.mean()),
        residual_px=residual_px * fixed.full_size[0] / fixed.size[0],
        evidence=evidence,
    )
