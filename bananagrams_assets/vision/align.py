"""Where each pixel of an edited picture lies in its input.

Coarse to fine: SIFT features on small copies say roughly how the pictures lie; then the detail around a
grid of corners is tracked at the working size, which places the picture's corners to a few tenths of a
pixel of the full size. The model is the simplest that the tracks support, because an editor's output is
most often a resize or a crop, and a full homography fitted to the few places that an edit leaves swings at
the corners. Where a corner shows something else in the edited picture, its track means nothing; those that
show the same are believed first, and how far they leave the picture's own corners free to swing is part of
the confidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from bananagrams_assets.vision.images import RGB, fitted_size, resize
from bananagrams_assets.vision.transform_models import MODELS, choose, fitted, squared_distances, swing

SURE = 0.97
"""Confidence from which no costlier way to align is tried."""

FEW_FEATURES = 250
FEW_SHARE = 0.375
"""The first try: this many features, at this share of the working size (192 of 512 px)."""

COARSE_SHARE = 0.375
"""Of the working size, of the copies on which shapes alone are compared (192 of 512 px)."""
TONED_SIGMA = 4.0
"""Grey levels over which what became of them is smoothed."""

DETAIL_PX = 17
"""Side of the window in which grey levels are brought to equal mean and contrast."""
DETAIL_FLOOR = 6.0
"""Grey levels of contrast that count as noise: below them, detail fades instead of being raised."""
DETAIL_GAIN = 40.0

CELL_PX = 20
COARSE_CELL_PX = 12
"""One corner is tracked in each cell of this size, at the working size and on the coarse copies."""
WINDOW_PX = 15
UNLIKE = 0.6
"""Share of the detail in its window from which what differs at a tracked corner makes it another thing."""
MOSTLY = 0.3
"""Where a smaller share of all tracks agrees, many of them do by chance and pull at the fit."""
TRACKING = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.03)
"""At most 15 steps of a track, fewer where one is under 0.03 px."""
TRACK_PX = 1.0
"""Tracks further than this from the model, in px at the working size, do not count."""
DRIFT_PX = 4.0
"""As TRACK_PX, of the first fit, which starts from the features' rough one."""
COMPARED_PX = 16
"""Side of the cells in which detail is compared, at the working size."""

EQUAL_PX = 128
EQUAL_LEVELS = 1.0
EQUAL_CONFIDENCE = 0.1
"""Pictures that differ by less than this many levels in the mean, at this size, pass as equal."""

WEIGHTS = {"": -18.56, "inliers": 1.39, "ratio": 5.82, "swing": -1.69, "coarse": -2.31}
"""Of the confidence: the natural logarithm of the number of `inliers` among the tracks that were used, their
`ratio`, the logarithm of how far the corners may `swing`, and of how many times smaller than the working size
the copies were (`coarse`). How many features matched adds nothing."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How an edited picture lies on its input.

    `homography`: float64 (3, 3), edited px → input px. `method`: the model that was fitted, `resize`,
    `scale`, `affine` or `homography`; `equal`, a plain resize where the pictures show nothing but are all
    but equal; `none`. `inliers`, `inlier_ratio`: tracked corners that agree with it, and their share.
    `residual_px`: the root mean square distance, in input px, of those that the model was fitted to.
    `overlap`: float64 (N, 2), the known part of the input as a convex polygon; `overlap_share`: its share
    of the input, 0..1. `confidence`: 0..1, how likely every corner of the edited picture lies within 4 px
    of its true place on an input of 1024 px, see `confidence_of`. Where `accepted` is False, `reason` says
    why in words, `homography` is the plain resize, `overlap` is empty and `confidence` is 0.
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


class _View(NamedTuple):
    """One picture: its own size, and at the working size its grey levels and their detail, uint8 (H, W)."""

    full: Size
    size: Size
    grey: NDArray[np.uint8]
    detail: NDArray[np.uint8]


class _Start(NamedTuple):
    """A rough homography between working sizes, the matched features that agree with it, and whether the
    edited picture is the other's negative."""

    homography: Floats
    matches: int
    negative: bool


class Fit(NamedTuple):
    """One way to align: as in Alignment, and by the names of WEIGHTS the evidence of its confidence."""

    homography: Floats
    method: str
    inliers: int
    inlier_ratio: float
    residual_px: float
    evidence: dict[str, float]

    @property
    def confidence(self) -> float:
        return confidence_of(self.evidence)


