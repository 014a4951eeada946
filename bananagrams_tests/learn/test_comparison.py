"""The paired comparison of two models and its interval."""

from __future__ import annotations

import numpy as np
import pytest

from bananagrams_assets.learn.comparison import SampleIoUs, paired_gain


def sample_ious(ious: list[list[float]], dataset: str = "d") -> SampleIoUs:
    """Return the IoUs of a model from one list of IoUs per photo."""
    samples = {f"{i}-{j}": (str(i), iou) for i, row in enumerate(ious) for j, iou in enumerate(row)}
    return SampleIoUs("test", dataset, samples)


def test_the_interval_covers_the_true_gain_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(50):
        before = rng.uniform(0.2, 0.6, (60, 1)).repeat(3, 1)
        after = before + rng.normal(0.03, 0.1, (60, 1)) + rng.normal(0, 0.05, (60, 3))
        gain = paired_gain(sample_ious(after.tolist()), sample_ious(before.tolist()))
        covered += gain.low <= 0.03 <= gain.high
    assert 43 <= covered <= 50


def test_edits_of_one_photo_count_as_one_observation() -> None:
    rng = np.random.default_rng(1)
    gain_by_photo = (0.02 + rng.normal(0, 0.1, 20)).tolist()
    ten_each = [[0.5 + value] * 10 for value in gain_by_photo]
    one_each = [[0.5 + value] for value in gain_by_photo]
    wide = paired_gain(sample_ious(ten_each), sample_ious([[0.5] * 10] * 20))
    same = paired_gain(sample_ious(one_each), sample_ious([[0.5]] * 20))
    assert wide.mean == pytest.approx(same.mean)
    assert wide.high - wide.low == pytest.approx(same.high - same.low)
    assert wide.photos == 20


def test_one_photo_gives_the_widest_interval() -> None:
    gain = paired_gain(sample_ious([[0.9, 0.8]]), sample_ious([[0.1, 0.1]]))
    assert (gain.low, gain.high) == (-1, 1)


@pytest.mark.parametrize("other", [sample_ious([[0.5]], "else"), sample_ious([[0.5], [0.4]])])
def test_different_samples_are_rejected(other: SampleIoUs) -> None:
    with pytest.raises(ValueError, match="different samples"):
        paired_gain(sample_ious([[0.5]]), other)
