"""Compare masks with true masks: score each pair and summarise the scores."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from ..config import Profile
from ..progress import Log
from ..records.edit_types import edit_type
from ..vision.align import Alignment, align
from ..vision.geometry import Floats, frame_corners, image_size, overlap_polygon, polygon_mask, project
from ..vision.images import RGB, ImageError, Mask, decode, decode_mask
from ..vision.mask import EditMask, edit_mask
from .cases import Case
from .mask_scores import auroc, calibration_error, reliability, score_mask

VERDICTS = ("local", "global", "nothing")
GOOD_IOU = 0.75
"""IoU from which a mask counts as good when its confidence is evaluated."""
GOOD_CORNER_PX = 4.0
"""Corner error up to which an alignment counts as good when its confidence is evaluated."""


@dataclass(frozen=True)
class PairScore:
    """Scores of one pair; the fields are the columns of `pairs.csv`.

    If `problem` states why the pair could not be read, no other score is valid. `iou` to `false_area` are
    0..1 over the pixels that both images show. A pair that cannot be aligned has an empty mask. `corner_px`:
    the largest error of the four corners in before px, None if the true homography is unknown.
    """

    name: str
    family: str
    strength: float | None
    truth: str = ""
    verdict: str = ""
    aligned: bool = False
    reason: str = ""
    iou: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    boundary_f: float = 0.0
    false_area: float = 0.0
    corner_px: float | None = None
    align_confidence: float = 0.0
    mask_confidence: float = 0.0
    problem: str = ""


@dataclass(frozen=True, eq=False)
class MeasuredPair:
    """A decoded pair with its true mask, valid pixels, alignment, and mask (None if it cannot be aligned)."""

    before: RGB
    after: RGB
    truth: Mask
    valid: Mask
    alignment: Alignment
    mask: EditMask | None

    @property
    def predicted(self) -> Mask:
        """The mask's pixels, none if the pair cannot be aligned."""
        return np.zeros_like(self.truth) if self.mask is None else self.mask.mask


def measure_case(case: Case, profile: Profile) -> MeasuredPair:
    """Align and mask a pair. Raises ImageError if an image cannot be decoded or the sizes disagree."""
    before, after = (
        decode(path.read_bytes(), profile.fetch.max_pixels) for path in (case.before, case.after)
    )
    truth = decode_mask(case.truth.read_bytes())
    (true_width, true_height), (width, height) = image_size(truth), image_size(before)
    if (true_width, true_height) != (width, height):
        raise ImageError(
            f"the true mask has {true_width} x {true_height} px, the before image {width} x {height} px"
        )
    return measure_pair(before, after, truth, _matrix(case.homography), case.edit_type, profile)


def measure_pair(
    before: RGB, after: RGB, truth: Mask, homography: Floats | None, edit_type_name: str, profile: Profile
) -> MeasuredPair:
    """Align and mask a decoded pair. `homography`: the true one, edited px → before px, None if unknown."""
    size, valid = image_size(before), np.ones(truth.shape, bool)
    if homography is not None:
        valid = polygon_mask(overlap_polygon(homography, image_size(after), size), size)
    alignment = align(before, after, profile.align)
    mask = None
    if alignment.accepted:
        scope = edit_type(edit_type_name).scope
        mask = edit_mask(before, after, alignment.homography, alignment.overlap, profile.mask, scope)
    return MeasuredPair(before, after, truth, valid, alignment, mask)


def score_case(case: Case, profile: Profile) -> PairScore:
    """Score a pair. A pair that cannot be read gets a row with its `problem`."""
    try:
        pair = measure_case(case, profile)
    except ImageError as error:
        return PairScore(case.name, case.family, case.strength, problem=str(error))
    homography, corner_px = _matrix(case.homography), None
    if homography is not None:
        corners = frame_corners(image_size(pair.after))
        errors = project(pair.alignment.homography, corners) - project(homography, corners)
        corner_px = round(float(np.linalg.norm(errors, axis=1).max()), 4)
    return PairScore(
        name=case.name,
        family=case.family,
        strength=case.strength,
        truth=_true_verdict(case, pair.truth),
        verdict="not aligned" if pair.mask is None else pair.mask.verdict,
        aligned=pair.mask is not None,
        reason=pair.alignment.reason,
        **asdict(score_mask(pair.predicted, pair.truth, pair.valid)),
        corner_px=corner_px,
        align_confidence=pair.alignment.confidence,
        mask_confidence=0.0 if pair.mask is None else pair.mask.confidence,
    )