def align(before: RGB, after: RGB, settings: AlignSettings) -> Alignment:
    """Align the edited picture `after` with its input `before`; never raises over what is in a picture.

    RootSIFT (Arandjelović and Zisserman, CVPR 2012), mutual nearest neighbours under Lowe's ratio
    (IJCV 2004), MAGSAC (Barath et al., CVPR 2019), corners (Shi and Tomasi, CVPR 1994) tracked by Lucas and
    Kanade's method (IJCAI 1981; in pyramids: Bouguet, Intel 2000), the model by GRIC (Torr, IJCV 2002).
    What a few features on small copies leave in doubt is tried again with more, by shapes alone, and in the
    edited picture's tones. The same pictures give the same result on any number of threads.
    """
    target, source = _size(before), _size(after)
    best: Fit | None = None
    reason = ""
    for found in attempts(before, after, settings):
        if isinstance(found, str):
            reason = found
        best = _surer(best, found)
        if best and best.confidence >= SURE:
            break
    if best is None:
        return _equal(before, after) or _rejected(source, target, reason)
    if best.confidence < settings.min_confidence:
        reason = f"the best fit has a confidence of {best.confidence:.2f}; {settings.min_confidence:g} needed"
        return _equal(before, after) or _rejected(source, target, reason)
    polygon = overlap_polygon(best.homography, source, target)
    share = min(1.0, polygon_area(polygon) / (target[0] * target[1]))
    if share < settings.min_overlap:
        reason = f"the pictures share {share:.0%} of the input; {settings.min_overlap:.0%} needed"
        return _rejected(source, target, reason)
    return Alignment(
        homography=best.homography,
        method=best.method,
        inliers=best.inliers,
        inlier_ratio=best.inlier_ratio,
        residual_px=best.residual_px,
        overlap=polygon,
        overlap_share=share,
        confidence=best.confidence,
        accepted=True,
        reason="",
    )


def attempts(before: RGB, after: RGB, settings: AlignSettings) -> Iterator[Fit | str]:
    """What each way to align finds, from the cheapest to the costliest, or in words why it finds nothing.

    The last three, for pictures drawn in another style, are silent where they fail: the reason is what the
    features had.
    """
    fixed, moving = (_view(image, settings.working_side_px) for image in (before, after))
    corners = _corners(fixed.detail, CELL_PX)
    best: Fit | None = None
    for start in _starts(fixed, moving, settings):
        found = start if isinstance(start, str) else _refined(fixed, moving, corners, start, settings)
        yield found
        best = _surer(best, found)
    # Shapes alone, on much smaller copies: what brush strokes and snow leave as it was.
    small = [_view(image, COARSE_SHARE * settings.working_side_px) for image in (before, after)]
    corners = _corners(small[0].detail, COARSE_CELL_PX)
    found = _refined(small[0], small[1], corners, _in_the_same_frame(*small), settings)
    if isinstance(found, Fit):
        yield found
    best = _surer(best, found)
    for (one, other), cell_px in ((small, COARSE_CELL_PX), ((fixed, moving), CELL_PX)):
        rough = best.homography if best else resizing(other.full, one.full)
        start = _Start(rescaled(rough, other.full, other.size, one.full, one.size), 0, False)
        toned = _toned(one, other, start.homography)
        found = _refined(toned, other, _corners(toned.detail, cell_px), start, settings)
        if isinstance(found, Fit):
            yield found
        best = _surer(best, found)


def _surer(best: Fit | None, found: Fit | str) -> Fit | None:
    if isinstance(found, str):
        return best
    return found if best is None or found.confidence > best.confidence else best


def _view(image: RGB, side_px: float) -> _View:
    full = _size(image)
    size = _working_size(full, side_px)
    grey = np.asarray(resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size), np.uint8)
    return _View(full, size, grey, _detail(grey))


