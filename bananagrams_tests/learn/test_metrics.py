from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bananagrams_assets.learn import metrics
from bananagrams_assets.learn.baselines import trivial_masks
from bananagrams_assets.learn.evaluate import derangement

planes = arrays(np.bool_, st.tuples(st.integers(1, 4), st.just(3), st.integers(1, 5), st.integers(1, 5)))


@given(planes)
def test_metrics_equal_a_loop_over_pixels(samples: npt.NDArray[np.bool_]) -> None:
    counts, ious, pixels = [], [], [0, 0, 0]
    for predicted, truth, valid in samples:
        counts.append(metrics.pixel_counts(predicted, truth, valid))
        both = only_predicted = only_truth = 0
        for p, t, k in zip(predicted.flat, truth.flat, valid.flat, strict=True):
            both += bool(k and p and t)
            only_predicted += bool(k and p and not t)
            only_truth += bool(k and t and not p)
        union = both + only_predicted + only_truth
        ious.append(both / union if union else 1.0)
        pixels = [a + b for a, b in zip(pixels, (both, only_predicted, only_truth), strict=True)]
    values = metrics.summarise(np.array(counts))
    both, only_predicted, only_truth = pixels

    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else 1.0

    assert values["mean_iou"] == pytest.approx(sum(ious) / len(ious))
    assert values["overall_iou"] == pytest.approx(ratio(both, sum(pixels)))
    assert values["precision"] == pytest.approx(ratio(both, both + only_predicted))
    assert values["recall"] == pytest.approx(ratio(both, both + only_truth))
    for limit in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert values[f"p_at_{limit}"] == pytest.approx(sum(iou >= limit for iou in ious) / len(ious))


@given(planes)
def test_invalid_pixels_do_not_count(samples: npt.NDArray[np.bool_]) -> None:
    predicted, truth, valid = samples[0]
    assert metrics.pixel_counts(predicted, truth, valid) == metrics.pixel_counts(
        predicted ^ ~valid, truth, valid
    )
    assert metrics.pixel_counts(predicted, truth, valid) == metrics.pixel_counts(
        predicted, truth ^ ~valid, valid
    )


def test_by_group_averages_each_groups_samples() -> None:
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
def test_counts_by_threshold_equal_pixel_counts(samples: npt.NDArray[np.float32], seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, valid = rng.random((2, *samples.shape)) < 0.6
    total = np.zeros((2, metrics.LEVELS), np.int64)
    rows = []
    for planes_of in zip(samples, truth, valid, strict=True):
        histogram = metrics.level_histogram(*planes_of)
        total += histogram
        rows.append(metrics.counts_by_threshold(histogram))
        for threshold, counts in zip(metrics.THRESHOLDS, rows[-1], strict=True):
            assert tuple(counts) == metrics.pixel_counts(planes_of[0] >= threshold, *planes_of[1:])
    means = {
        threshold: float(metrics.ious(np.array(rows))[:, i].mean())
        for i, threshold in enumerate(metrics.THRESHOLDS)
    }
    assert means[metrics.best_threshold(np.array(rows))] == pytest.approx(max(means.values()))
    if (truth & valid).any():
        levels = np.minimum(samples[valid] * metrics.LEVELS, metrics.LEVELS - 1).astype(int)
        expected = average_precision_score(truth[valid], levels)
        assert metrics.average_precision(total) == pytest.approx(expected)


def average_precision_score(truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.int64]) -> float:
    """Return the sum of precision times increase in recall over decreasing scores."""
    previous, result = 0, 0.0
    for level in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= level
        hits = int(truth[chosen].sum())
        result += hits / int(chosen.sum()) * (hits - previous)
        previous = hits
    return result / int(truth.sum())


def test_boundary_f_tolerates_only_small_shifts() -> None:
    truth = np.zeros((200, 200), bool)
    truth[50:150, 50:150] = True
    valid = np.ones_like(truth)
    assert metrics.boundary_f_relative(truth, truth, valid) == 1
    # The tolerance, 0.008 of the diagonal, is 2.3 px. After a shift by 4 px two of four sides still match.
    assert metrics.boundary_f_relative(np.roll(truth, 2, 1), truth, valid) == 1
    assert 0.4 < metrics.boundary_f_relative(np.roll(truth, 4, 1), truth, valid) < 0.6
    none = np.zeros_like(truth)
    assert metrics.boundary_f_relative(none, none, valid) == 1
    assert metrics.boundary_f_relative(none, truth, valid) == 0
    assert metrics.boundary_f_relative(~none, none, valid) == 0
    assert metrics.boundary_f_relative(~none, ~none, valid) == 1
    valid[:, 100:] = False
    shifted = truth.copy()
    shifted[:, 120:] = False
    assert metrics.boundary_f_relative(shifted, truth, valid) == 1


def test_interval_width_follows_the_number_of_photos() -> None:
    rng = np.random.default_rng(0)
    photos = rng.normal(0.6, 0.1, 20)
    values = np.repeat(photos, 10)
    sources = [str(i // 10) for i in range(200)]
    low, high = metrics.mean_interval(values, sources)
    assert low < values.mean() < high
    standard_error = photos.std(ddof=1) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)
    independent = metrics.mean_interval(values, [str(i) for i in range(200)])
    assert high - low > 2 * (independent[1] - independent[0])
    assert metrics.mean_interval(values, sources) == [low, high]
    assert metrics.mean_interval(np.array([0.5]), ["one"]) == [0.5, 0.5]


def test_every_metric_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 50, (60, 3))
    boundary = rng.random(60)
    sources = [str(i % 12) for i in range(60)]
    values, intervals = metrics.summarise(counts, boundary), metrics.intervals(counts, sources, boundary)
    assert values.keys() == intervals.keys()
    for name, (low, high) in intervals.items():
        assert low <= values[name] <= high


@pytest.mark.parametrize(
    ("pixels", "bucket"), [(0, "0 to 0.01"), (1, "0.01 to 0.05"), (30, "0.2 to 0.5"), (100, "0.5 to 1")]
)
def test_size_bucket_uses_the_fraction_of_valid_pixels(pixels: int, bucket: str) -> None:
    truth = np.zeros((10, 20), bool)
    valid = np.zeros_like(truth)
    valid[:, :10] = True
    truth[:, 10:] = True
    truth[:, :10].flat[:pixels] = True
    flat = truth[:, :10].copy()
    flat.flat[:pixels] = True
    truth[:, :10] = flat
    assert metrics.size_bucket(truth, valid) == bucket


def test_baseline_masks_have_the_size_of_the_image() -> None:
    mean = np.zeros((64, 64), bool)
    mean[:, :32] = True
    masks = trivial_masks(mean, (10, 20))
    assert {name: mask.shape for name, mask in masks.items()} == dict.fromkeys(masks, (10, 20))
    assert not masks["empty"].any()
    assert masks["full"].all()
    assert masks["mean"][:, :10].all()
    assert not masks["mean"][:, 10:].any()


@given(st.integers(2, 200))
def test_derangement_maps_no_index_to_itself(samples: int) -> None:
    partners = derangement(samples)
    assert sorted(partners) == list(range(samples))
    assert (partners != np.arange(samples)).all()
