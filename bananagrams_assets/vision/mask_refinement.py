"""The steps that turn a colour difference into a clean mask.

Widths in px are at the working size. Masks are bool (H, W), differences float32 (H, W) in dE.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..config import MaskSettings
from .difference import LAB_WEIGHTS, Difference, lab_8bit, lab_difference
from .geometry import Floats, Size, warp
from .images import RGB, Mask
from .tone import Tone, apply_tone

PATCH_PX = 5
PATCH_SHARE = 0.6
"""A patch of this width that exceeds this share of the high threshold everywhere also starts a component."""

LEAK_PX = 31
LEAK_SHARE = 0.08
"""Pixels below this share of the largest difference in this window are leakage from there, for example a
one-coloured sign that is redrawn a little brighter around new letters."""

LINE_PX = 9
FAINT_SHARE = 0.7
"""A component thinner than LINE_PX is a line. It is faint if it is below this share of the mask's median."""

GAP_SHARE = 0.01
GAP_SURROUNDINGS_PX = 61
GAP_DENSITY = 0.6
"""A gap under GAP_SHARE of the image is filled where its surroundings are mask to more than GAP_DENSITY."""

LARGE_SHARE = 0.2
"""Masks over this share of the overlap, mostly backgrounds, are extended by regions of lost detail."""

FINE_DETAIL_PX = 9
LOST_DETAIL_PX = 21
LOST_DETAIL_LEVELS = 1.5
LOST_DETAIL_SHARE = 0.25
"""Detail is what the window FINE_DETAIL_PX removes. In windows of LOST_DETAIL_PX it counts from
LOST_DETAIL_LEVELS grey levels and is lost if less than LOST_DETAIL_SHARE remains. Redrawing alone leaves 0.7
or more."""

OUTLINE_PX = 3
OUTLINE_SHARE = 0.28
FULL_SIZE_OUTLINE_SHARE = 0.36
"""Shares of the largest difference around a pixel at which the outline runs: at the working size, where blur
widens it, and at the input's size."""
_OUTLINE_KERNEL = np.ones((2 * OUTLINE_PX + 1, 2 * OUTLINE_PX + 1), np.uint8)
FULL_SIZE_REACH_PX = 2
STROKE_REACHES = 4
LINE_REACHES = 20
"""Multiples of the reach that bound the width of a stroke and the height of a line of text: 8 and 40 px."""
FULL_SIZE_MAX_PIXELS = 250_000
"""Largest bounding box of a mask to refine at the input's size. Larger ones gain less than they cost."""

SWAP_PX = 5
SWAP_SHARE = 0.35
"""Content only changed places if the mean colour changed by less than this share of the mask's mean dE."""
BACKGROUND_SHARE = 0.15
"""Pixels closer to the colour around the mask than this share of its mean dE are background."""


def hysteresis(difference: Difference, low: float, high: float) -> Mask:
    """Return pixels above `low` that are connected (8 neighbours) to a strong pixel or patch.

    A strong pixel is above `high` (Canny, PAMI 1986). A patch may be a little fainter, because movement
    leaves only thin differences along edges.
    """
    patch = morph(difference > PATCH_SHARE * high, cv2.MORPH_OPEN, _disc(PATCH_PX))
    return _components_touching(difference > low, (difference > high) | patch)


def clean_mask(
    changed: Mask,
    difference: Difference,
    low: float,
    valid: Mask,
    before: RGB,
    after: RGB,
    settings: MaskSettings,
) -> Mask:
    """Turn changed pixels into a mask with a tight outline, without artefacts and without gaps.

    `before` and `after` are the aligned pair at the working size, with equal tone.
    """
    tight = tighten_outline(remove_leakage(changed, difference), difference)
    smooth = open_and_close(tight, difference > low / 2, settings.open_px, settings.close_px)
    mask = remove_faint_lines(smooth, difference)
    if mask.sum() > LARGE_SHARE * valid.sum():
        mask = add_touching_components(mask, lost_detail(before, after) & valid)
    return fill_gaps(mask)


def remove_leakage(mask: Mask, difference: Difference) -> Mask:
    """Remove pixels far below the largest difference around them."""
    around = cv2.dilate(difference, np.ones((LEAK_PX, LEAK_PX), np.uint8))
    return np.asarray(mask & (difference >= LEAK_SHARE * around))


def tighten_outline(mask: Mask, difference: Difference) -> Mask:
    """Remove pixels within 3 px of the outline that are under 0.28 of the largest difference around them.

    Blur widens an edit. Its middle is at half of the difference inside, but its visible end is further out.
    """
    inner = morph(mask, cv2.MORPH_ERODE, _OUTLINE_KERNEL)
    strong = difference >= OUTLINE_SHARE * cv2.dilate(difference, _OUTLINE_KERNEL)
    return np.asarray(mask & (inner | strong))


