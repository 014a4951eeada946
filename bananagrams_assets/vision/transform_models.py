"""How one picture lies on another: models from a plain resize to a homography, fitted to matched points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import AlignSettings
from bananagrams_assets.vision.geometry import Floats, Size, frame, jacobians, normalised, project, resizing

MODELS: dict[str, tuple[int, ...]] = {
    "resize": (),
    "scale": (0, 2, 4, 5),
    "affine": (0, 1, 2, 3, 4, 5),
    "homography": (0, 1, 2, 3, 4, 5, 6, 7),
}
"""The entries of a homography, row by row, that each model is free to choose. `scale` is a crop or an
extension of the canvas: both axes scaled and shifted."""

ROUNDS = 6
"""Reweighted least-squares steps at most."""
STILL = 2e-5
"""A step under this share of the picture's side, 0.01 px, ends them."""
LEAST_RESIDUAL_PX = 0.1
"""Matches that agree better than this by chance are not believed to be as exact."""


def choose(
    source: Floats,
    target: Floats,
    start: Floats,
    source_size: Size,
    target_size: Size,
    limit_px: float,
    needed: int,
    settings: AlignSettings,
) -> tuple[str, Floats] | str:
    """The simplest model's name and homography that the matches support, or in words why there is none.

    By GRIC (Torr, IJCV 2002). `source` → `target`: float64 (N, 2) px; `start`: a rough homography between
    them, whose `limit_px` tells inliers; `needed`: the least number of those.
    """
    nominal = resizing(source_size, target_size)
    best, chosen, problem, sigma2 = np.inf, None, "", 0.0
    for method, free in reversed(MODELS.items()):  # the most flexible first: it measures the noise
        homography = fitted(start, source, target, free, limit_px, nominal)
        squared = squared_distances(homography, source, target)
        close = squared <= limit_px**2
        if not sigma2:  # half of the median of chi² with two degrees of freedom is 0.693
            sigma2 = max(0.01, float(np.median(squared[close])) / 1.386) if close.any() else 0.01
        misfit = float(np.minimum(squared, limit_px**2).sum()) / sigma2
        if misfit > best:
            break  # what is left is less flexible, so it fits no better
        score = misfit + len(free) * np.log(4 * len(source))
        if score < best:
            wrong = _problem(homography, close, source_size, target_size, needed, settings)
            problem = problem or wrong
            if not wrong:
                best, chosen = score, (method, homography)
    return chosen or problem


def squared_distances(homography: Floats, source: Floats, target: Floats) -> Floats:
    """(N,) px²: how far each of `source`, (N, 2), lies from its `target`; infinite where it maps nowhere."""
    return np.asarray(np.nan_to_num(np.sum((project(homography, source) - target) ** 2, axis=1), nan=np.inf))


def fitted(
    start: Floats,
    source: Floats,
    target: Floats,
    free: tuple[int, ...],
    limit_px: float,
    others: Floats | None = None,
) -> Floats:
    """Reweighted Gauss-Newton over the `free` entries of a homography; the rest are those of `others`.

    Weights are Tukey's biweight of each match's distance, 0 from `limit_px` on; the first ones are those
    of `start` with all its entries.
    """
    scale = float(np.abs(target).max())  # entries of near-equal magnitudes: a well-posed system
    units = np.array([[1, 1, 1 / scale], [1, 1, 1 / scale], [scale, scale, 1]])
    weights = np.clip(1 - squared_distances(start, source, target) / limit_px**2, 0, None) ** 2
    entries = (start * units).ravel()
    if others is not None:
        held = [entry for entry in range(8) if entry not in free]
        entries[held] = (others * units).ravel()[held]
    points, goal = source / scale, target.T / scale
    for _ in range(ROUNDS if free else 0):
        off, slope = _linearised(entries.reshape(3, 3), points)
        off = goal - off
        slope = slope[:, :, free].reshape(-1, len(free))
        weighted = slope * np.tile(weights, 2)[:, None]
        # The ridge keeps the system solvable where the matches leave an entry free; such a fit then fails
        # the checks that follow.
        step = np.linalg.solve(slope.T @ weighted + 1e-9 * np.eye(len(free)), weighted.T @ off.ravel())
        entries[list(free)] += step
        left = goal - project(entries.reshape(3, 3), points).T
        weights = np.clip(1 - (left**2).sum(axis=0) * (scale / limit_px) ** 2, 0, None) ** 2
        if np.abs(step).max() < STILL:
            break
    return normalised(entries.reshape(3, 3) / units)


