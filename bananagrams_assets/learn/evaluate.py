"""Score a model on a split, beside what needs no model and what reads no words."""

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
from .dataset import Batch, Sample, Split, TrainingSet, loader, open_split
from .network import MaskNet
from .predict import Predictor, predict

BATCH = 16


def evaluate(predictor: Predictor, store: Store, profile: Profile, split: str) -> dict[str, Any]:
    """Metrics of a model on `train`, `dev` or `test`, at the pictures' own size; see `score`.

    The threshold is the one that the model was published with. Raises DatasetError where the split, or
    train, is not there or empty.
    """
    with open_split(store, "train") as train:
        mean = mean_mask(train.select(profile.train))
    with open_split(store, split) as samples:
        return score(predictor, samples, mean)


def score(predictor: Predictor, split: Split, mean: Mask) -> dict[str, Any]:
    """Metrics of an open split at the predictor's threshold, given the mean training mask.

    `model`: see metrics.summarise, and `average_precision`; `intervals`: 95% of the same figures.
    `baselines`: mean IoU of the empty, the full and the mean training mask; `shuffled`: with each picture
    given another one's instruction; `blind`: with no instruction at all. `gain_interval`: of the mean IoU
    over the best baseline's, `blind_gain` and its interval: of `blind` over it. `by_edit_type`,
    `by_category`, `by_scope`, `by_mask_size`: see metrics.by_group.
    """
    found = _Rows(partners(len(split)))
    for samples in _chunks(split):
        found.add(predictor, split, samples, mean)
    sources = found.sources
    counts, boundary = np.array(found.counts["model"], np.int64), np.array(found.boundary)
    each = {name: metrics.ious(np.array(rows, np.int64)) for name, rows in found.counts.items()}
    trivial = {name: float(each[name].mean()) for name in ("empty", "full", "mean")}
    best = max(trivial, key=lambda name: trivial[name])
    return {
        "split": split.name,
        "samples": len(split),
        "photographs": len(set(sources)),
        "dataset": split.digest,
        "threshold": predictor.threshold,
        "model": {
            **metrics.summarise(counts, boundary),
            "average_precision": metrics.average_precision(found.histogram),
        },
        "intervals": {
            **metrics.intervals(counts, sources, boundary),
            **{name: metrics.mean_interval(each[name], sources) for name in each if name != "model"},
        },
        "baselines": trivial,
        "gain_interval": metrics.mean_interval(each["model"] - each[best], sources),
        "shuffled": float(each["shuffled"].mean()),
        "blind": float(each["blind"].mean()),
        "blind_gain": float((each["blind"] - each[best]).mean()),
        "blind_gain_interval": metrics.mean_interval(each["blind"] - each[best], sources),
        **metrics.by_group(counts, found.groups, sources),
    }


def best_threshold(predictor: Predictor, split: Split) -> float:
    """The threshold with the highest mean IoU on an open split, which should not be test."""
    rows = []
    for samples in _chunks(split):
        masks = predict(predictor, [s.image for s in samples], [s.text for s in samples])
        for sample, probability in zip(samples, masks, strict=True):
            histogram = metrics.level_histogram(probability, *_planes(sample))
            rows.append(metrics.counts_by_threshold(histogram))
    return metrics.best_threshold(np.array(rows))


