"""Align an edited image with its input.

Registration is coarse to fine. SIFT features on small copies give a rough homography. Then the detail around
a grid of corners is tracked at the working size, which places the image's corners to a few tenths of a pixel
of the full size. The model is the simplest that the tracks support, because most editor outputs are a resize
or a crop, and a full homography fitted to the few places that an edit leaves is unstable at the corners.
Tracks at corners with different content are meaningless, so those with the same content are fitted first.
The uncertainty of the image's corners is part of the confidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from ..config import AlignSettings
from .features import Start, make_view, match_grey_levels, rough_starts, start_from_resize
from .geometry import (
    Floats,
    Size,
    frame_corners,
    image_size,
    overlap_polygon,
    polygon_area,
    rescale_homography,
    resize_homography,
)
from .images import RGB, fitted_size, resize
from .tracking import SUFFICIENT_CONFIDENCE, Fit, refine, strongest_corners

COARSE_SHARE = 0.375
"""Size of the coarse copies, which show only shapes, as a share of the working size (192 of 512 px)."""

CELL_PX = 20
COARSE_CELL_PX = 12
"""Grid cells for corners at the working size and on the coarse copies: one corner is tracked in each."""

EQUAL_PX = 128
EQUAL_LEVELS = 1.0
EQUAL_CONFIDENCE = 0.1
"""Images whose mean difference at this size is at most this many grey levels are accepted as equal."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Position of an edited image on its input.

    `homography`: float64 (3, 3), edited px → input px. `method`: the fitted model (`resize`, `scale`,
    `affine`, `homography`), `equal` for a plain resize of nearly equal images without trackable content, or
    `none`.
    `inliers`, `inlier_ratio`: number and share of tracked corners that agree with the homography.
    `residual_px`: root mean square distance, in input px, of the inliers that the model was fitted to.
    `overlap`: float64 (N, 2), the valid part of the input as a convex polygon. `overlap_share`: its share of
    the input, 0..1. `confidence`: 0..1, see `tracking.confidence_of`. If `accepted` is False, `reason` states
    why, `homography` is the plain resize, `overlap` is empty and `confidence` is 0.
    """

    homography: Floats
    method: str
    inliers: int
    inlier_ratio: float
    residual_px: float
    overlap: Floats
    overlap_share: float
    confidence: float
    accepted: bool = True
    reason: str = ""


def align(before: RGB, after: RGB, settings: AlignSettings) -> Alignment:
    """Align the edited image `after` with its input `before`; no image content raises an error.

    RootSIFT, mutual nearest neighbours, Lowe's ratio test and MAGSAC (see `features`), tracked corners (see
    `tracking`) and a model selected by GRIC (see `transform_models`). If a few features on small copies do
    not suffice, `candidate_fits` tries more features, shapes alone, and the edited image's tones. The result
    does not depend on the number of threads.
    """
    target, source = image_size(before), image_size(after)
    best: Fit | None = None
    reason = ""
    for candidate in candidate_fits(before, after, settings):
        if isinstance(candidate, str):
            reason = candidate
        best = _more_confident(best, candidate)
        if best and best.confidence >= SUFFICIENT_CONFIDENCE:
            break
    if best and best.confidence < settings.min_confidence:
        reason = f"the best fit has a confidence of {best.confidence:.2f}; {settings.min_confidence:g} needed"
        best = None
    if best is None:
        return _align_equal(before, after) or _rejected(source, target, reason)
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
    )


def candidate_fits(before: RGB, after: RGB, settings: AlignSettings) -> Iterator[Fit | str]:
    """Yield the fit of each method, from the cheapest to the costliest, or why it failed.

    The last three methods, for stylised images, yield nothing if they fail, so the last reason is that of
    the features.
    """
    fixed, moving = (make_view(image, settings.working_side_px) for image in (before, after))
    corners = strongest_corners(fixed.detail, CELL_PX)
    best: Fit | None = None
    for start in rough_starts(fixed, moving, settings):
        fit = start if isinstance(start, str) else refine(fixed, moving, corners, start, settings)
        yield fit
        best = _more_confident(best, fit)
    # Shapes on much smaller copies survive brush strokes and snow.
    coarse = [make_view(image, COARSE_SHARE * settings.working_side_px) for image in (before, after)]
    corners = strongest_corners(coarse[0].detail, COARSE_CELL_PX)
    fit = refine(coarse[0], coarse[1], corners, start_from_resize(*coarse), settings)
    if isinstance(fit, Fit):
        yield fit
    best = _more_confident(best, fit)
    for (target, source), cell_px in ((coarse, COARSE_CELL_PX), ((fixed, moving), CELL_PX)):
        rough = best.homography if best else resize_homography(source.full_size, target.full_size)
        rough = rescale_homography(rough, source.full_size, source.size, target.full_size, target.size)
        matched = match_grey_levels(target, source, rough)
        corners = strongest_corners(matched.detail, cell_px)
        fit = refine(matched, source, corners, Start(rough, 0, False), settings)
        if isinstance(fit, Fit):
            yield fit
        best = _more_confident(best, fit)


def _more_confident(best: Fit | None, candidate: Fit | str) -> Fit | None:
    if isinstance(candidate, str):
        return best
    return candidate if best is None or candidate.confidence > best.confidence else best


def _align_equal(before: RGB, after: RGB) -> Alignment | None:
    """Accept nearly equal images without trackable content (one colour, a gradient) as a plain resize."""
    target, source = image_size(before), image_size(after)
    size = fitted_size(target, EQUAL_PX)
    if abs(np.log(target[0] / target[1] * source[1] / source[0])) > 0.1:
        return None
    if cv2.absdiff(*(resize(image, size) for image in (before, after))).mean() > EQUAL_LEVELS:
        return None
    return Alignment(
        resize_homography(source, target), "equal", 0, 0.0, 0.0, frame_corners(target), 1.0, EQUAL_CONFIDENCE
    )


def _rejected(source: Size, target: Size, reason: str) -> Alignment:
    homography = resize_homography(source, target)
    return Alignment(homography, "none", 0, 0.0, 0.0, np.empty((0, 2)), 0.0, 0.0, False, reason)