def _toned(fixed: _View, moving: _View, homography: Floats) -> _View:
    """The input with each grey level as what it became on average, by a rough homography.

    The expectation of the joint histogram (the correlation ratio of Roche et al., MICCAI 1998): in a poster
    of four colours, an outline lies where the input crosses a level, not where it has an edge.
    """
    drawn = cv2.warpPerspective(moving.grey, homography, fixed.size)
    known = polygon_mask(overlap_polygon(homography, moving.size, fixed.size), fixed.size)
    grey = cv2.GaussianBlur(fixed.grey, (0, 0), 1)
    count, total = (
        cv2.GaussianBlur(
            np.bincount(grey[known], weights, 256)[None].astype(np.float64), (0, 0), TONED_SIGMA
        )[0]
        for weights in (None, drawn[known].astype(np.float64))
    )
    clear = count > 1
    if not clear.any():
        return fixed
    levels = np.interp(np.arange(256), np.flatnonzero(clear), total[clear] / count[clear])
    toned = np.rint(levels).astype(np.uint8)[grey]
    return _View(fixed.full, fixed.size, toned, _detail(toned))


def _size(image: RGB) -> Size:
    return image.shape[1], image.shape[0]


def _working_size(size: Size, side_px: float) -> Size:
    """Longest side `side_px`, but the shorter one at least a quarter of that: a panorama keeps features."""
    scale = min(1.0, max(side_px / max(size), side_px / 4 / min(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _detail(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey levels at equal mean and contrast around each pixel, about 128: the same in any tone."""
    level, window = grey.astype(np.float32), (DETAIL_PX, DETAIL_PX)
    high = level - cv2.blur(level, window)
    equal = high / cv2.sqrt(cv2.blur(high * high, window) + DETAIL_FLOOR**2)
    return np.asarray(cv2.addWeighted(equal, DETAIL_GAIN, equal, 0, 128, dtype=cv2.CV_8U), np.uint8)


def _starts(fixed: _View, moving: _View, settings: AlignSettings) -> Iterator[_Start | str]:
    """Rough homographies, or why there is none, from the cheapest way to the costliest."""
    side = settings.working_side_px
    yield _by_features(fixed, moving, FEW_SHARE * side, min(FEW_FEATURES, settings.features), settings)
    yield _in_the_same_frame(fixed, moving)
    yield _by_features(fixed, moving, side, settings.features, settings)


def _by_features(
    fixed: _View, moving: _View, side_px: float, most: int, settings: AlignSettings
) -> _Start | str:
    """By SIFT on copies with a longest side of `side_px`; where the picture fails, its negative."""
    small_fixed, small_moving = (_working_size(view.full, side_px) for view in (fixed, moving))
    points, descriptors = _features(resize(fixed.grey, small_fixed), most)
    moved, moved_descriptors = _features(resize(moving.grey, small_moving), most)
    needed = max(4, settings.min_inliers // 2)
    problem = ""
    for negative in (False, True):
        described = _negative(moved_descriptors) if negative else moved_descriptors
        pairs = _match(described, descriptors, settings.ratio)
        if len(pairs) < needed:
            problem = problem or f"only {len(pairs)} features match; {needed} needed"
            continue
        source, target = moved[pairs[:, 0]], points[pairs[:, 1]]
        start = _magsac(source, target, settings.ransac_px)
        if start is None:
            start = resizing(small_moving, small_fixed)
        chosen = choose(
            source, target, start, small_moving, small_fixed, settings.ransac_px, needed, settings
        )
        if isinstance(chosen, str):
            problem = problem or chosen
            continue
        _, small = chosen
        agree = squared_distances(small, source, target) <= settings.ransac_px**2
        rough = rescaled(small, small_moving, moving.size, small_fixed, fixed.size)
        return _Start(rough, int(agree.sum()), negative)
    return problem


def _in_the_same_frame(fixed: _View, moving: _View) -> _Start:
    """The plain resize: what is left where features fail, in restyled or smooth pictures."""
    homography = resizing(moving.size, fixed.size)
    drawn = resize(moving.detail, fixed.size)
    alike = _alike(fixed.detail, drawn, frame(fixed.size))
    return _Start(homography, 0, bool(len(alike)) and float(np.mean(alike)) < -0.1)


def _features(grey: NDArray[Any], most: int) -> tuple[Floats, NDArray[np.float32]]:
    """SIFT positions (N, 2) and RootSIFT descriptors (N, 128), of unit length."""
    sift = cv2.SIFT.create(nfeatures=most, contrastThreshold=0.02, sigma=1.3)
    keypoints, found = sift.detectAndCompute(grey, None)
    if found is None or len(keypoints) == 0:
        return np.empty((0, 2)), np.empty((0, 128), np.float32)
    descriptors = np.asarray(found, np.float32)
    descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7)
    return np.array([point.pt for point in keypoints], np.float64), np.sqrt(descriptors)


def _negative(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The descriptors of the negative: all gradients turn by half a circle, and the patch with them."""
    return np.ascontiguousarray(descriptors.reshape(-1, 4, 4, 8)[:, ::-1, ::-1].reshape(-1, 128))


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


def _magsac(source: Floats, target: Floats, limit_px: float) -> Floats | None:
    cv2.setRNGSeed(0)
    found, _ = cv2.findHomography(source, target, cv2.USAC_MAGSAC, limit_px, maxIters=5000, confidence=0.9999)
    return None if found is None else normalised(np.asarray(found, np.float64))


def _corners(detail: NDArray[np.uint8], cell_px: int) -> Floats:
    """(N, 2) x and y of the strongest corner in each cell, so that they spread over the picture."""
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
    clear = blocks[np.arange(len(blocks)), strongest] > 1e-3 * strength.max()
    return np.asarray(np.stack([column * cell + x, row * cell + y], axis=1)[clear], np.float64)


def _margin(size: Size) -> int:
    """Width in px along a frame in which nothing is tracked: where the other picture goes on, detail there
    has other surroundings."""
    return min(WINDOW_PX // 2, min(size) // 8)


class _Tracks(NamedTuple):
    """Corners tracked from the input into the edited picture: float64 (N, 2) px at the working sizes, and
    which of them show the same thing in both pictures, bool (N,)."""

    source: Floats
    target: Floats
    same: NDArray[np.bool_]


def _refined(
    fixed: _View, moving: _View, corners: Floats, start: _Start, settings: AlignSettings
) -> Fit | str:
    """The start refined by tracking `corners` of the input in the edited picture, drawn through it.

    Once more from where that leads, if it leads further than a pixel. Returns why, where it fails.
    """
    homography = start.homography
    detail = 255 - moving.detail if start.negative else moving.detail
    outline = frame(moving.size)
    best: Fit | None = None
    for levels in (2 if start.matches else 4, 1):
        tracks = _tracked(fixed, detail, homography, corners, levels, settings)
        if isinstance(tracks, str):
            return best or tracks
        best, problem = None, ""
        # Where most is replaced, few tracks mean anything; where all is redrawn, few corners look the same.
        for used in (tracks.same, np.full(len(tracks.same), True)):
            found = _by_tracks(fixed, moving, homography, tracks, used, settings)
            if isinstance(found, str):
                problem = found
            elif best is None or (found.inlier_ratio > MOSTLY and found.confidence > best.confidence):
                best = found
            if best and best.confidence >= SURE:
                break
        if best is None:
            return problem
        better = rescaled(best.homography, moving.full, moving.size, fixed.full, fixed.size)
        led = float(np.abs(project(better, outline) - project(homography, outline)).max())
        homography = better
        if led < 1:
            break
    return best or problem


def _tracked(
    fixed: _View,
    detail: NDArray[np.uint8],
    homography: Floats,
    corners: Floats,
    levels: int,
    settings: AlignSettings,
) -> _Tracks | str:
    """Where `corners` of the input lie in the edited picture's `detail`, by a rough homography of theirs."""
    edge = frame((detail.shape[1], detail.shape[0]))
    back = np.asarray(np.linalg.inv(homography), np.float64)
    origin = project(back, corners)
    margin = _margin((detail.shape[1], detail.shape[0]))
    at = corners[((origin > edge[0] + margin) & (origin < edge[2] - margin)).all(axis=1)]
    if len(at) < settings.min_inliers:
        return f"only {len(at)} corners to track; {settings.min_inliers} needed"
    points = at.astype(np.float32)
    found, status, unlike = cv2.calcOpticalFlowPyrLK(
        fixed.detail,
        _drawn(detail, homography, fixed.size),
        points,
        points.copy(),
        winSize=(WINDOW_PX, WINDOW_PX),
        maxLevel=levels,
        criteria=TRACKING,
    )
    kept = np.asarray(status).ravel() > 0
    if kept.sum() < settings.min_inliers:
        return f"only {kept.sum()} corners found again; {settings.min_inliers} needed"
    contrast = cv2.blur(cv2.absdiff(fixed.detail, np.full_like(fixed.detail, 128)), (WINDOW_PX, WINDOW_PX))
    columns, rows = at[kept].astype(int).T
    same = np.asarray(unlike).ravel()[kept] <= UNLIKE * contrast[rows, columns]
    return _Tracks(project(back, np.asarray(found, np.float64)[kept]), at[kept], same)


def _by_tracks(
    fixed: _View,
    moving: _View,
    start: Floats,
    tracks: _Tracks,
    used: NDArray[np.bool_],
    settings: AlignSettings,
) -> Fit | str:
    """The model that fits the `used` tracks, bool (N,), or why there is none."""
    needed = settings.min_inliers
    source, target = tracks.source[used], tracks.target[used]
    if len(source) < needed:
        return f"only {len(source)} corners look the same; {needed} needed"
    rough = fitted(start, source, target, MODELS["homography"], DRIFT_PX)
    chosen = choose(source, target, rough, moving.size, fixed.size, TRACK_PX, needed, settings)
    if isinstance(chosen, str):
        return chosen
    method, homography = chosen
    squared = squared_distances(homography, tracks.source, tracks.target)
    agree = squared <= TRACK_PX**2
    inliers = agree & used
    residual_px = float(np.sqrt(squared[inliers].mean()))
    evidence = {
        "inliers": float(np.log(inliers.sum())),
        "ratio": float(inliers.sum() / used.sum()),
        "swing": float(np.log(swing(homography, tracks.source[inliers], frame(moving.size), residual_px))),
        "coarse": float(np.log(max(_working_size(fixed.full, settings.working_side_px)) / max(fixed.size))),
    }
    return Fit(
        homography=rescaled(homography, moving.size, moving.full, fixed.size, fixed.full),
        method=method,
        inliers=int(agree.sum()),
        inlier_ratio=float(agree.mean()),
        residual_px=residual_px * fixed.full[0] / fixed.size[0],
        evidence=evidence,
    )


def confidence_of(evidence: dict[str, float]) -> float:
    """How likely every corner lies within 4 px of its true place on an input of 1024 px, 0..1.

    Logistic regression on made pairs, most of them hard (up to nine tenths replaced, cropped, restyled,
    without texture, unrelated); `align_benchmark refit` fits the weights and `accuracy` judges them on
    other photographs.
    """
    total = WEIGHTS[""] + sum(WEIGHTS[name] * value for name, value in evidence.items())
    return float(1 / (1 + np.exp(-total)))


def _drawn(detail: NDArray[np.uint8], homography: Floats, size: Size) -> NDArray[np.uint8]:
    """The edited picture's detail as it lies on the input at the working size; 128, no detail, outside."""
    drawn = cv2.warpPerspective(detail, homography, size, borderMode=cv2.BORDER_CONSTANT, borderValue=128)
    return np.asarray(drawn, np.uint8)


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8], overlap: Floats) -> Floats:
    """The correlation of two pictures' detail in each cell of the overlap that has some."""
    height, width = one.shape
    # At half size, because finer detail is what editors make anew.
    half, cells = ((max(1, width // side), max(1, height // side)) for side in (2, COMPARED_PX))
    inside = polygon_mask(project(resizing((width, height), half), overlap), half).astype(np.float32)
    a, b = ((resize(image, half).astype(np.float32) - 128) * inside for image in (one, other))
    both, first, second, share = (resize(result, cells) for result in (a * b, a * a, b * b, inside))
    clear = (share > 0.5) & (first > 60 * share)
    return np.asarray((both / cv2.sqrt(first * second + 1))[clear], np.float64)


def _equal(before: RGB, after: RGB) -> Alignment | None:
    """Pictures that show nothing to hold on to (one colour, a gradient) but are all but equal."""
    target, source = _size(before), _size(after)
    size = fitted_size(target, EQUAL_PX)
    if abs(np.log(target[0] / target[1] * source[1] / source[0])) > 0.1:
        return None
    if cv2.absdiff(*(resize(image, size) for image in (before, after))).mean() > EQUAL_LEVELS:
        return None
    homography = resizing(source, target)
    return Alignment(homography, "equal", 0, 0.0, 0.0, frame(target), 1.0, EQUAL_CONFIDENCE, True, "")


def _rejected(source: Size, target: Size, reason: str) -> Alignment:
    return Alignment(resizing(source, target), "none", 0, 0.0, 0.0, np.empty((0, 2)), 0.0, 0.0, False, reason)