class _Rows:
    """What is kept of the samples that were scored: numbers and labels, no pixels."""

    def __init__(self, others: npt.NDArray[np.int64]) -> None:
        self.others = others
        self.counts: dict[str, list[tuple[int, int, int]]] = {
            name: [] for name in ("model", "shuffled", "blind", "empty", "full", "mean")
        }
        self.boundary: list[float] = []
        self.histogram = np.zeros((2, metrics.LEVELS), np.int64)
        self.sources: list[str] = []
        self.groups: dict[str, list[str]] = {
            name: [] for name in ("by_edit_type", "by_category", "by_scope", "by_mask_size")
        }

    def add(self, predictor: Predictor, split: Split, samples: Sequence[Sample], mean: Mask) -> None:
        start = len(self.sources)
        images = [sample.image for sample in samples]
        words = {
            "model": [sample.text for sample in samples],
            "shuffled": [split.text(int(self.others[start + i])) for i in range(len(samples))],
            "blind": [""] * len(samples),
        }
        masks = {name: predict(predictor, images, texts) for name, texts in words.items()}
        for i, sample in enumerate(samples):
            truth, known = _planes(sample)
            predicted = {name: masks[name][i] >= predictor.threshold for name in words}
            predicted.update(trivial_masks(mean, (truth.shape[0], truth.shape[1])))
            for name, mask in predicted.items():
                self.counts[name].append(metrics.count(mask, truth, known))
            self.boundary.append(metrics.boundary_f(predicted["model"], truth, known))
            self.histogram += metrics.level_histogram(masks["model"][i], truth, known)
            self.sources.append(str(sample.meta.get("source_id") or sample.key))
            for name in ("edit_type", "category", "scope"):
                self.groups[f"by_{name}"].append(str(sample.meta.get(name) or "unknown"))
            self.groups["by_mask_size"].append(metrics.size_bucket(truth, known))


class DevScorer:
    """Mean IoU on dev while training: at the training size, each rank scoring its share."""

    def __init__(self, dev: Split, train: Split, settings: TrainSettings, rank: int, world: int) -> None:
        self._data = TrainingSet(dev, settings.side_px, cache=not settings.workers)
        mine = range(rank, len(dev), world)
        size = max(1, settings.batch_size // world)
        self._batches = [
            [(0, index) for index in mine[start : start + size]] for start in range(0, len(mine), size)
        ]
        self._workers = settings.workers
        self._world = world
        trivial = trivial_masks(mean_mask(train), (settings.side_px, settings.side_px))
        found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in trivial}
        for batch in self._load():
            truth, known = batch.mask[:, 0].numpy() >= 128, batch.known[:, 0].numpy() > 0
            for name, mask in trivial.items():
                found[name] += [metrics.count(mask, *planes) for planes in zip(truth, known, strict=True)]
        self.baselines = {name: self._mean(counts) for name, counts in found.items()}
        """Mean IoU of the trivial masks."""
        self.baseline_words = ", ".join(f"{name} mask {value:.3f}" for name, value in self.baselines.items())

    def mean_iou(self, net: MaskNet, precision: str) -> float:
        """Mean IoU over dev, the same number on every rank; the network goes back to training mode."""
        net.eval()
        device = next(net.parameters()).device
        counts: list[tuple[int, int, int]] = []
        for batch in self._load():
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                predicted = (net(batch.to(device).images, batch.texts)[:, 0] > 0).cpu().numpy()
            truth, known = batch.mask[:, 0].numpy() >= 128, batch.known[:, 0].numpy() > 0
            counts += [metrics.count(*planes) for planes in zip(predicted, truth, known, strict=True)]
        net.train()
        return self._mean(counts)

    def _load(self) -> Iterator[Batch]:
        yield from loader(self._data, self._batches, self._workers)

    def _mean(self, counts: list[tuple[int, int, int]]) -> float:
        each = [float(value) for value in metrics.ious(np.array(counts, np.int64).reshape(-1, 3))]
        if self._world > 1:
            parts: list[list[float]] = [[] for _ in range(self._world)]
            dist.all_gather_object(parts, each)
            each = [value for part in parts for value in part]
        return sum(each) / len(each)


def _chunks(split: Split) -> Iterator[list[Sample]]:
    for start in range(0, len(split), BATCH):
        yield [split[index] for index in range(start, min(start + BATCH, len(split)))]


def _planes(sample: Sample) -> tuple[Mask, Mask]:
    return sample.mask.astype(bool), sample.known.astype(bool)


def partners(samples: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each of N samples another one, the same each time; with N = 1 itself."""
    cycle = np.random.default_rng(0).permutation(samples)
    other = np.empty(samples, np.int64)
    other[cycle] = np.roll(cycle, 1)
    return other
