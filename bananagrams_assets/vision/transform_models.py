"""Fit transformation models, from a plain resize to a homography, to matched points and select one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import AlignSettings
from .geometry import Floats, Size, frame_corners, jacobians, normalise_homography, project, resize_homography

MODELS: dict[str, tuple[int, ...]] = {
    "resize": (),
    "scale": (0, 2, 4, 5),
    "affine": (0, 1, 2, 3, 4, 5),
    "homography": (0, 1, 2, 3, 4, 5, 6, 7),
}
"""Free entries of the homography, row by row, for each model. `scale` is a crop or an extension of the
canvas: both axes are scaled and shifted."""

MAX_ITERATIONS = 6
"""Iterations of reweighted least squares."""
CONVERGED_STEP = 2e-5
"""Iteration ends at a step below this share of the image's side (0.01 px)."""
MIN_RESIDUAL_PX = 0.1
"""Lower bound of the residual used for uncertainty: smaller residuals occur by chance."""
CHI2_MEDIAN = 1.386
"""Median of the chi² distribution with two degrees of freedom."""


def select_model(
    source: Floats,
    target: Floats,
    start: Floats,
    source_size: Size,
    target_size: Size,
    limit_px: float,
    min_inliers: int,
    settings: AlignSettings,
) -> tuple[str, Floats] | str:
    """Return the name and homography of the model with the lowest GRIC score, or why no model is plausible.

    GRIC: Torr, IJCV 2002. `source` → `target`: matches, float64 (N, 2) px. `start`: a rough homography
    between them. `limit_px`: the largest distance of an inlier.
    """
    nominal = resize_homography(source_size, target_size)
    best_score, selected, problem, variance = np.inf, None, "", 0.0
    for method, free in reversed(MODELS.items()):  # the most flexible first: it measures the noise
        homography = fit_homography(start, source, target, free, limit_px, nominal)
        squared = squared_distances(homography, source, target)
        inliers = squared <= limit_px**2
        if not variance:
            variance = max(0.01, float(np.median(squared[inliers])) / CHI2_MEDIAN) if inliers.any() else 0.01
        misfit = float(np.minimum(squared, limit_px**2).sum()) / variance
        if misfit > best_score:
            break  # the remaining models are less flexible and cannot fit better
        score = misfit + len(free) * np.log(4 * len(source))
        if score < best_score:
            model_problem = _implausibility(
                homography, inliers, source_size, target_size, min_inliers, settings
            )
            problem = problem or model_problem
            if not model_problem:
                best_score, selected = score, (method, homography)
    return selected or problem


def squared_distances(homography: Floats, source: Floats, target: Floats) -> Floats:
    """Return (N,) squared distances in px² of the mapped `source` (N, 2) from `target`; inf if unmappable."""
    return np.asarray(np.nan_to_num(np.sum((project(homography, source) - target) ** 2, axis=1), nan=np.inf))


def fit_homography(
    start: Floats,
    source: Floats,
    target: Floats,
    free: tuple[int, ...],
    limit_px: float,
    fixed: Floats | None = None,
) -> Floats:
    """Fit the `free` entries of a homography by reweighted Gauss-Newton; take the others from `fixed`.

    The weights are Tukey's biweight of each match's distance, 0 from `limit_px`. The initial weights are
    those of `start` with all its entries.
    """
    scale = float(np.abs(target).max())  # entries of similar magnitude give a well-conditioned system
    units = _entry_units(scale)
    weights = np.clip(1 - squared_distances(start, source, target) / limit_px**2, 0, None) ** 2
    entries = (start * units).ravel()
    if fixed is not None:
        fixed_entries = [entry for entry in range(8) if entry not in free]
        entries[fixed_entries] = (fixed * units).ravel()[fixed_entries]
    points, scaled_target = source / scale, target.T / scale
    for _ in range(MAX_ITERATIONS if free else 0):
        mapped, derivatives = _linearise(entries.reshape(3, 3), points)
        residual = scaled_target - mapped
        jacobian = derivatives[:, :, free].reshape(-1, len(free))
        weighted = jacobian * np.tile(weights, 2)[:, None]
        # The ridge keeps the system solvable if the matches leave an entry undetermined. Such a fit then
        # fails the plausibility checks.
        normal_matrix = jacobian.T @ weighted + 1e-9 * np.eye(len(free))
        step = np.linalg.solve(normal_matrix, weighted.T @ residual.ravel())
        entries[list(free)] += step
        residual = scaled_target - project(entries.reshape(3, 3), points).T
        weights = np.clip(1 - (residual**2).sum(axis=0) * (scale / limit_px) ** 2, 0, None) ** 2
        if np.abs(step).max() < CONVERGED_STEP:
            break
    return normalise_homography(entries.reshape(3, 3) / units)


