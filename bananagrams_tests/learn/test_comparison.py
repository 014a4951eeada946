"""The paired comparison of two models: its interval, and what it is over."""

from __future__ import annotations

import numpy as np
import pytest

from bananagrams_assets.learn.comparison import Scored, paired_gain


def scored(ious: list[list[float]], dataset: str = "d") -> Scored:
    """A list of IoUs a photograph."""
    samples = {f"{i}-{j}": (str(i), iou) for i, row in enumerate(ious) for j, iou in enumerate(row)}
    return Scored("test", dataset, samples)


def test_the_interval_covers_the_true_gain_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(50):
        before = rng.uniform(0.2, 0.6, (60, 1)).repeat(3, 1)
        after = before + rng.normal(0.03, 0.1, (60, 1)) + rng.normal(0, 0.05, (60, 3))
        gain = paired_gain(scored(after.tolist()), scored(before.tolist()))
        covered += gain.low <= 0.03 <= gain.high
    assert 43 <= covered <= 50


def test_edits_of_one_photograph_count_as_one_observation() -> None:
    rng = np.random.default_rng(1)
    by_photograph = (0.02 + rng.normal(0, 0.1, 20)).tolist()
    ten_each = [[0.5 + value] * 10 for value in by_photograph]
    one_each = [[0.5 + value] for value in by_photograph]
    wide = paired_gain(scored(ten_each), scored([[0.5] * 10] * 20))
    same = paired_gain(scored(one_each), scored([[0.5]] * 20))
    assert wide.mean == pytest.approx(same.mean)
    assert wide.high - wide.low == pytest.approx(same.high - same.low)
    assert wide.photos == 20


def test_one_photograph_proves_nothing() -> None:
    gain = paired_gain(scored([[0.9, 0.8]]), scored([[0.1, 0.1]]))
    assert (gain.low, gain.high) == (-1, 1)


@pytest.mark.parametrize("other", [scored([[0.5]], "else"), scored([[0.5], [0.4]])])
def test_different_samples_are_refused(other: Scored) -> None:
    with pytest.raises(ValueError, match="different samples"):
        paired_gain(scored([[0.5]]), other)
