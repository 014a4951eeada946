"""Where each pixel of an edited picture lies in its input.

Features are found on small copies: at 512 px they place the picture's corners as exactly as at full
size, for a fraction of the time. The model is the simplest that the matches support, because an
editor's output is most often a resize or a crop, and a full homography fitted to the few matches that
an edit leaves swings at the corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import AlignSettings
from bananagrams_assets.vision.geometry import (
    Floats,
    Size,
    frame,
    normalised,
    overlap_polygon,
    polygon_area,
    polygon_mask,
    project,
    rescaled,
    resizing,
)
from bananagrams_assets.vision.geometry import warp as warp
from bananagrams_assets.vision.images import RGB, fitted_size, resize

MODELS: dict[str, tuple[int, ...]] = {
    "resize": (),
    "scale": (0, 2, 4, 5),
    "affine": (0, 1, 2, 3, 4, 5),
    "homography": (0, 1, 2, 3, 4, 5, 6, 7),
}
"""The entries of a homography, row by row, that each model is free to choose. `scale` is a crop or an
extension of the canvas: both axes scaled and shifted."""

ROUNDS = 6
"""Reweighted least-squares steps; the change after five is under 0.01 px."""

CORRELATION_SIDE_PX = 128
LEAST_CORRELATION = 0.25
"""Of fine detail, from which two pictures show the same scene. Unrelated photographs stay under 0.06,
restyled ones lie between 0.3 and 0.9."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How an edited picture lies on its input.

    `homography`: float64 (3, 3), edited px → input px. `method`: `resize`, `scale`, `affine` or
    `homography`, fitted to SIFT matches; `correlation`, a plain resize, or `ecc`, an affine map, both found
    by the pictures' detail; `none`. `inliers`, `inlier_ratio`: matches that agree, and their share (0 by
    correlation). `residual_px`: their root mean square distance, in input px. `overlap`: float64 (N, 2),
    the known part of the input as a convex polygon; `overlap_share`: its share of the input, 0..1.
    `confidence`: 0..1, see `_confidence`; at most 0.5 by correlation. Where `accepted` is False, `reason`
    says why in words, `homography` is the plain resize, `overlap` is empty and `confidence` is 0.
    """

    homography: Floats
    method: str
    inliers: int
    inlier_ratio: float
    residual_px: float
    overlap: Floats
    overlap_share: float
    confidence: float
    accepted: bool
    reason: str


def align(before: RGB, after: RGB, settings: AlignSettings) -> Alignment:
    """Align the edited picture `after` with its input `before`; never raises over what is in a picture.

    RootSIFT (Arandjelović and Zisserman, CVPR 2012), mutual nearest neighbours under Lowe's ratio
    (IJCV 2004), MAGSAC (Barath et al., CVPR 2019), the model by GRIC (Torr, IJCV 2002), refined by
    reweighted least squares. The same pictures give the same result.
    """
    target, source = _size(before), _size(after)
    small_target, small_source = (_working_size(size, settings.working_side_px) for size in (target, source))
    points, descriptors = _features(resize(before, small_target), settings.features)
    moved, moved_descriptors = _features(resize(after, small_source), settings.features)
    pairs = _match(moved_descriptors, descriptors, settings.ratio)
    from_points, to_points = moved[pairs[:, 0]], points[pairs[:, 1]]

    fitted = _fit(from_points, to_points, small_source, small_target, settings)
    if isinstance(fitted, str):
        return _correlate(before, after) or _rejected(source, target, fitted)

    method, small = fitted
    homography = rescaled(small, small_source, source, small_target, target)
    distance = np.linalg.norm(project(small, from_points) - to_points, axis=1)
    agree = distance <= settings.ransac_px
    polygon = overlap_polygon(homography, source, target)
    share = min(1.0, polygon_area(polygon) / (target[0] * target[1]))
    if share < settings.min_overlap:
        reason = f"the pictures share {share:.0%} of the input; {settings.min_overlap:.0%} needed"
        return _rejected(source, target, reason)
    small_polygon = overlap_polygon(small, small_source, small_target)
    return Alignment(
        homography=homography,
        method=method,
        inliers=int(agree.sum()),
        inlier_ratio=float(agree.mean()),
        residual_px=float(np.sqrt(np.mean(distance[agree] ** 2)) * target[0] / small_target[0]),
        overlap=polygon,
        overlap_share=share,
        confidence=_confidence(
            to_points[agree], distance[agree], len(pairs), small_polygon, small_target, settings.ransac_px
        ),
        accepted=True,
        reason="",
    )


def _size(picture: RGB) -> Size:
    return picture.shape[1], picture.shape[0]


def _working_size(size: Size, side_px: int) -> Size:
    """Longest side `side_px`, but the shorter one at least a quarter of that: a panorama keeps features."""
    scale = min(1.0, max(side_px / max(size), side_px / 4 / min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _features(picture: RGB, most: int) -> tuple[Floats, NDArray[np.float32]]:
    """SIFT positions (N, 2) and RootSIFT descriptors (N, 128), of unit length."""
    sift = cv2.SIFT.create(nfeatures=most, contrastThreshold=0.02, enable_precise_upscale=True)
    keypoints, found = sift.detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), None)
    if found is None or len(keypoints) == 0:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    descriptors = np.asarray(found, np.float32)
    descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7)
    return np.array([point.pt for point in keypoints], np.float64), np.sqrt(descriptors)


def _match(source: NDArray[np.float32], target: NDArray[np.float32], ratio: float) -> NDArray[np.intp]:
    """(N, 2) indices of mutual nearest neighbours that pass the ratio test both ways."""
    if len(source) < 2 or len(target) < 2:
        return np.empty((0, 2), np.intp)
    likeness = source @ target.T
    rows, there, back = np.arange(len(source)), likeness.argmax(axis=1), likeness.argmax(axis=0)
    nearest = likeness[rows, there]
    likeness[rows, there] = -1
    second = np.maximum(likeness.max(axis=1), likeness.max(axis=0)[there])
    # Descriptors have unit length: the squared distance is 2 - 2 x likeness.
    chosen = (back[there] == rows) & (1 - nearest < ratio**2 * (1 - second))
    return np.stack([rows[chosen], there[chosen]], axis=1)


def _fit(
    source: Floats, target: Floats, source_size: Size, target_size: Size, settings: AlignSettings
) -> tuple[str, Floats] | str:
    """The model's name and homography at the working size, or the reason why there is none."""
    needed = settings.min_inliers
    if len(source) < needed:
        return f"only {len(source)} features match; {needed} needed"
    start = _magsac(source, target, settings.ransac_px)
    nominal = resizing(source_size, target_size)
    scores: dict[str, tuple[float, Floats]] = {}
    problems: list[str] = []
    sigma2 = 0.0
    for method in reversed(MODELS):  # the most flexible first: it measures the noise
        free = MODELS[method]
        initial = start if method == "homography" else nominal
        if initial is None:
            continue
        weights = _weights(start if start is not None else nominal, source, target, settings.ransac_px)
        homography = _refine(initial, source, target, weights, free, settings.ransac_px)
        squared = np.sum((project(homography, source) - target) ** 2, axis=1)
        agree = squared <= settings.ransac_px**2
        if problem := _problem(homography, agree, source_size, target_size, settings):
            problems.append(problem)
            continue
        sigma2 = sigma2 or max(
            0.01, float(np.median(squared[agree])) / 1.386
        )  # the median of chi² with 2 dof
        misfit = np.minimum(squared, settings.ransac_px**2).sum() / sigma2
        scores[method] = (misfit + len(free) * np.log(4 * len(source)), homography)
    if not scores:
        return problems[0]
    best = min(scores, key=lambda method: scores[method][0])
    return best, scores[best][1]


