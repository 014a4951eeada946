from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bananagrams_assets.evaluation.mask_scores import (
    auroc,
    boundary_f_px,
    calibration_error,
    reliability,
    score_mask,
)
from bananagrams_assets.vision.images import Mask

EVERYWHERE = np.ones((40, 60), bool)


def _box(left: int, top: int, right: int, bottom: int) -> Mask:
    mask = np.zeros((40, 60), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_half_of_the_mask_has_half_the_recall_and_full_precision() -> None:
    scores = score_mask(_box(10, 10, 20, 20), _box(10, 10, 30, 20), EVERYWHERE)
    assert (scores.iou, scores.precision, scores.recall, scores.false_area) == (0.5, 1.0, 0.5, 0.0)


def test_false_area_is_a_share_of_the_valid_pixels() -> None:
    valid = _box(0, 0, 30, 40)
    scores = score_mask(_box(20, 0, 40, 40), np.zeros((40, 60), bool), valid)
    assert (scores.iou, scores.precision, scores.recall) == (0.0, 0.0, 1.0)
    assert scores.false_area == pytest.approx(1 / 3)


def test_two_empty_masks_score_one() -> None:
    nothing = np.zeros((40, 60), bool)
    scores = score_mask(nothing, nothing, EVERYWHERE)
    assert (scores.iou, scores.precision, scores.recall, scores.boundary_f) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("offset", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0)])
def test_outline_may_be_two_px_off(offset: int, expected: float) -> None:
    assert boundary_f_px(_box(10 + offset, 10, 30 + offset, 30), _box(10, 10, 30, 30), EVERYWHERE) == expected


def test_outline_further_off_scores_partly() -> None:
    assert 0.3 < boundary_f_px(_box(15, 10, 35, 30), _box(10, 10, 30, 30), EVERYWHERE) < 0.8
    assert boundary_f_px(_box(40, 30, 50, 38), _box(2, 2, 12, 12), EVERYWHERE) == 0
    assert boundary_f_px(np.zeros((40, 60), bool), _box(2, 2, 12, 12), EVERYWHERE) == 0


def test_mask_has_no_outline_at_invalid_pixels() -> None:
    valid = _box(0, 0, 30, 40)
    assert boundary_f_px(_box(10, 10, 25, 30) & valid, _box(10, 10, 60, 30) & valid, valid) < 1
    assert boundary_f_px(EVERYWHERE & valid, _box(0, 0, 60, 40) & valid, valid) == 1


@settings(deadline=None, max_examples=50)
@given(arrays(bool, (12, 15)), arrays(bool, (12, 15)), arrays(bool, (12, 15)))
def test_scores_are_in_range_and_perfect_for_equal_masks(one: Mask, other: Mask, valid: Mask) -> None:
    scores = vars(score_mask(one, other, valid))
    assert all(0 <= value <= 1 for value in scores.values()), scores
    assert score_mask(one, other, valid).iou == score_mask(other, one, valid).iou
    same = score_mask(one, one, valid)
    assert (same.iou, same.boundary_f, same.false_area) == (1, 1, 0)


def test_auroc_of_perfect_reversed_and_uninformative_confidences() -> None:
    assert auroc([0.9, 0.8, 0.2, 0.1], [True, True, False, False]) == 1
    assert auroc([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 0
    assert auroc([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert auroc([0.5, 0.6], [True, True]) is None
    assert auroc([], []) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_auroc_is_the_share_of_correctly_ordered_pairs(rows: list[tuple[float, bool]]) -> None:
    good = [value for value, is_good in rows if is_good]
    bad = [value for value, is_good in rows if not is_good]
    result = auroc([value for value, _ in rows], [is_good for _, is_good in rows])
    if not good or not bad:
        assert result is None
    else:
        wins = sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
        assert result == pytest.approx(wins / len(good) / len(bad))


def test_reliability_has_every_item_once() -> None:
    rows = reliability([0.0, 0.05, 0.55, 1.0], [False, True, True, True])
    assert [(row["from"], row["count"], row["good"]) for row in rows] == [
        (0, 2, 0.5),
        (0.5, 1, 1),
        (0.9, 1, 1),
    ]
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == 0.5
    assert calibration_error([], []) is None