def _linearised(homography: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Where (N, 2) points map to, (2, N), and the derivatives by the first eight entries, (2, N, 8)."""
    plane = np.column_stack([points, np.ones(len(points))])
    across, down, depth = homography @ plane.T
    mapped = np.stack([across, down]) / depth
    plane /= depth[:, None]
    slope = np.zeros((2, len(points), 8))
    slope[0, :, :3] = slope[1, :, 3:6] = plane
    slope[:, :, 6:] = -mapped[:, :, None] * plane[:, :2]
    return mapped, slope


def _problem(
    homography: Floats,
    agree: NDArray[np.bool_],
    source: Size,
    target: Size,
    needed: int,
    settings: AlignSettings,
) -> str:
    """Why this homography cannot be what an editor did, in words; empty where it can."""
    if agree.sum() < needed:
        return f"only {agree.sum()} of {len(agree)} matches agree; {needed} needed"
    if agree.mean() < settings.min_inlier_ratio:
        return (
            f"only {agree.mean():.0%} of {len(agree)} matches agree; {settings.min_inlier_ratio:.0%} needed"
        )
    corners = frame(source)
    depth = corners @ homography[2, :2] + 1
    mapped = project(homography, corners)
    edges = np.roll(mapped, -1, axis=0) - mapped
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]
    if not np.isfinite(mapped).all() or depth.min() <= 0 or turns.min() <= 0:
        return "the matches agree on a mapping that folds or mirrors the picture"
    nominal = resizing(source, target)[:2, :2]
    plain = jacobians(homography, np.vstack([corners, corners.mean(axis=0)]))
    undone = plain @ np.linalg.inv(nominal)
    scales = np.sqrt(np.abs(np.linalg.det(undone)))
    scale = float(scales[np.abs(np.log(scales)).argmax()])
    if not 1 / settings.max_scale <= scale <= settings.max_scale:
        return f"the matches agree on a scale of {scale:.2f}; {settings.max_scale:g} at most is believed"
    # A stretch may come from the resize or be absent although the frames' shapes differ (a crop).
    stretch = float(np.minimum(_stretch(plain), _stretch(undone)).max())
    if stretch > settings.max_anisotropy:
        limit = settings.max_anisotropy
        return f"the matches agree on a stretch of {stretch:.2f}; {limit:g} at most is believed"
    return ""


def _stretch(matrices: Floats) -> Floats:
    """The ratio of the singular values of each (2, 2) matrix."""
    values = np.linalg.svd(matrices, compute_uv=False)
    return np.asarray(values[:, 0] / values[:, 1])


def swing(homography: Floats, points: Floats, outline: Floats, residual_px: float) -> float:
    """How far a full homography fitted to `points`, (N, 2), may swing at `outline`'s worst corner.

    The standard deviation, as a share of the outline's size, that least squares hands on to the corner from
    points off by `residual_px` (Hartley and Zisserman, Multiple View Geometry, 5.2).
    """
    scale = float(np.abs(outline).max())
    entries = homography * np.array([[1, 1, 1 / scale], [1, 1, 1 / scale], [scale, scale, 1]])
    slope = _linearised(entries, points / scale)[1].reshape(-1, 8)
    covariance = np.linalg.inv(slope.T @ slope + 1e-9 * np.eye(8))
    corners = _linearised(entries, outline / scale)[1]
    spread = np.einsum("dnf,fg,dng->n", corners, covariance, corners)
    return float(np.sqrt(spread.max())) * max(residual_px, LEAST_RESIDUAL_PX) / scale
