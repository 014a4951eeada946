"""Score a model on a split, with baselines and with shuffled and empty instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ..config import Profile, TrainSettings
from ..storage.store import Store
from . import metrics
from .baselines import Mask, mean_mask, trivial_masks
from .comparison import SampleIoUs
from .dataset import Batch, DecodedSample, Split, TrainingSet, data_loader, open_split
from .network import MaskNet
from .predict import Predictor, Probability, predict_masks

BATCH = 16


def evaluate(predictor: Predictor, store: Store, profile: Profile, split: str) -> dict[str, Any]:
    """Return the metrics of a model on `train`, `dev` or `test` at the images' stored sizes; see `score`.

    Uses the threshold that the model was published with. Raises DatasetError if the split or train is
    missing or empty.
    """
    with open_split(store, "train") as train:
        mean = mean_mask(train.select(profile.train))
    with open_split(store, split) as samples:
        return score(predictor, samples, mean)


def score(predictor: Predictor, split: Split, mean: Mask) -> dict[str, Any]:
    """Return the metrics of an open split at the predictor's threshold; `mean` is the mean training mask.

    `model`: metrics.summarise and `average_precision`. `intervals`: 95% intervals of the same metrics.
    `baselines`: mean IoU of the empty, the full and the mean training mask. `shuffled`: mean IoU if each
    image has the instruction of another sample. `blind`: mean IoU with empty instructions. `gain_interval`:
    interval of the model's gain in mean IoU over the best baseline. `blind_gain`, `blind_gain_interval`:
    gain of `blind` over it. `by_edit_type`, `by_category`, `by_scope`, `by_mask_size`: see metrics.by_group.
    """
    scored = _ScoredSamples(derangement(len(split)))
    for samples in _chunks(split):
        scored.add(predictor, split, samples, mean)
    sources = scored.sources
    counts, boundary = np.array(scored.counts["model"], np.int64), np.array(scored.boundary)
    ious = {name: metrics.ious(np.array(rows, np.int64)) for name, rows in scored.counts.items()}
    baselines = {name: float(ious[name].mean()) for name in ("empty", "full", "mean")}
    best = max(baselines, key=lambda name: baselines[name])
    return {
        "split": split.name,
        "samples": len(split),
        "photographs": len(set(sources)),
        "dataset": split.digest,
        "threshold": predictor.threshold,
        "model": {
            **metrics.summarise(counts, boundary),
            "average_precision": metrics.average_precision(scored.histogram),
        },
        "intervals": {
            **metrics.intervals(counts, sources, boundary),
            **{name: metrics.mean_interval(ious[name], sources) for name in ious if name != "model"},
        },
        "baselines": baselines,
        "gain_interval": metrics.mean_interval(ious["model"] - ious[best], sources),
        "shuffled": float(ious["shuffled"].mean()),
        "blind": float(ious["blind"].mean()),
        "blind_gain": float((ious["blind"] - ious[best]).mean()),
        "blind_gain_interval": metrics.mean_interval(ious["blind"] - ious[best], sources),
        **metrics.by_group(counts, scored.groups, sources),
    }


def best_threshold(predictor: Predictor, split: Split) -> float:
    """Return the threshold with the highest mean IoU on an open split, which should not be test."""
    counts = [
        metrics.counts_by_threshold(metrics.level_histogram(probability, *_planes(sample)))
        for sample, probability in _predicted(predictor, split)
    ]
    return metrics.best_threshold(np.array(counts))


def sample_ious(predictor: Predictor, split: Split) -> SampleIoUs:
    """Return the IoU of each sample of an open split at the predictor's threshold, over valid pixels."""
    ious: dict[str, tuple[str, float]] = {}
    for sample, probability in _predicted(predictor, split):
        counts = metrics.pixel_counts(probability >= predictor.threshold, *_planes(sample))
        photo = str(sample.meta.get("source_id") or sample.key)
        ious[sample.key] = photo, float(metrics.ious(np.array(counts, np.int64)))
    return SampleIoUs(split.name, split.digest, ious)