def open_and_close(mask: Mask, above_noise: Mask, open_px: int, close_px: int) -> Mask:
    """Open, then close; closing only fills pixels above the noise, so the inside of letters stays open."""
    if open_px > 1:
        mask = morph(mask, cv2.MORPH_OPEN, _disc(open_px))
    if close_px > 1:
        mask = mask | (morph(mask, cv2.MORPH_CLOSE, _disc(close_px)) & above_noise)
    return mask


def remove_faint_lines(mask: Mask, difference: Difference) -> Mask:
    """Remove components (8 neighbours) that are thin and nowhere as strong as most of the mask.

    Sharpening and movement leave such lines along edges. Letters are thin, but of similar strength.
    """
    values = difference[mask]
    if not values.size:
        return mask
    subsample = values[:: max(1, values.size // 10_000)]
    thick = morph(mask, cv2.MORPH_OPEN, np.ones((LINE_PX, LINE_PX), np.uint8))
    strong = mask & (difference >= FAINT_SHARE * np.median(subsample))
    return _components_touching(mask, thick | strong)


def add_touching_components(mask: Mask, more: Mask) -> Mask:
    """Add the components (8 neighbours) of `more` that touch the mask."""
    return _components_touching(mask | more, mask)


def lost_detail(before: RGB, after: RGB) -> Mask:
    """Return where `after` lost the detail of `before`; aligned images of equal tone, uint8 (H, W, 3).

    A region that is blurred or painted over may keep its colour. A window beside a lost outline shows less
    detail too, so the result is eroded by half a window.
    """
    energies = []
    for image in (before, after):
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1).astype(np.float32)
        fine = grey - cv2.blur(grey, (FINE_DETAIL_PX, FINE_DETAIL_PX))
        energies.append(cv2.blur(fine * fine, (LOST_DETAIL_PX, LOST_DETAIL_PX)))
    energy_before, energy_after = energies
    lost = (energy_before > LOST_DETAIL_LEVELS**2) & (energy_after < LOST_DETAIL_SHARE**2 * energy_before)
    return morph(lost, cv2.MORPH_ERODE, np.ones((LOST_DETAIL_PX, LOST_DETAIL_PX), np.uint8))


def fill_gaps(mask: Mask) -> Mask:
    """Fill small enclosed gaps (4 neighbours) where most of the surroundings is mask.

    Some pixels of a large edit, such as a blurred background, look unchanged by chance. The inside of
    letters has no such surroundings.
    """
    around = cv2.blur(mask.astype(np.uint8) * 255, (GAP_SURROUNDINGS_PX, GAP_SURROUNDINGS_PX))
    dense = (around > 255 * GAP_DENSITY) & ~mask
    if not dense.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < GAP_SHARE * mask.size
    return np.asarray(mask | (small.take(np.asarray(labels)) & dense))


def remove_small_components(mask: Mask, min_share: float) -> tuple[Mask, int]:
    """Remove components (8 neighbours) under a share of the image; also return the number that remain."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_share * mask.size
    keep[0] = False
    return keep.take(np.asarray(labels)), int(keep.sum())


def extend_into_border(mask: Mask, valid: Mask, border: Mask) -> Mask:
    """Give each pixel of the overlap's ignored border the value of the nearest valid pixel."""
    if not border.any() or not valid.any():
        return mask
    _, nearest = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    edited = np.zeros(int(nearest.max()) + 1, bool)
    edited[nearest[valid]] = mask[valid]
    return np.where(border, edited.take(np.asarray(nearest)), mask)


def enlarge_mask(mask: Mask, difference: Difference, low: float, size: Size) -> Mask:
    """Enlarge a mask to (width, height) with its outline where the enlarged difference crosses its level.

    The distance of each pixel from that level is interpolated, which avoids the steps of the small mask.
    """
    if not mask.any():
        return np.zeros((size[1], size[0]), bool)
    margin = difference - np.maximum(OUTLINE_SHARE * cv2.dilate(difference, _OUTLINE_KERNEL), low)
    signed = np.where(mask, np.clip(margin, low / 4, 2 * low), np.clip(margin, -2 * low, -low / 4))
    large = cv2.resize(signed.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 0)


def refine_outline(mask: Mask, before: RGB, after: RGB, homography: Floats, tone: Tone, low: float) -> Mask:
    """Refine the outline of a mask (H, W) with the pixels of the input's own size: thin strokes stay thin.

    Near the outline and within `thin_strokes`, a pixel is in the mask if its unblurred difference exceeds a
    share of the largest one around it. `homography` is that of the full-size images; `tone` is that of the
    working size. Masks with a large bounding box are returned as they are.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask
    (height, width), small_width = mask.shape, tone.light_field.shape[1]
    reach = max(1, round(FULL_SIZE_REACH_PX * width / small_width))
    top, bottom = max(0, int(rows[0]) - 3 * reach), min(height, int(rows[-1]) + 1 + 3 * reach)
    left, right = max(0, int(columns[0]) - 3 * reach), min(width, int(columns[-1]) + 1 + 3 * reach)
    if (bottom - top) * (right - left) > FULL_SIZE_MAX_PIXELS:
        return mask
    box = slice(top, bottom), slice(left, right)
    warped = _warp_box(after, homography, tone, box, (height, width))
    difference = lab_difference(np.ascontiguousarray(before[box]), warped, blur_px=1)
    coarse, near = mask[box], _disc(2 * reach + 1)
    band = morph(coarse, cv2.MORPH_DILATE, near) & ~morph(coarse, cv2.MORPH_ERODE, near)
    around = cv2.dilate(difference, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    distinct = difference > np.maximum(FULL_SIZE_OUTLINE_SHARE * around, low)
    # Colour bleeds from letters into the gaps between them, because JPEG halves its resolution. Letters are
    # therefore refined throughout.
    band |= thin_strokes(coarse, distinct, STROKE_REACHES * reach + 1, LINE_REACHES * reach)
    result = mask.copy()
    result[box] = close_swap_gaps(np.where(band, distinct, coarse), before[box], warped)
    return result


def _warp_box(
    after: RGB, homography: Floats, tone: Tone, box: tuple[slice, slice], shape: tuple[int, ...]
) -> RGB:
    """Warp `after` onto a box of the input, an image of `shape` (H, W), and match its tone."""
    (height, width), (small_height, small_width) = shape, tone.light_field.shape[:2]
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    to_box = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float64) @ homography
    warped, _ = warp(after, to_box, (right - left, bottom - top))
    light = tone.light_field[
        top * small_height // height : -(-bottom * small_height // height),
        left * small_width // width : -(-right * small_width // width),
    ]
    light = np.asarray(cv2.resize(light, (right - left, bottom - top)), np.int16)
    return apply_tone(warped, tone.lookup, tone.channel_mix, light)


def thin_strokes(mask: Mask, distinct: Mask, width_px: int, height_px: int) -> Mask:
    """Return the components (8 neighbours) of a mask that are small letters and lines.

    Their `distinct` pixels are nowhere as thick as `width_px`, and one side of their bounding box is at most
    `height_px`.
    """
    thick = morph(distinct & mask, cv2.MORPH_OPEN, _disc(width_px))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    thin = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].min(axis=1) <= height_px
    thin[np.unique(labels[thick])] = False
    return np.asarray(thin.take(np.asarray(labels)) & mask)


def close_swap_gaps(mask: Mask, before: RGB, after: RGB) -> Mask:
    """Close gaps under SWAP_PX in a mask (H, W) where content only changed places.

    An object that moved or turned, or a letter that replaces a letter, partly covers its old place. There
    nothing differs, yet it belongs to the edit. In this case the mask's mean colour is similar in both
    images, uint8 (H, W, 3). Gaps with the colour of the surroundings stay open.
    """
    gaps = morph(mask, cv2.MORPH_CLOSE, _disc(SWAP_PX)) & ~mask
    surroundings = ~morph(mask, cv2.MORPH_DILATE, _disc(2 * SWAP_PX - 1))
    if not gaps.any() or not surroundings.any():
        return mask
    units = np.sqrt(LAB_WEIGHTS[0])
    one, other = (lab_8bit(image, 1) * units for image in (before, after))
    change = one[mask] - other[mask]
    mean_change = float(np.linalg.norm(change, axis=1).mean())
    if np.linalg.norm(change.mean(axis=0)) > SWAP_SHARE * mean_change:
        return mask
    background = np.median(one[surroundings], axis=0)
    result = mask.copy()
    result[gaps] = np.linalg.norm(one[gaps] - background, axis=1) > BACKGROUND_SHARE * mean_change
    return result


def _components_touching(mask: Mask, seeds: Mask) -> Mask:
    """Return the components (8 neighbours) of a mask that contain a seed."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.zeros(labels.max() + 1, bool)
    keep[labels[seeds]] = True
    keep[0] = False
    return keep.take(np.asarray(labels))


def morph(mask: Mask, operation: int, kernel: NDArray[np.uint8]) -> Mask:
    """Apply a morphological operation of OpenCV, such as cv2.MORPH_OPEN, to a mask (H, W)."""
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), operation, kernel) > 0)


def _disc(px: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (px, px)), np.uint8)