def _true_verdict(case: Case, truth: Mask) -> str:
    if case.is_global or (case.is_global is None and truth.all()):
        return "global"
    return "local" if truth.any() else "nothing"


def _matrix(numbers: Sequence[float] | None) -> Floats | None:
    return None if numbers is None else np.array(numbers, np.float64).reshape(3, 3)


def score_folder(cases: Sequence[Case], profile: Profile, workers: int, log: Log) -> list[PairScore]:
    """Score every pair, in order. The scores do not depend on `workers`."""
    score = partial(score_case, profile=profile)
    if workers <= 1:
        return list(_logged(map(score, cases), len(cases), log))
    # A spawned process inherits no locks from this process's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_limit_to_one_thread) as pool:
        return list(_logged(pool.map(score, cases, chunksize=4), len(cases), log))


def _limit_to_one_thread() -> None:
    cv2.setNumThreads(1)
    threadpool_limits(1)


def _logged(scores: Iterator[PairScore], total: int, log: Log) -> Iterator[PairScore]:
    for number, score in enumerate(scores, start=1):
        if number % 100 == 0:
            log(f"{number} of {total} pairs scored")
        yield score


def summarise_scores(scores: Sequence[PairScore]) -> dict[str, Any]:
    """Return the summary that `evaluate-masks` reports and writes as JSON.

    `local`: means over pairs with a local edit; `by_strength` and `by_family` group them. `verdicts`: counts
    of predicted verdicts for each true verdict. `false_area`: of pairs without a visible edit. `corner_px`:
    corner errors of aligned pairs. `confidence`: calibration of both, see GOOD_CORNER_PX and GOOD_IOU.
    """
    read = [score for score in scores if not score.problem]
    local = [score for score in read if score.truth == "local"]
    false_areas = [score.false_area for score in read if score.truth == "nothing"]
    corner_errors = [score.corner_px for score in read if score.aligned and score.corner_px is not None]
    with_homography = [score for score in read if score.corner_px is not None]
    return {
        "pairs": len(scores),
        "not_read": {score.name: score.problem for score in scores if score.problem},
        "not_aligned": sum(not score.aligned for score in read),
        "local": _means(local),
        "by_strength": _grouped(local, lambda score: strength_name(score.strength)),
        "by_family": _grouped(local, lambda score: score.family or "not given"),
        "verdicts": {
            truth: dict(sorted(Counter(score.verdict for score in read if score.truth == truth).items()))
            for truth in VERDICTS
            if any(score.truth == truth for score in read)
        },
        "false_area": {
            "pairs": len(false_areas),
            "mean": _mean(false_areas),
            "max": max(false_areas, default=None),
        },
        "corner_px": {
            "pairs": len(corner_errors),
            "median": _percentile(corner_errors, 50),
            "p95": _percentile(corner_errors, 95),
            "over_8": sum(error > 8 for error in corner_errors),
        },
        "confidence": {
            f"alignment (corners within {GOOD_CORNER_PX:g} px)": _calibration(
                [score.align_confidence for score in with_homography],
                [
                    score.corner_px is not None and score.corner_px <= GOOD_CORNER_PX
                    for score in with_homography
                ],
            ),
            f"mask (IoU {GOOD_IOU:g} or more)": _calibration(
                [score.mask_confidence for score in local], [score.iou >= GOOD_IOU for score in local]
            ),
        },
    }


def strength_name(strength: float | None) -> str:
    return "not given" if strength is None else f"{strength:g}"


def _means(scores: Sequence[PairScore]) -> dict[str, Any]:
    names = ("iou", "precision", "recall", "boundary_f")
    means = {name: _mean([getattr(score, name) for score in scores]) for name in names}
    return {"pairs": len(scores), **means}


def _grouped(scores: Sequence[PairScore], group_of: Callable[[PairScore], str]) -> dict[str, dict[str, Any]]:
    groups = sorted({group_of(score) for score in scores})
    return {group: _means([score for score in scores if group_of(score) == group]) for group in groups}


def _calibration(confidence: Sequence[float], good: Sequence[bool]) -> dict[str, Any]:
    return {
        "pairs": len(confidence),
        "good": _mean([float(is_good) for is_good in good]),
        "auroc": auroc(confidence, good),
        "calibration_error": calibration_error(confidence, good),
        "reliability": reliability(confidence, good),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
