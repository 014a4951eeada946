"""Is one model better than another? The same samples, paired, resampled by photograph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .dataset import Split
    from .predict import Predictor

BATCH = 16


@dataclass(frozen=True)
class Scored:
    """Each sample's IoU: of which split and dataset digest, and by key its photograph and IoU."""

    split: str
    dataset: str
    samples: Mapping[str, tuple[str, float]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Scored:
        samples = {key: (str(photo), float(iou)) for key, (photo, iou) in content["samples"].items()}
        return cls(content["split"], content["dataset"], samples)

    def mean(self) -> float:
        return float(np.mean([iou for _, iou in self.samples.values()]))


@dataclass(frozen=True)
class Gain:
    """The mean gain in IoU of one model over another and its 95% interval, over N photographs."""

    mean: float
    low: float
    high: float
    photos: int


def score_samples(predictor: Predictor, split: Split) -> Scored:
    """Each sample's IoU at the predictor's own threshold, at the pictures' own size, on known pixels."""
    from . import metrics
    from .predict import predict

    found: dict[str, tuple[str, float]] = {}
    for start in range(0, len(split), BATCH):
        samples = [split[index] for index in range(start, min(start + BATCH, len(split)))]
        masks = predict(predictor, [sample.image for sample in samples], [sample.text for sample in samples])
        for sample, mask in zip(samples, masks, strict=True):
            counts = metrics.count(
                mask >= predictor.threshold, sample.mask.astype(bool), sample.known.astype(bool)
            )
            photo = str(sample.meta.get("source_id") or sample.key)
            found[sample.key] = photo, float(metrics.ious(np.array([counts], np.int64))[0])
    return Scored(split.name, split.digest, found)


def paired_gain(challenger: Scored, champion: Scored) -> Gain:
    """The challenger's gain over the champion, from their IoUs on the same samples.

    Photographs are drawn, each with all its samples (see metrics.mean_interval): edits of one photograph
    succeed and fail together, and an interval over single samples would be too narrow. With fewer than
    two photographs the interval is all that a difference of IoUs can be. Raises ValueError if the samples
    differ.
    """
    from . import metrics

    if challenger.dataset != champion.dataset or challenger.samples.keys() != champion.samples.keys():
        raise ValueError("the two models were scored on different samples")
    keys = sorted(challenger.samples)
    photos = [challenger.samples[key][0] for key in keys]
    gains = np.array([challenger.samples[key][1] - champion.samples[key][1] for key in keys])
    distinct = len(set(photos))
    low, high = metrics.mean_interval(gains, photos) if distinct > 1 else (-1.0, 1.0)
    return Gain(float(gains.mean()), low, high, distinct)
