"""The mask of an edit: where an aligned pair differs by more than the editor's redrawing explains.

Each step is a function of its own. Widths in px are at the working size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import MaskSettings
from bananagrams_assets.vision.geometry import Floats, Size, polygon_mask, project, rescaled, resizing, warp
from bananagrams_assets.vision.images import RGB, Mask, fitted_size, resize
from bananagrams_assets.vision.tone import Tone, apply_tone, explain_tone

Difference: TypeAlias = NDArray[np.float32]
"""(H, W), CIE Lab dE"""

LAB_WEIGHTS = np.array([[(100 / 255) ** 2, 1, 1]], np.float32)
"""Squared units of 8-bit Lab: L is stored as 0..255 for 0..100, a and b as they are."""

PATCH_PX = 5
PATCH_SHARE = 0.6
"""A patch this wide, all over this share of the high threshold, starts a component too."""

LINE_PX = 9
FAINT_SHARE = 0.7
"""What is thinner than this is a line, and faint where all of it is under this share of the mask's median."""

GAP_SHARE = 0.01
GAP_SURROUNDINGS_PX = 61
GAP_DENSITY = 0.6
"""A gap in a mask is under this share of the picture; it is filled where more of its surroundings than this
is mask."""

LARGE_SHARE = 0.2
"""Of the overlap: masks from this size on, backgrounds most often, are completed by what lost its detail."""
LOST_FINE_PX = 9
LOST_PX = 21
LOST_LEVELS = 1.5
LOST_SHARE = 0.25
"""Detail is what is finer than the first; in windows of the second it counts from so many grey levels on, and
is lost where less than this share of it is left. Redrawing alone leaves 0.7 or more."""

OUTLINE_PX = 3
OUTLINE_SHARE = 0.28
REDRAWN_SHARE = 0.36
"""Shares of the largest difference around it at which an outline is drawn: at the working size, where blur
widens it, and at the input's own."""
REDRAWN_REACH_PX = 2
STROKE_REACHES = 4
LINE_REACHES = 20
"""Strokes are thinner than this many times the reach, and a line of them lower: 8 and 40 px."""
REDRAWN_AT_MOST_PX = 250_000
"""Pixels of the largest box around a mask that is drawn anew at the input's size: others gain less than they
cost."""

TRADED_PX = 5
TRADED_SHARE = 0.35
"""Of the mask's mean dE: where the mean colour changed by less, things changed places."""
GROUND_SHARE = 0.15
"""Of the same: what differs less from the colour around the mask is ground."""

FLOOD_PX = 31
FLOOD_SHARE = 0.08
"""What is fainter than this share of the largest difference around it has only leaked from there: a sign of
one colour, drawn a little brighter, around new letters."""

CONFIDENCE_WEIGHTS = np.array([3.1, 0.56, 2.58, -0.12, -1.63, -0.11, 0.25])
CONFIDENCE_BIAS = -2.7
"""Of `mask_evidence`, in its order; `bananagrams_tests/benchmarks/mask_confidence.py` fits them."""

GLOBAL_SHIFT = 14.0
"""dE of tone from which a picture counts as toned anew. Redrawing alone moves it by 1 to 8."""
GLOBAL_NOISE = 2.4
"""dE between pixels of the same content from which they are drawn anew. Redrawing alone leaves 0.3 to 1.3."""
UNDECIDED = {"global": 0.26, "local": 1.6, "geometric": 1.6}
"""Factor on what makes a mask global, by what was instructed."""


@dataclass(frozen=True, eq=False)
class EditMask:
    """What an edit changed, in the input's pixels.

    `mask`: bool (H, W). `verdict`: `local`, `global` (the mask is then the whole overlap) or `nothing`.
    `area`: the mask's share of the overlap, 0..1. `components`: connected parts of the mask.
    `confidence`: 0..1, the IoU to expect of a local mask (`local_confidence`). `noise`: typical dE
    of what did not change.
    `difference`: float32 (H, W), dE after the tone is explained away, 0 where unknown.
    """

    mask: Mask
    verdict: str
    is_global: bool
    area: float
    components: int
    confidence: float
    noise: float
    difference: Difference


