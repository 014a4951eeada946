"""Compare two models by their IoUs on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import metrics


@dataclass(frozen=True)
class SampleIoUs:
    """A model's IoU per sample of a split: `samples` maps a sample's key to (photo, IoU).

    `dataset` is the digest of the split.
    """

    split: str
    dataset: str
    samples: Mapping[str, tuple[str, float]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SampleIoUs:
        samples = {key: (str(photo), float(iou)) for key, (photo, iou) in content["samples"].items()}
        return cls(content["split"], content["dataset"], samples)

    def mean(self) -> float:
        return float(np.mean([iou for _, iou in self.samples.values()]))


@dataclass(frozen=True)
class Gain:
    """The mean gain in IoU of one model over another with its 95% interval, and the number of photos."""

    mean: float
    low: float
    high: float
    photos: int


def paired_gain(challenger: SampleIoUs, champion: SampleIoUs) -> Gain:
    """Return the challenger's gain over the champion on the same samples.

    The interval is a bootstrap over photos, see metrics.mean_interval: results for edits of one photo are
    correlated, so resampling single samples would give too narrow an interval. With fewer than two photos
    the interval is (-1, 1), the full range of a difference of IoUs.
    Raise ValueError if the samples differ.
    """
    if challenger.dataset != champion.dataset or challenger.samples.keys() != champion.samples.keys():
        raise ValueError("the two models were scored on different samples")
    keys = sorted(challenger.samples)
    photos = [challenger.samples[key][0] for key in keys]
    gains = np.array([challenger.samples[key][1] - champion.samples[key][1] for key in keys])
    distinct = len(set(photos))
    low, high = metrics.mean_interval(gains, photos) if distinct > 1 else (-1.0, 1.0)
    return Gain(float(gains.mean()), low, high, distinct)