class _ScoredSamples:
    """Counts and labels of the scored samples, without pixels.

    `partners` (N,) is the index of the sample whose instruction is used for `shuffled`.
    """

    def __init__(self, partners: npt.NDArray[np.int64]) -> None:
        self.partners = partners
        self.counts: dict[str, list[tuple[int, int, int]]] = {
            name: [] for name in ("model", "shuffled", "blind", "empty", "full", "mean")
        }
        self.boundary: list[float] = []
        self.histogram = np.zeros((2, metrics.LEVELS), np.int64)
        self.sources: list[str] = []
        self.groups: dict[str, list[str]] = {
            name: [] for name in ("by_edit_type", "by_category", "by_scope", "by_mask_size")
        }

    def add(self, predictor: Predictor, split: Split, samples: Sequence[DecodedSample], mean: Mask) -> None:
        start = len(self.sources)
        images = [sample.image for sample in samples]
        instructions = {
            "model": [sample.text for sample in samples],
            "shuffled": [split.text(int(self.partners[start + i])) for i in range(len(samples))],
            "blind": [""] * len(samples),
        }
        masks = {name: predict_masks(predictor, images, texts) for name, texts in instructions.items()}
        for i, sample in enumerate(samples):
            truth, valid = _planes(sample)
            predicted = {name: masks[name][i] >= predictor.threshold for name in instructions}
            predicted.update(trivial_masks(mean, (truth.shape[0], truth.shape[1])))
            for name, mask in predicted.items():
                self.counts[name].append(metrics.pixel_counts(mask, truth, valid))
            self.boundary.append(metrics.boundary_f_relative(predicted["model"], truth, valid))
            self.histogram += metrics.level_histogram(masks["model"][i], truth, valid)
            self.sources.append(str(sample.meta.get("source_id") or sample.key))
            for name in ("edit_type", "category", "scope"):
                self.groups[f"by_{name}"].append(str(sample.meta.get(name) or "unknown"))
            self.groups["by_mask_size"].append(metrics.size_bucket(truth, valid))


class DevScorer:
    """Computes mean IoU on dev during training, at the training size; each rank scores its share of dev."""

    def __init__(self, dev: Split, train: Split, settings: TrainSettings, rank: int, world_size: int) -> None:
        self._data = TrainingSet(dev, settings.side_px, cache=not settings.workers)
        indices = range(rank, len(dev), world_size)
        size = max(1, settings.batch_size // world_size)
        self._batches = [
            [(0, index) for index in indices[start : start + size]] for start in range(0, len(indices), size)
        ]
        self._workers = settings.workers
        self._world_size = world_size
        baselines = trivial_masks(mean_mask(train), (settings.side_px, settings.side_px))
        baseline_counts: dict[str, list[tuple[int, int, int]]] = {name: [] for name in baselines}
        for batch in self._load():
            truth, valid = batch.mask[:, 0].numpy() >= 128, batch.valid[:, 0].numpy() > 0
            for name, mask in baselines.items():
                baseline_counts[name] += [
                    metrics.pixel_counts(mask, *planes) for planes in zip(truth, valid, strict=True)
                ]
        self.baselines = {name: self._mean_iou(counts) for name, counts in baseline_counts.items()}
        """Mean IoU of the baseline masks."""
        self.baseline_text = ", ".join(f"{name} mask {value:.3f}" for name, value in self.baselines.items())

    def mean_iou(self, net: MaskNet, precision: str) -> float:
        """Return mean IoU over dev, the same on every rank; sets the network back to training mode."""
        net.eval()
        device = next(net.parameters()).device
        counts: list[tuple[int, int, int]] = []
        for batch in self._load():
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
            with torch.no_grad(), autocast:
                predicted = (net(batch.to(device).images, batch.texts)[:, 0] > 0).cpu().numpy()
            truth, valid = batch.mask[:, 0].numpy() >= 128, batch.valid[:, 0].numpy() > 0
            counts += [metrics.pixel_counts(*planes) for planes in zip(predicted, truth, valid, strict=True)]
        net.train()
        return self._mean_iou(counts)

    def _load(self) -> Iterator[Batch]:
        yield from data_loader(self._data, self._batches, self._workers)

    def _mean_iou(self, counts: list[tuple[int, int, int]]) -> float:
        ious = [float(iou) for iou in metrics.ious(np.array(counts, np.int64).reshape(-1, 3))]
        if self._world_size > 1:
            gathered: list[list[float]] = [[] for _ in range(self._world_size)]
            dist.all_gather_object(gathered, ious)
            ious = [iou for rank_ious in gathered for iou in rank_ious]
        return sum(ious) / len(ious)


def _chunks(split: Split) -> Iterator[list[DecodedSample]]:
    for start in range(0, len(split), BATCH):
        yield [split[index] for index in range(start, min(start + BATCH, len(split)))]


def _predicted(predictor: Predictor, split: Split) -> Iterator[tuple[DecodedSample, Probability]]:
    for samples in _chunks(split):
        masks = predict_masks(predictor, [s.image for s in samples], [s.text for s in samples])
        yield from zip(samples, masks, strict=True)


def _planes(sample: DecodedSample) -> tuple[Mask, Mask]:
    return sample.mask.astype(bool), sample.valid.astype(bool)


def derangement(count: int) -> npt.NDArray[np.int64]:
    """Return a fixed permutation (count,) that maps no index to itself, unless count is 1."""
    cycle = np.random.default_rng(0).permutation(count)
    result = np.empty(count, np.int64)
    result[cycle] = np.roll(cycle, 1)
    return result