def edit_mask(
    before: RGB, after: RGB, homography: Floats, overlap: Floats, settings: MaskSettings, scope: str
) -> EditMask:
    """The mask of the edit that turned `before` into `after` (uint8 (H, W, 3), of any two sizes).

    `homography` and `overlap` are an Alignment's; `scope` is what was instructed (`local`, `global`,
    `geometric`, or empty where that is not known) and tips the verdict only where the pair is undecided.
    """
    size = before.shape[1], before.shape[0]
    source = after.shape[1], after.shape[0]
    work = fitted_size(size, settings.working_side_px or max(size))
    small = before if work == size else resize(before, work)
    drawn, _ = warp(after, rescaled(homography, source, source, size, work), work)
    known = known_area(overlap, size, work, settings.border_px)

    tone = explain_tone(small, drawn, known)
    difference = lab_difference(small, tone.image, settings.blur_kernel_px)
    difference[~known] = 0
    noise = noise_level(difference, tone.unchanged)
    low = max(settings.threshold_low, settings.noise_low * noise)
    high = max(settings.threshold_high, settings.noise_high * noise)
    mask = hysteresis(difference, low, high)
    if settings.noise_low * noise > settings.threshold_low:
        # A large edit passes in part for unchanged; what is found of it does not a second time.
        near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        noise = min(noise, noise_level(difference, tone.unchanged & ~near))
        low = max(settings.threshold_low, settings.noise_low * noise)
        high = max(settings.threshold_high, settings.noise_high * noise)
        mask = hysteresis(difference, low, high)
    mask &= difference >= FLOOD_SHARE * cv2.dilate(difference, np.ones((FLOOD_PX, FLOOD_PX), np.uint8))
    mask = tighten(mask, difference)
    mask = opened_and_closed(mask, difference > low / 2, settings.open_px, settings.close_px)
    mask = without_faint_lines(mask, difference)
    if mask.sum() > LARGE_SHARE * known.sum():
        mask = joined(mask, lost_detail(small, tone.image) & known)
    mask = gaps_filled(mask)
    mask, components = without_specks(mask, settings.smallest_component)
    area = float(mask[known].mean()) if known.any() else 0.0
    evidence = global_evidence(tone.shift, noise, area, settings) / UNDECIDED.get(scope, 1.0)
    if evidence >= 1 and known.any():
        verdict, area, components, mask = "global", 1.0, 1, polygon_mask(overlap, size)
        confidence = evidence / (1 + evidence)
    elif components:
        verdict = "local"
        confidence = local_confidence(mask_evidence(mask, known, difference, low, noise, components))
        confidence *= 1 - evidence**4 / 2
        border = polygon_mask(project(resizing(size, work), overlap), work) & ~known
        mask = continued(mask, known, border)
    else:
        quiet = float((difference[known] < low / 2).mean()) if known.any() else 0.0
        verdict, confidence = "nothing", quiet * (1.0 if scope == "geometric" else 0.2)
    if difference.shape != before.shape[:2]:
        if verdict != "global":
            mask = enlarged(mask, difference, low, size)
            mask = redrawn_outline(mask, before, after, homography, tone, low)
        difference = np.asarray(cv2.resize(difference, size, interpolation=cv2.INTER_LINEAR))
    return EditMask(mask, verdict, verdict == "global", area, components, confidence, noise, difference)


def global_evidence(shift: float, noise: float, area: float, settings: MaskSettings) -> float:
    """How much speaks for an edit of the whole picture; from 1 on, more than not.

    The largest of three, each over its limit: the tone that had to be explained away, the redrawing of
    what the tone fit calls unchanged, the mask's share of the overlap.
    """
    return max(shift / GLOBAL_SHIFT, noise / GLOBAL_NOISE, area / settings.global_area)


def mask_evidence(
    mask: Mask, known: Mask, difference: Difference, low: float, noise: float, components: int
) -> NDArray[np.float64]:
    """The seven numbers that a local mask's confidence is made of.

    solidity: share of the mask that erosion by a pixel leaves; separation: log2 of the 20th percentile of
    the mask's dE over the low threshold; clear: share of the rest under half the low threshold; parts: log2
    of the components; contact: the mask's share of the overlap's outermost pixels; noise: in dE, at most 4;
    size: log2 of the mask's share of the overlap.
    """
    kernel = np.ones((3, 3), np.uint8)
    rim = known & (cv2.erode(known.astype(np.uint8), kernel, borderValue=0) == 0)
    rest = known & ~mask
    return np.array(
        [
            cv2.erode(mask.astype(np.uint8), kernel).sum() / mask.sum(),
            np.log2(max(float(np.percentile(difference[mask], 20)) / low, 1e-3)),
            (difference[rest] < low / 2).mean() if rest.any() else 0.0,
            np.log2(components),
            mask[rim].mean() if rim.any() else 0.0,
            min(noise, 4.0),
            np.log2(mask.sum() / known.sum()),
        ]
    )