def _magsac(source: Floats, target: Floats, limit_px: float) -> Floats | None:
    cv2.setRNGSeed(0)
    found, _ = cv2.findHomography(source, target, cv2.USAC_MAGSAC, limit_px, maxIters=5000, confidence=0.9999)
    return None if found is None else normalised(np.asarray(found, np.float64))


def _weights(homography: Floats, source: Floats, target: Floats, limit_px: float) -> Floats:
    """Tukey's biweight of each match's distance, 0 from `limit_px` on."""
    squared = np.sum((project(homography, source) - target) ** 2, axis=1)
    return np.asarray(np.clip(1 - squared / limit_px**2, 0, None) ** 2)


def _refine(
    initial: Floats, source: Floats, target: Floats, weights: Floats, free: tuple[int, ...], limit_px: float
) -> Floats:
    """Reweighted Gauss-Newton over the `free` entries of the homography (all else stays as in `initial`)."""
    if not free:
        return initial
    unit = np.diag([1 / target.max(), 1 / target.max(), 1.0])  # near-equal magnitudes: a well-posed system
    back = np.linalg.inv(unit)
    entries = normalised(unit @ initial @ back).ravel()
    x, y = (source * unit[0, 0]).T
    one, zero = np.ones_like(x), np.zeros_like(x)
    goal = target * unit[0, 0]
    for _ in range(ROUNDS):
        H = entries.reshape(3, 3)
        depth = H[2, 0] * x + H[2, 1] * y + 1
        u, v = (H[0, 0] * x + H[0, 1] * y + H[0, 2]) / depth, (H[1, 0] * x + H[1, 1] * y + H[1, 2]) / depth
        of_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=1) / depth[:, None]
        of_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=1) / depth[:, None]
        weighted = np.concatenate([weights, weights])[:, None]
        slope = np.concatenate([of_u, of_v])[:, free]
        error = np.concatenate([goal[:, 0] - u, goal[:, 1] - v])
        # The ridge keeps the system solvable where the matches leave an entry free; such a fit then fails
        # the checks that follow.
        normal = slope.T @ (weighted * slope) + 1e-9 * np.eye(len(free))
        step = np.linalg.solve(normal, slope.T @ (weighted[:, 0] * error))
        entries[list(free)] += step
        weights = _weights(back @ entries.reshape(3, 3) @ unit, source, target, limit_px)
    return normalised(back @ entries.reshape(3, 3) @ unit)


