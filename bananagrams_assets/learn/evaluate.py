"""Score a model on a split, beside what needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..config import Profile, TrainSettings
from ..data.store import Store
from . import metrics
from .baselines import Mask, mean_mask, trivial_masks
from .dataset import Batch, Split, TrainingSet, loader, open_split
from .network import MaskNet
from .predict import Predictor, predict

THRESHOLD = 0.5
BATCH = 16


def evaluate(predictor: Predictor, store: Store, profile: Profile, split: str) -> dict[str, Any]:
    """Metrics of a model on `train`, `dev` or `test`, at the pictures' own size.

    `model` (see metrics.summarise), `baselines` (mean IoU of empty, full and mean training mask), `shuffled`
    (the mean IoU with each picture given another one's instruction: a model that reads falls), and
    `by_edit_type` and `by_scope`. Raises DatasetError where the split, or train, is not there or empty.
    """
    with open_split(store, "train") as train:
        mean = mean_mask(train.select(profile.train))
    with open_split(store, split) as samples:
        return score(predictor, samples, mean)


def score(predictor: Predictor, split: Split, mean: Mask) -> dict[str, Any]:
    """`evaluate` of an open split, given the mean training mask."""
    others = partners(len(split))
    model, shuffled = [], []
    trivial: dict[str, list[tuple[int, int, int]]] = {"empty": [], "full": [], "mean": []}
    edit_types: list[str] = []
    scopes: list[str] = []
    for start in range(0, len(split), BATCH):
        samples = [split[index] for index in range(start, min(start + BATCH, len(split)))]
        pictures = [sample.picture for sample in samples]
        texts = [sample.text for sample in samples]
        other = [split.text(int(others[start + i])) for i in range(len(samples))]
        own, wrong = predict(predictor, pictures, texts), predict(predictor, pictures, other)
        for sample, right_mask, wrong_mask in zip(samples, own, wrong, strict=True):
            truth, known = sample.mask.astype(bool), sample.known.astype(bool)
            model.append(metrics.count(right_mask >= THRESHOLD, truth, known))
            shuffled.append(metrics.count(wrong_mask >= THRESHOLD, truth, known))
            for name, mask in trivial_masks(mean, (truth.shape[0], truth.shape[1])).items():
                trivial[name].append(metrics.count(mask, truth, known))
            edit_types.append(str(sample.meta.get("edit_type") or "unknown"))
            scopes.append(str(sample.meta.get("scope") or "unknown"))
    counts = np.array(model, np.int64)
    groups = metrics.by_group(counts, {"by_edit_type": edit_types, "by_scope": scopes})
    return {
        "split": split.name,
        "samples": len(split),
        "dataset": split.digest,
        "model": metrics.summarise(counts),
        "baselines": {
            name: float(metrics.ious(np.array(found, np.int64)).mean()) for name, found in trivial.items()
        },
        "shuffled": float(metrics.ious(np.array(shuffled, np.int64)).mean()),
        **groups,
    }


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
            truth, known = batch.mask[:, 0].numpy() > 0, batch.known[:, 0].numpy() > 0
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
                predicted = (net(batch.to(device).pictures, batch.texts)[:, 0] > 0).cpu().numpy()
            truth, known = batch.mask[:, 0].numpy() > 0, batch.known[:, 0].numpy() > 0
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


def partners(samples: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each of N samples another one, the same each time; with N = 1 itself."""
    cycle = np.random.default_rng(0).permutation(samples)
    other = np.empty(samples, np.int64)
    other[cycle] = np.roll(cycle, 1)
    return other