def local_confidence(evidence: NDArray[np.float64]) -> float:
    """The IoU to expect of a local mask, 0..1: a logistic model of its evidence, fitted to made pairs."""
    return float(1 / (1 + np.exp(-(CONFIDENCE_BIAS + CONFIDENCE_WEIGHTS @ evidence))))


def known_area(overlap: Floats, size: tuple[int, int], work: tuple[int, int], border_px: int) -> Mask:
    """The overlap at the working size, less a border along the part of its outline that crosses the input."""
    known = polygon_mask(project(resizing(size, work), overlap), work)
    if border_px == 0 or known.all():
        return known
    kernel = np.ones((2 * border_px + 1, 2 * border_px + 1), np.uint8)
    return np.asarray(cv2.erode(known.astype(np.uint8), kernel) > 0)


def lab_difference(before: RGB, after: RGB, blur_px: int) -> Difference:
    """dE between two aligned pictures that ignores movement by a pixel and re-sharpening.

    Distance in CIE Lab of each pixel to the range of the other picture's 3 x 3 neighbourhood, the larger
    of both ways: an edge that moved a little stays within the range, new content does not. Lab is of
    8 bits (steps of 0.4 in L, 1 in a and b): a quarter of the time of floats, for masks as good.
    """
    one, other = _lab(before, blur_px), _lab(after, blur_px)
    return np.asarray(cv2.sqrt(cv2.max(_outside(one, other), _outside(other, one))), np.float32)


