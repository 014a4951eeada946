"""The mask of an edit: where an aligned pair differs by more than the editor's redrawing explains.

`edit_mask` is the pipeline; `mask_refinement` has its steps. Widths in px are at the working size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import MaskSettings
from .difference import Difference, lab_difference, noise_level
from .geometry import (
    Floats,
    Size,
    image_size,
    polygon_mask,
    project,
    rescale_homography,
    resize_homography,
    warp,
)
from .images import RGB, Mask, fitted_size, resize
from .mask_refinement import (
    clean_mask,
    enlarge_mask,
    extend_into_border,
    hysteresis,
    morph,
    refine_outline,
    remove_small_components,
)
from .tone import Tone, match_tone

CONFIDENCE_WEIGHTS = np.array([3.1, 0.56, 2.58, -0.12, -1.63, -0.11, 0.25])
CONFIDENCE_BIAS = -2.7
"""Weights of `mask_evidence`, in its order. `bananagrams_tests/benchmarks/mask_confidence.py` fits them."""

GLOBAL_SHIFT = 14.0
"""Tone shift in dE from which the edit is global. Redrawing alone shifts by 1 to 8."""
GLOBAL_NOISE = 2.4
"""Noise in dE from which the whole image counts as redrawn. Redrawing alone leaves 0.3 to 1.3."""
SCOPE_LIMITS = {"global": 0.26, "local": 1.6, "geometric": 1.6}
"""Global evidence that makes a mask global, by the scope of the instruction; 1 for other scopes."""


@dataclass(frozen=True, eq=False)
class EditMask:
    """The pixels of the input that an edit changed.

    `mask`: bool (H, W). `verdict`: `local`, `global` (the mask is then the whole overlap) or `nothing`.
    `area`: the mask's share of the overlap, 0..1. `components`: number of connected components.
    `confidence`: 0..1; of a local mask it is the expected IoU (`local_confidence`). `noise`: typical dE of
    unchanged pixels. `difference`: float32 (H, W), dE after tone matching, 0 at invalid pixels.
    """

    mask: Mask
    verdict: str
    is_global: bool
    area: float
    components: int
    confidence: float
    noise: float
    difference: Difference


class _AlignedPair(NamedTuple):
    """The pair at the working size: the input, the edited image with matched tone, valid pixels and dE."""

    before: RGB
    tone: Tone
    valid: Mask
    difference: Difference


def edit_mask(
    before: RGB, after: RGB, homography: Floats, overlap: Floats, settings: MaskSettings, scope: str
) -> EditMask:
    """Compute the mask of the edit that turned `before` into `after`, uint8 (H, W, 3) of any two sizes.

    `homography` and `overlap` are those of the Alignment. `scope` is that of the instruction (`local`,
    `global`, `geometric`, or empty if unknown); it decides the verdict only where the pair is ambiguous.
    """
    size = image_size(before)
    work = fitted_size(size, settings.working_side_px or max(size))
    pair = _match_at_working_size(before, after, homography, overlap, work, settings)
    difference, valid = pair.difference, pair.valid
    changed, noise, low = _changed_pixels(difference, pair.tone.unchanged, settings)
    cleaned = clean_mask(changed, difference, low, valid, pair.before, pair.tone.image, settings)
    work_mask, components = remove_small_components(cleaned, settings.smallest_component)

    full_difference = difference
    if work != size:
        full_difference = np.asarray(cv2.resize(difference, size, interpolation=cv2.INTER_LINEAR))
    area = float(work_mask[valid].mean()) if valid.any() else 0.0
    # Evidence of a global edit: 1 is the limit without knowledge of the scope.
    evidence = max(pair.tone.shift / GLOBAL_SHIFT, noise / GLOBAL_NOISE, area / settings.global_area)
    evidence /= SCOPE_LIMITS.get(scope, 1.0)
    if evidence >= 1 and valid.any():
        whole, confidence = polygon_mask(overlap, size), evidence / (1 + evidence)
        return EditMask(whole, "global", True, 1.0, 1, confidence, noise, full_difference)
    if not components:
        quiet = float((difference[valid] < low / 2).mean()) if valid.any() else 0.0
        empty, confidence = np.zeros((size[1], size[0]), bool), quiet * (1.0 if scope == "geometric" else 0.2)
        return EditMask(empty, "nothing", False, area, components, confidence, noise, full_difference)

    local_evidence = mask_evidence(work_mask, valid, difference, low, noise, components)
    confidence = local_confidence(local_evidence) * (1 - evidence**4 / 2)
    border = polygon_mask(project(resize_homography(size, work), overlap), work) & ~valid
    mask = extend_into_border(work_mask, valid, border)
    if work != size:
        mask = enlarge_mask(mask, difference, low, size)
        mask = refine_outline(mask, before, after, homography, pair.tone, low)
    return EditMask(mask, "local", False, area, components, confidence, noise, full_difference)


def _match_at_working_size(
    before: RGB, after: RGB, homography: Floats, overlap: Floats, work: Size, settings: MaskSettings
) -> _AlignedPair:
    """Warp `after` onto `before` at the working size, match its tone and measure the difference."""
    size, source = image_size(before), image_size(after)
    small_before = before if work == size else resize(before, work)
    warped, _ = warp(after, rescale_homography(homography, source, source, size, work), work)
    valid = _valid_area(overlap, size, work, settings.border_px)
    tone = match_tone(small_before, warped, valid)
    difference = lab_difference(small_before, tone.image, settings.blur_kernel_px)
    difference[~valid] = 0
    return _AlignedPair(small_before, tone, valid, difference)


def _valid_area(overlap: Floats, size: Size, work: Size, border_px: int) -> Mask:
    """Rasterise the overlap at the working size, minus a border along its outline inside the input."""
    valid = polygon_mask(project(resize_homography(size, work), overlap), work)
    if border_px == 0 or valid.all():
        return valid
    return morph(valid, cv2.MORPH_ERODE, np.ones((2 * border_px + 1, 2 * border_px + 1), np.uint8))


def _changed_pixels(
    difference: Difference, unchanged: Mask, settings: MaskSettings
) -> tuple[Mask, float, float]:
    """Threshold the difference with hysteresis, relative to the noise of the unchanged pixels.

    Return the mask, the noise and the low threshold (dE). Part of a large edit may pass for unchanged and
    raise the noise level. If the noise determines the low threshold, it is therefore measured a second time,
    away from the pixels found the first time.
    """

    def threshold(noise: float) -> tuple[Mask, float]:
        low = max(settings.threshold_low, settings.noise_low * noise)
        return hysteresis(difference, low, max(settings.threshold_high, settings.noise_high * noise)), low

    noise = noise_level(difference, unchanged)
    changed, low = threshold(noise)
    if settings.noise_low * noise > settings.threshold_low:
        near = morph(changed, cv2.MORPH_DILATE, np.ones((9, 9), np.uint8))
        noise = min(noise, noise_level(difference, unchanged & ~near))
        changed, low = threshold(noise)
    return changed, noise, low


def mask_evidence(
    mask: Mask, valid: Mask, difference: Difference, low: float, noise: float, components: int
) -> NDArray[np.float64]:
    """Return the seven inputs (7,) of `local_confidence`.

    1. solidity: share of the mask that remains after erosion by a pixel;
    2. separation: log2 of the 20th percentile of the mask's dE over the low threshold;
    3. quiet: share of the other valid pixels under half of the low threshold;
    4. parts: log2 of the number of components;
    5. contact: the mask's share of the outermost valid pixels;
    6. noise: dE, at most 4;
    7. size: log2 of the mask's share of the overlap.
    """
    kernel = np.ones((3, 3), np.uint8)
    rim = valid & (cv2.erode(valid.astype(np.uint8), kernel, borderValue=0) == 0)
    rest = valid & ~mask
    return np.array(
        [
            cv2.erode(mask.astype(np.uint8), kernel).sum() / mask.sum(),
            np.log2(max(float(np.percentile(difference[mask], 20)) / low, 1e-3)),
            (difference[rest] < low / 2).mean() if rest.any() else 0.0,
            np.log2(components),
            mask[rim].mean() if rim.any() else 0.0,
            min(noise, 4.0),
            np.log2(mask.sum() / valid.sum()),
        ]
    )


def local_confidence(evidence: NDArray[np.float64]) -> float:
    """Return the expected IoU of a local mask, 0..1, by a logistic model fitted to made pairs."""
    return float(1 / (1 + np.exp(-(CONFIDENCE_BIAS + CONFIDENCE_WEIGHTS @ evidence))))
