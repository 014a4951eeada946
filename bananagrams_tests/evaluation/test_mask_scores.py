from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bananagrams_assets.evaluation.mask_scores import (
    auroc,
    boundary_f,
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


def test_half_a_mask_has_half_the_recall_and_all_the_precision() -> None:
    scores = score_mask(_box(10, 10, 20, 20), _box(10, 10, 30, 20), EVERYWHERE)
    assert (scores.iou, scores.precision, scores.recall, scores.false_area) == (0.5, 1.0, 0.5, 0.0)


def test_false_area_is_a_share_of_what_is_known() -> None:
    known = _box(0, 0, 30, 40)
    scores = score_mask(_box(20, 0, 40, 40), np.zeros((40, 60), bool), known)
    assert (scores.iou, scores.precision, scores.recall) == (0.0, 0.0, 1.0)
    assert scores.false_area == pytest.approx(1 / 3)


def test_two_empty_masks_agree() -> None:
    nothing = np.zeros((40, 60), bool)
    scores = score_mask(nothing, nothing, EVERYWHERE)
    assert (scores.iou, scores.precision, scores.recall, scores.boundary_f) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0)])
def test_an_outline_may_be_two_px_off(moved: int, expected: float) -> None:
    assert boundary_f(_box(10 + moved, 10, 30 + moved, 30), _box(10, 10, 30, 30), EVERYWHERE) == expected


def test_an_outline_further_off_counts_in_part() -> None:
    assert 0.3 < boundary_f(_box(15, 10, 35, 30), _box(10, 10, 30, 30), EVERYWHERE) < 0.8
    assert boundary_f(_box(40, 30, 50, 38), _box(2, 2, 12, 12), EVERYWHERE) == 0
    assert boundary_f(np.zeros((40, 60), bool), _box(2, 2, 12, 12), EVERYWHERE) == 0


def test_where_a_mask_is_cut_by_the_unknown_there_is_no_outline() -> None:
    known = _box(0, 0, 30, 40)
    assert boundary_f(_box(10, 10, 25, 30) & known, _box(10, 10, 60, 30) & known, known) < 1
    assert boundary_f(EVERYWHERE & known, _box(0, 0, 60, 40) & known, known) == 1


@settings(deadline=None, max_examples=50)
@given(arrays(bool, (12, 15)), arrays(bool, (12, 15)), arrays(bool, (12, 15)))
def test_scores_are_shares_and_perfect_for_the_truth_itself(one: Mask, other: Mask, known: Mask) -> None:
    scores = vars(score_mask(one, other, known))
    assert all(0 <= value <= 1 for value in scores.values()), scores
    assert score_mask(one, other, known).iou == score_mask(other, one, known).iou
    same = score_mask(one, one, known)
    assert (same.iou, same.boundary_f, same.false_area) == (1, 1, 0)


def test_auroc_of_perfect_reversed_and_useless_confidences() -> None:
    assert auroc([0.9, 0.8, 0.2, 0.1], [True, True, False, False]) == 1
    assert auroc([0.1, 0.2, 0.8, 0.9], [True, True, False, False]) == 0
    assert auroc([0.5, 0.5, 0.5], [True, False, True]) == 0.5
    assert auroc([0.5, 0.6], [True, True]) is None
    assert auroc([], []) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_auroc_counts_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    good = [value for value, is_good in rows if is_good]
    bad = [value for value, is_good in rows if not is_good]
    found = auroc([value for value, _ in rows], [is_good for _, is_good in rows])
    if not good or not bad:
        assert found is None
    else:
        wins = sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
        assert found == pytest.approx(wins / len(good) / len(bad))


def test_reliability_has_every_pair_once() -> None:
    rows = reliability([0.0, 0.05, 0.55, 1.0], [False, True, True, True])
    assert [(row["from"], row["count"], row["good"]) for row in rows] == [
        (0, 2, 0.5),
        (0.5, 1, 1),
        (0.9, 1, 1),
    ]
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == 0.5
    assert calibration_error([], []) is None