def noise_level(difference: Difference, unchanged: Mask) -> float:
    """Typical dE of the unchanged pixels (of a grid of them, where there are many); 0 where there are none.

    The mean of their lower three quarters, times 1.3, about the median: a median
    itself would jump between the few values that 8-bit Lab has.
    """
    step = max(1, max(difference.shape) // 320)
    values = difference[::step, ::step][unchanged[::step, ::step]]
    if not values.size:
        return 0.0
    lower = (3 * values.size + 3) // 4
    return 1.3 * float(np.sort(values)[:lower].mean())


def hysteresis(difference: Difference, low: float, high: float) -> Mask:
    """Pixels above `low` connected (8 neighbours) to one above `high` (Canny, PAMI 1986), or to a patch
    that is a little fainter: what movement leaves along an edge is thin."""
    patch = cv2.morphologyEx(
        (difference > PATCH_SHARE * high).astype(np.uint8), cv2.MORPH_OPEN, _disc(PATCH_PX)
    )
    _, labels = cv2.connectedComponents((difference > low).astype(np.uint8), connectivity=8)
    keep = np.zeros(labels.max() + 1, bool)
    keep[labels[(difference > high) | (patch > 0)]] = True
    keep[0] = False
    return keep.take(np.asarray(labels))


def tighten(mask: Mask, difference: Difference) -> Mask:
    """Without, within 3 px of the outline, pixels under 0.28 of the largest difference around them.

    Blur widens an edit: its middle is where the difference is half of what it is inside. What can be seen
    of it ends further out.
    """
    kernel = np.ones((2 * OUTLINE_PX + 1, 2 * OUTLINE_PX + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel) > 0
    return np.asarray(mask & (inner | (difference >= OUTLINE_SHARE * cv2.dilate(difference, kernel))))


def enlarged(mask: Mask, difference: Difference, low: float, size: Size) -> Mask:
    """The mask at (width, height), its outline where the enlarged difference crosses the outline's level.

    What is enlarged is how far each pixel lies above or below that level, not the mask's own steps.
    """
    if not mask.any():
        return np.zeros((size[1], size[0]), bool)
    kernel = np.ones((2 * OUTLINE_PX + 1, 2 * OUTLINE_PX + 1), np.uint8)
    above = difference - np.maximum(OUTLINE_SHARE * cv2.dilate(difference, kernel), low)
    above = np.where(mask, np.clip(above, low / 4, 2 * low), np.clip(above, -2 * low, -low / 4))
    large = cv2.resize(above.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 0)


def redrawn_outline(mask: Mask, before: RGB, after: RGB, homography: Floats, tone: Tone, low: float) -> Mask:
    """The mask (H, W) with its outline drawn anew from the input's own pixels: thin strokes stay thin.

    Close to the outline and within `strokes`, a pixel belongs to the edit where the unblurred difference is
    over a share of what it is around. `homography` and `tone` are those of the whole pictures.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return mask
    (height, width), (small_height, small_width) = mask.shape, tone.light.shape[:2]
    reach = max(1, round(REDRAWN_REACH_PX * width / small_width))
    top, bottom = max(0, int(rows[0]) - 3 * reach), min(height, int(rows[-1]) + 1 + 3 * reach)
    left, right = max(0, int(columns[0]) - 3 * reach), min(width, int(columns[-1]) + 1 + 3 * reach)
    box = slice(top, bottom), slice(left, right)
    if (bottom - top) * (right - left) > REDRAWN_AT_MOST_PX:
        return mask
    moved = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float64) @ homography
    drawn, _ = warp(after, moved, (right - left, bottom - top))
    light = tone.light[
        top * small_height // height : -(-bottom * small_height // height),
        left * small_width // width : -(-right * small_width // width),
    ]
    light = np.asarray(cv2.resize(light, (right - left, bottom - top)), np.int16)
    drawn = apply_tone(drawn, tone.curve, tone.mix, light)
    difference = lab_difference(np.ascontiguousarray(before[box]), drawn, blur_px=1)
    coarse = mask[box].astype(np.uint8)
    near = _disc(2 * reach + 1)
    band = cv2.dilate(coarse, near) > cv2.erode(coarse, near)
    around = cv2.dilate(difference, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    clear = difference > np.maximum(REDRAWN_SHARE * around, low)
    # Colour bleeds from letters into the gaps between them (JPEG halves its resolution): these are drawn
    # anew throughout.
    band |= strokes(coarse > 0, clear, STROKE_REACHES * reach + 1, LINE_REACHES * reach)
    result = mask.copy()
    result[box] = traded_gaps_closed(np.where(band, clear, coarse > 0), before[box], drawn)
    return result


def traded_gaps_closed(mask: Mask, before: RGB, after: RGB) -> Mask:
    """The mask (H, W) with gaps under TRADED_PX closed where things only changed places.

    A thing moved or turned, or a letter for a letter, lies in part where it lay: nothing differs there, yet
    it is of the edit. Then the mask's mean colour is about the same in both pictures, uint8 (H, W, 3). Gaps
    of the surroundings' colour stay open.
    """
    gaps = (cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _disc(TRADED_PX)) > 0) & ~mask
    around = cv2.dilate(mask.astype(np.uint8), _disc(2 * TRADED_PX - 1)) == 0
    if not gaps.any() or not around.any():
        return mask
    units = np.sqrt(LAB_WEIGHTS[0])
    one, other = (_lab(image, 1) * units for image in (before, after))
    change = one[mask] - other[mask]
    typical = float(np.linalg.norm(change, axis=1).mean())
    if np.linalg.norm(change.mean(axis=0)) > TRADED_SHARE * typical:
        return mask
    apart = np.linalg.norm(one[gaps] - np.median(one[around], axis=0), axis=1) > GROUND_SHARE * typical
    result = mask.copy()
    result[gaps] = apart
    return result


def strokes(mask: Mask, clear: Mask, width_px: int, height_px: int) -> Mask:
    """The components (8 neighbours) of a mask that are small letters and lines. All bool (H, W).

    Nothing in them that is `clear` is as thick as `width_px`, and they are not longer both ways than
    `height_px`.
    """
    inside = (clear & mask).astype(np.uint8)
    thick = cv2.morphologyEx(inside, cv2.MORPH_OPEN, _disc(width_px)) > 0
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    thin = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].min(axis=1) <= height_px
    thin[np.unique(labels[thick])] = False
    return np.asarray(thin.take(np.asarray(labels)) & mask)


def opened_and_closed(mask: Mask, above_noise: Mask, open_px: int, close_px: int) -> Mask:
    """Opening, then closing that only fills what is above the noise: the inside of letters stays open."""
    image = mask.astype(np.uint8)
    if open_px > 1:
        image = cv2.morphologyEx(image, cv2.MORPH_OPEN, _disc(open_px)).astype(np.uint8)
    if close_px > 1:
        image |= cv2.morphologyEx(image, cv2.MORPH_CLOSE, _disc(close_px)).astype(np.uint8) & above_noise
    return image > 0


def without_faint_lines(mask: Mask, difference: Difference) -> Mask:
    """Without components (8 neighbours) that are thin and nowhere as strong as most of the mask.

    Sharpening and movement leave such along edges; letters are thin, but all of about one strength.
    """
    values = difference[mask]
    if not values.size:
        return mask
    few = values[:: max(1, values.size // 10_000)]
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    thick = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((LINE_PX, LINE_PX), np.uint8)) > 0
    keep = np.zeros(labels.max() + 1, bool)
    keep[labels[thick | (mask & (difference >= FAINT_SHARE * np.median(few)))]] = True
    keep[0] = False
    return keep.take(np.asarray(labels))


def gaps_filled(mask: Mask) -> Mask:
    """With its enclosed small gaps (4 neighbours) where most around them is mask.

    In a large edit, as a blurred background, some pixels look as before by chance; the inside of letters
    has no such surroundings.
    """
    around = cv2.blur(mask.astype(np.uint8) * 255, (GAP_SURROUNDINGS_PX, GAP_SURROUNDINGS_PX))
    dense = (around > 255 * GAP_DENSITY) & ~mask
    if not dense.any():
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < GAP_SHARE * mask.size
    return np.asarray(mask | (small.take(np.asarray(labels)) & dense))


def lost_detail(before: RGB, after: RGB) -> Mask:
    """Where aligned pictures of equal tone, uint8 (H, W, 3), differ by detail that is gone from all around.

    Out of focus or painted over, a place may keep its colour. Where an outline is gone, a window beside it
    shows less too: by half a window, the place begins further in.
    """
    energies = []
    for image in (before, after):
        grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1).astype(np.float32)
        fine = grey - cv2.blur(grey, (LOST_FINE_PX, LOST_FINE_PX))
        energies.append(cv2.blur(fine * fine, (LOST_PX, LOST_PX)))
    had, has = energies
    lost = (had > LOST_LEVELS**2) & (has < LOST_SHARE**2 * had)
    return np.asarray(cv2.erode(lost.astype(np.uint8), np.ones((LOST_PX, LOST_PX), np.uint8)) > 0)


def joined(mask: Mask, more: Mask) -> Mask:
    """The mask with those components (8 neighbours) of `more` that touch it."""
    _, labels = cv2.connectedComponents((mask | more).astype(np.uint8), connectivity=8)
    keep = np.zeros(labels.max() + 1, bool)
    keep[labels[mask]] = True
    keep[0] = False
    return keep.take(np.asarray(labels))


def without_specks(mask: Mask, smallest: float) -> tuple[Mask, int]:
    """Without components (8 neighbours) under a share of the picture, and how many are left."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= smallest * mask.size
    keep[0] = False
    return keep.take(np.asarray(labels)), int(keep.sum())


def continued(mask: Mask, known: Mask, border: Mask) -> Mask:
    """Each pixel of the overlap's ignored border as the nearest known pixel is."""
    if not border.any() or not known.any():
        return mask
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    changed = np.zeros(int(nearest.max()) + 1, bool)
    changed[nearest[known]] = mask[known]
    return np.where(border, changed.take(np.asarray(nearest)), mask)


def _lab(image: RGB, blur_px: int) -> RGB:
    if blur_px > 1:
        image = np.asarray(cv2.GaussianBlur(image, (blur_px, blur_px), 0), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)


def _outside(one: RGB, other: RGB) -> Difference:
    """Squared dE (H, W) of each pixel to the other picture's range around it, both 8-bit Lab."""
    kernel = np.ones((3, 3), np.uint8)
    above = cv2.subtract(one, cv2.dilate(other, kernel))
    distance = cv2.add(above, cv2.subtract(cv2.erode(other, kernel), one)).astype(np.float32)
    return np.asarray(cv2.transform(cv2.multiply(distance, distance), LAB_WEIGHTS), np.float32)


def _disc(px: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (px, px)), np.uint8)
