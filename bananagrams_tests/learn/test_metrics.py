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
    found = metrics.by_group(counts, {"scope": ["local", "local", "global"]}, ["a", "b", "c"])["scope"]
    assert {label: (group["samples"], group["mean_iou"]) for label, group in found.items()} == {
        "global": (1, 0.0),
        "local": (2, 0.75),
    }
    assert found["local"]["interval"] == [0.5, 1.0]


probabilities = arrays(
    np.float32, st.just((3, 6, 5)), elements=st.floats(0, 1, width=32) | st.sampled_from([0.25, 0.5])
)


@given(probabilities, st.integers(0, 2**32 - 1))
def test_counts_at_each_threshold_equal_those_of_the_cut_mask(
    samples: npt.NDArray[np.float32], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth, known = rng.random((2, *samples.shape)) < 0.6
    total = np.zeros((2, metrics.LEVELS), np.int64)
    rows = []
    for planes_of in zip(samples, truth, known, strict=True):
        histogram = metrics.level_histogram(*planes_of)
        total += histogram
        rows.append(metrics.counts_by_threshold(histogram))
        for threshold, counts in zip(metrics.THRESHOLDS, rows[-1], strict=True):
            assert tuple(counts) == metrics.count(planes_of[0] >= threshold, *planes_of[1:])
    means = {
        threshold: float(metrics.ious(np.array(rows))[:, i].mean())
        for i, threshold in enumerate(metrics.THRESHOLDS)
    }
    assert means[metrics.best_threshold(np.array(rows))] == pytest.approx(max(means.values()))
    if (truth & known).any():
        levels = np.minimum(samples[known] * metrics.LEVELS, metrics.LEVELS - 1).astype(int)
        expected = average_precision_score(truth[known], levels)
        assert metrics.average_precision(total) == pytest.approx(expected)


def average_precision_score(truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.int64]) -> float:
    """Sum of precision times gain in recall over falling levels."""
    found, result = 0, 0.0
    for level in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= level
        hits = int(truth[chosen].sum())
        result += hits / int(chosen.sum()) * (hits - found)
        found = hits
    return result / int(truth.sum())


def test_boundary_f_forgives_the_tolerance_and_nothing_else() -> None:
    truth = np.zeros((200, 200), bool)
    truth[50:150, 50:150] = True
    known = np.ones_like(truth)
    assert metrics.boundary_f(truth, truth, known) == 1
    assert metrics.boundary_f(np.roll(truth, 2, 1), truth, known) == 1  # 0.008 of the diagonal is 2.3 px
    assert 0.4 < metrics.boundary_f(np.roll(truth, 4, 1), truth, known) < 0.6  # two sides of four still fit
    none = np.zeros_like(truth)
    assert metrics.boundary_f(none, none, known) == 1
    assert metrics.boundary_f(none, truth, known) == 0
    assert metrics.boundary_f(~none, none, known) == 0
    assert metrics.boundary_f(~none, ~none, known) == 1
    known[:, 100:] = False
    shifted = truth.copy()
    shifted[:, 120:] = False
    assert metrics.boundary_f(shifted, truth, known) == 1


def test_an_interval_is_as_wide_as_its_photographs_are_few() -> None:
    rng = np.random.default_rng(0)
    photos = rng.normal(0.6, 0.1, 20)
    values = np.repeat(photos, 10)
    sources = [str(i // 10) for i in range(200)]
    low, high = metrics.mean_interval(values, sources)
    assert low < values.mean() < high
    standard_error = photos.std(ddof=1) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)
    apart = metrics.mean_interval(values, [str(i) for i in range(200)])
    assert high - low > 2 * (apart[1] - apart[0])
    assert metrics.mean_interval(values, sources) == [low, high]
    assert metrics.mean_interval(np.array([0.5]), ["one"]) == [0.5, 0.5]


def test_every_figure_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 50, (60, 3))
    boundary = rng.random(60)
    sources = [str(i % 12) for i in range(60)]
    figures, found = metrics.summarise(counts, boundary), metrics.intervals(counts, sources, boundary)
    assert figures.keys() == found.keys()
    for name, (low, high) in found.items():
        assert low <= figures[name] <= high


@pytest.mark.parametrize(
    ("pixels", "bucket"), [(0, "0 to 0.01"), (1, "0.01 to 0.05"), (30, "0.2 to 0.5"), (100, "0.5 to 1")]
)
def test_masks_fall_into_buckets_by_their_share_of_what_is_known(pixels: int, bucket: str) -> None:
    truth = np.zeros((10, 20), bool)
    known = np.zeros_like(truth)
    known[:, :10] = True
    truth[:, 10:] = True
    truth[:, :10].flat[:pixels] = True
    flat = truth[:, :10].copy()
    flat.flat[:pixels] = True
    truth[:, :10] = flat
    assert metrics.size_bucket(truth, known) == bucket


def test_trivial_masks_have_the_size_of_the_image() -> None:
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