def _problem(
    homography: Floats, agree: NDArray[np.bool_], source: Size, target: Size, settings: AlignSettings
) -> str:
    """Why this homography cannot be what an editor did, in words; empty where it can."""
    if agree.sum() < settings.min_inliers:
        return f"only {agree.sum()} of {len(agree)} matches agree; {settings.min_inliers} needed"
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
    for point in (*corners, corners.mean(axis=0)):
        local = _jacobian(homography, point)
        plain = np.linalg.svd(local, compute_uv=False)
        undone = np.linalg.svd(local @ np.linalg.inv(nominal), compute_uv=False)
        if not 1 / settings.max_scale <= np.sqrt(undone.prod()) <= settings.max_scale:
            scale = np.sqrt(undone.prod())
            return f"the matches agree on a scale of {scale:.2f}; {settings.max_scale:g} at most is believed"
        # A stretch may come from the resize or be absent although the frames' shapes differ (a crop).
        if (stretch := min(plain[0] / plain[1], undone[0] / undone[1])) > settings.max_anisotropy:
            limit = settings.max_anisotropy
            return f"the matches agree on a stretch of {stretch:.2f}; {limit:g} at most is believed"
    return ""


def _jacobian(homography: Floats, point: Floats) -> Floats:
    depth = homography[2, :2] @ point + 1
    mapped = (homography[:2, :2] @ point + homography[:2, 2]) / depth
    return np.asarray((homography[:2, :2] - np.outer(mapped, homography[2, :2])) / depth)


