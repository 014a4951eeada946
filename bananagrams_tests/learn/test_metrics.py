from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bananagrams_assets.learn import metrics
from bananagrams_assets.learn.baselines import trivial_masks
from bananagrams_assets.learn.evaluate import partners

planes = arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 5), st.integers(1, 5)))


@given(planes)
def test_metrics_equal_a_count_pixel_by_pixel(samples: npt.NDArray[np.bool_]) -> None:
    counts, each, pixels = [], [], [0, 0, 0]
    for predicted, truth, known in samples:
        counts.append(metrics.count(predicted, truth, known))
        both = only_predicted = only_truth = 0
        for p, t, k in zip(predicted.flat, truth.flat, known.flat, strict=True):
            both += bool(k and p and t)
            only_predicted += bool(k and p and not t)
            only_truth += bool(k and t and not p)
        union = both + only_predicted + only_truth
        each.append(both / union if union else 1.0)
        pixels = [a + b for a, b in zip(pixels, (both, only_predicted, only_truth), strict=True)]
    found = metrics.summarise(np.array(counts))
    both, only_predicted, only_truth = pixels

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else 1.0

    assert found["mean_iou"] == pytest.approx(sum(each) / len(each))
    assert found["overall_iou"] == pytest.approx(ratio(both, sum(pixels)))
    assert found["precision"] == pytest.approx(ratio(both, both + only_predicted))
    assert found["recall"] == pytest.approx(ratio(both, both + only_truth))
    for limit in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert found[f"p_at_{limit}"] == pytest.approx(sum(iou >= limit for iou in each) / len(each))


@given(planes)
def test_unknown_pixels_count_nowhere(samples: npt.NDArray[np.bool_]) -> None:
    predicted, truth, known = samples[0]
    assert metrics.count(predicted, truth, known) == metrics.count(predicted ^ ~known, truth, known)
    assert metrics.count(predicted, truth, known) == metrics.count(predicted, truth ^ ~known, known)


def test_groups_average_their_own_samples() -> None:
    counts = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]])
    found = metrics.by_group(counts, {"scope": ["local", "local", "global"]})
    assert found == {
        "scope": {"global": {"samples": 1, "mean_iou": 0.0}, "local": {"samples": 2, "mean_iou": 0.75}}
    }


def test_trivial_masks_have_the_size_of_the_picture() -> None:
    mean = np.zeros((64, 64), bool)
    mean[:, :32] = True
    masks = trivial_masks(mean, (10, 20))
    assert {name: mask.shape for name, mask in masks.items()} == dict.fromkeys(masks, (10, 20))
    assert not masks["empty"].any()
    assert masks["full"].all()
    assert masks["mean"][:, :10].all()
    assert not masks["mean"][:, 10:].any()


@given(st.integers(2, 200))
def test_every_sample_gets_the_instruction_of_another(samples: int) -> None:
    other = partners(samples)
    assert sorted(other) == list(range(samples))
    assert (other != np.arange(samples)).all()