def corner_uncertainty(homography: Floats, points: Floats, corners: Floats, residual_px: float) -> float:
    """Return the largest standard deviation of the mapped `corners`, as a share of the image's size.

    It is propagated by least squares from `points`, (N, 2), with an error of `residual_px`, for a full
    homography (Hartley and Zisserman, Multiple View Geometry, 5.2).
    """
    scale = float(np.abs(corners).max())
    entries = homography * _entry_units(scale)
    jacobian = _linearise(entries, points / scale)[1].reshape(-1, 8)
    covariance = np.linalg.inv(jacobian.T @ jacobian + 1e-9 * np.eye(8))
    corner_jacobian = _linearise(entries, corners / scale)[1]
    variances = np.einsum("dnf,fg,dng->n", corner_jacobian, covariance, corner_jacobian)
    return float(np.sqrt(variances.max())) * max(residual_px, MIN_RESIDUAL_PX) / scale


def _entry_units(scale: float) -> Floats:
    """Return the factors (3, 3) that turn a homography's entries into those for coordinates over `scale`."""
    return np.array([[1, 1, 1 / scale], [1, 1, 1 / scale], [scale, scale, 1]])


def _linearise(homography: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Map (N, 2) points: return them as (2, N), and their derivatives by the first 8 entries as (2, N, 8)."""
    homogeneous = np.column_stack([points, np.ones(len(points))])
    x, y, depth = homography @ homogeneous.T
    mapped = np.stack([x, y]) / depth
    homogeneous /= depth[:, None]
    derivatives = np.zeros((2, len(points), 8))
    derivatives[0, :, :3] = derivatives[1, :, 3:6] = homogeneous
    derivatives[:, :, 6:] = -mapped[:, :, None] * homogeneous[:, :2]
    return mapped, derivatives


def _implausibility(
    homography: Floats,
    inliers: NDArray[np.bool_],
    source: Size,
    target: Size,
    min_inliers: int,
    settings: AlignSettings,
) -> str:
    """Return why an editor cannot have made this homography; empty if it can."""
    if inliers.sum() < min_inliers:
        return f"only {inliers.sum()} of {len(inliers)} matches agree; {min_inliers} needed"
    if inliers.mean() < settings.min_inlier_ratio:
        return (
            f"only {inliers.mean():.0%} of {len(inliers)} matches agree; "
            f"{settings.min_inlier_ratio:.0%} needed"
        )
    corners = frame_corners(source)
    depth = corners @ homography[2, :2] + 1
    mapped = project(homography, corners)
    edges = np.roll(mapped, -1, axis=0) - mapped
    next_edges = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * next_edges[:, 1] - edges[:, 1] * next_edges[:, 0]
    if not np.isfinite(mapped).all() or depth.min() <= 0 or turns.min() <= 0:
        return "the matches agree on a mapping that folds or mirrors the picture"
    nominal = resize_homography(source, target)[:2, :2]
    local = jacobians(homography, np.vstack([corners, corners.mean(axis=0)]))
    resize_undone = local @ np.linalg.inv(nominal)
    scales = np.sqrt(np.abs(np.linalg.det(resize_undone)))
    scale = float(scales[np.abs(np.log(scales)).argmax()])
    if not 1 / settings.max_scale <= scale <= settings.max_scale:
        return f"the matches agree on a scale of {scale:.2f}; {settings.max_scale:g} at most is believed"
    # The resize may cause a stretch, and a crop may have none although the frames' aspect ratios differ.
    stretch = float(np.minimum(_anisotropy(local), _anisotropy(resize_undone)).max())
    if stretch > settings.max_anisotropy:
        limit = settings.max_anisotropy
        return f"the matches agree on a stretch of {stretch:.2f}; {limit:g} at most is believed"
    return ""


def _anisotropy(matrices: Floats) -> Floats:
    """Return the ratio of the singular values of each (2, 2) matrix."""
    values = np.linalg.svd(matrices, compute_uv=False)
    return np.asarray(values[:, 0] / values[:, 1])