def _confidence(
    inliers: Floats, distance: Floats, matches: int, overlap: Floats, size: Size, limit_px: float
) -> float:
    """Geometric mean of four shares, 0..1 each; positions, distances and overlap at the working size.

    support: 1 - exp(-n / 50) of n inliers; agreement: the inliers' share of the matches; precision:
    exp(-2 r²) of their root mean square distance r over the inlier limit; spread: the share of the
    overlap, in cells of a 16 x 16 grid, that has an inlier within an eighth of the longest side.
    """
    cells = (16, 16)
    known = polygon_mask(project(resizing(size, cells), overlap), cells)
    row, column = np.nonzero(known)
    centres = project(resizing(cells, size), np.stack([column, row], axis=1).astype(np.float64))
    nearest = np.linalg.norm(centres[:, None] - inliers[None], axis=2).min(axis=1)
    support = 1 - np.exp(-len(inliers) / 50)
    precision = np.exp(-2 * np.mean(distance**2) / limit_px**2)
    spread = np.mean(nearest <= max(size) / 8) if len(nearest) else 0.0
    return float((support * (len(inliers) / matches) * precision * spread) ** 0.25)


def _correlate(before: RGB, after: RGB) -> Alignment | None:
    """What is left where features fail (restyled or smooth pictures): the same frame, resized.

    The fine detail of both must correlate there, or after a small affine move (ECC: Evangelidis and
    Psarakis, PAMI 2008), or the pictures must be all but equal. Confidence is half the correlation.
    """
    target, source = _size(before), _size(after)
    size = fitted_size(target, CORRELATION_SIDE_PX)
    if abs(np.log(target[0] / target[1] * source[1] / source[0])) > 0.1:
        return None
    fixed, moving = (
        cv2.cvtColor(resize(picture, size), cv2.COLOR_RGB2GRAY).astype(np.float32)
        for picture in (before, after)
    )
    method, small, score = "correlation", np.eye(3), _correlation(fixed, moving)
    if np.abs(fixed - moving).mean() <= 1:
        score = max(score, LEAST_CORRELATION)
    elif min(size) < 32:
        return None  # too few pixels for a correlation to mean anything
    elif (moved := _ecc(fixed, moving)) is not None:
        warped = cv2.warpPerspective(moving, moved, size, borderMode=cv2.BORDER_REPLICATE)
        # A move has six numbers to please the score with, so it has to please it clearly.
        if (better := _correlation(fixed, warped)) > score + 0.05:
            method, small, score = "ecc", moved, better
    if score < LEAST_CORRELATION:
        return None
    homography = rescaled(small, size, source, size, target)
    polygon = overlap_polygon(homography, source, target)
    share = min(1.0, polygon_area(polygon) / (target[0] * target[1]))
    return Alignment(homography, method, 0, 0.0, 0.0, polygon, share, score / 2, True, "")


def _ecc(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> Floats | None:
    """The affine map moving → fixed of highest correlation near the identity, as (3, 3); None without one."""
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    start = np.eye(2, 3, dtype=np.float32)
    try:
        _, found = cv2.findTransformECC(
            _detail(fixed, 4.0), _detail(moving, 4.0), start, cv2.MOTION_AFFINE, criteria
        )
    except cv2.error:  # it did not converge
        return None
    back = np.vstack([np.asarray(found, np.float64), [0, 0, 1]])  # fixed → moving
    if not np.isfinite(back).all() or np.abs(back[:, :2] - np.eye(3)[:, :2]).max() > 0.25:
        return None
    return np.linalg.inv(back)


def _detail(grey: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    """Grey levels less their surroundings, at equal contrast everywhere."""
    high = grey - cv2.GaussianBlur(grey, (0, 0), sigma)
    return np.asarray(high / np.sqrt(cv2.GaussianBlur(high * high, (0, 0), sigma) + 4), np.float32)


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    a, b = _detail(one, 2.0).astype(np.float64), _detail(other, 2.0).astype(np.float64)
    # Where there is no detail, what is left is rounding, which correlates perfectly.
    return float((a * b).sum() / max(0.01 * a.size, float(np.sqrt((a * a).sum() * (b * b).sum()))))


def _rejected(source: Size, target: Size, reason: str) -> Alignment:
    return Alignment(resizing(source, target), "none", 0, 0.0, 0.0, np.empty((0, 2)), 0.0, 0.0, False, reason)
