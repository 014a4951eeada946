"""Training samples of a split: random access to its tars, in an order that a resumed run can continue.

The tars are not streamed (see stream.py). A table holds the offset of each sample's files, so that reading a
file is one `pread`, and the order is a pure function of seed and step. A run that is resumed on any number
of devices or loader processes continues with exactly the next samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import AugmentSettings, TrainSettings
from ..dataset.split_reader import DatasetError as DatasetError
from ..dataset.split_reader import SplitReader, open_split_reader
from ..storage.store import Store
from ..vision.geometry import polygon_mask
from ..vision.images import decode, decode_mask, resize
from .augment import augment

Plane = npt.NDArray[np.uint8]
TrainingItem = tuple[str, str, Plane, Plane, Plane, float]
"""Key, text, image uint8 RGB (S, S, 3), mask uint8 0..255, valid uint8 0/1 (S, S), weight in the loss."""

CACHE_BYTES = 256 * 2**20
NOT_GLOBAL = ("local", "nothing")
MAX_PIXELS = 2**30  # only against corrupt headers: the dataset build has already limited image sizes


@dataclass(frozen=True)
class DecodedSample:
    """A sample at its stored size: image uint8 RGB (H, W, 3); mask and valid uint8 0/1 (H, W).

    `valid` is 1 where the edited image covers the input.
    """

    key: str
    image: Plane
    mask: Plane
    valid: Plane
    text: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """B samples: images uint8 (B, 3, S, S), mask and valid uint8 (B, 1, S, S), weights float32 (B,).

    `mask` is the edited fraction of each pixel as 0..255, `valid` is 0/1, `weights` are the samples' weights
    in the loss.
    """

    keys: list[str]
    texts: list[str]
    images: Tensor
    mask: Tensor
    valid: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, images in channels_last memory format."""
        images = self.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        others = (part.to(device, non_blocking=True) for part in (self.mask, self.valid, self.weights))
        return Batch(self.keys, self.texts, images, *others)

    def micro_batches(self, count: int) -> Iterator[Batch]:
        """Yield the batch in `count` parts of equal size."""
        size = len(self.keys) // count
        tensors = (self.images, self.mask, self.valid, self.weights)
        for start in range(0, size * count, size):
            part = slice(start, start + size)
            yield Batch(self.keys[part], self.texts[part], *(tensor[part] for tensor in tensors))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by DataLoader."""
        tensors = (tensor.pin_memory() for tensor in (self.images, self.mask, self.valid, self.weights))
        return Batch(self.keys, self.texts, *tensors)


class Split(Sequence[DecodedSample]):
    """Samples of one split, all or a selection, in the order of its index. Open it with `open_split`."""

    def __init__(self, reader: SplitReader, rows: npt.NDArray[np.int64]) -> None:
        self.name = reader.name
        self.digest = reader.digest
        self._reader = reader
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Return the decoded sample at a position. Raises DatasetError if its files cannot be read."""
        row = self._rows[index]
        names = ("input.jpg", "mask.png", "text.txt", "meta.json")
        files = {part: self._reader.read(row, part) for part in names}
        return decode_sample(self._reader.location(row), self._reader.table.keys[row], files)

    def mask(self, index: int) -> Plane:
        """Read only the mask: uint8 0/1 (H, W)."""
        return decode_mask(self._reader.read(self._rows[index], "mask.png")).astype(np.uint8)

    def text(self, index: int) -> str:
        """Read only the instruction."""
        return self._reader.read(self._rows[index], "text.txt").decode()

    def meta(self, index: int) -> dict[str, Any]:
        """Read only meta.json."""
        meta: dict[str, Any] = json.loads(self._reader.read(self._rows[index], "meta.json"))
        return meta

    def where(
        self,
        min_confidence: float = 0.0,
        edit_types: Collection[str] = (),
        categories: Collection[str] = (),
        scopes: Collection[str] = (),
        verdicts: Collection[str] = (),
    ) -> Split:
        """Return the samples that pass every filter, without reading them; an empty filter passes all."""
        chosen = self._reader.table.select(min_confidence, edit_types, categories, scopes, verdicts)
        return Split(self._reader, self._rows[np.isin(self._rows, chosen)])

    def select(self, settings: TrainSettings) -> Split:
        """Return the samples for training, filtered by `min_confidence` and `include_global`."""
        return self.where(settings.min_confidence, verdicts=() if settings.include_global else NOT_GLOBAL)


class TrainingSet(Dataset[TrainingItem]):
    """Augmented samples at `side_px`, indexed by (epoch, index): equal indices give equal pixels.

    Without `settings` samples are not augmented. `sample_weight` computes a sample's weight in the loss from
    its meta.json; without it all weights are 1.
    """

    def __init__(
        self,
        split: Split,
        side_px: int,
        settings: AugmentSettings | None = None,
        seed: int = 0,
        cache: bool = True,
        sample_weight: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> None:
        self.split = split
        self.sample_weight = sample_weight
        self.side_px = side_px
        self.settings = settings
        self.seed = seed
        # Cached larger than side_px by the largest crop, so that a crop does not lose resolution.
        self._stored_px = round(side_px / (1 - (settings.crop if settings else 0)))
        fits = len(split) * self._stored_px**2 * 5 <= CACHE_BYTES
        self._cache: dict[int, TrainingItem] | None = {} if cache and fits else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> TrainingItem:
        epoch, index = epoch_and_index
        key, text, image, mask, valid, weight = self._stored(index)
        if self.settings is not None:
            rng = np.random.default_rng([self.seed, epoch, index])
            image, mask, valid, text = augment(image, mask, valid, text, self.settings, rng)
        square = (self.side_px, self.side_px)
        if mask.shape != square:
            image, mask, valid = (
                resize(image, square), resize(mask, square), to_square(valid, self.side_px)
            )  # fmt: skip
        return key, text, image, mask, valid, weight

    def _stored(self, index: int) -> TrainingItem:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.split[index]
        # No threshold at one half: it would remove thin letters at a small side and shift edges.
        mask = resize(sample.mask * np.uint8(255), (self._stored_px, self._stored_px))
        image, valid = (to_square(plane, self._stored_px) for plane in (sample.image, sample.valid))
        weight = self.sample_weight(sample.meta) if self.sample_weight else 1.0
        stored = sample.key, sample.text, image, mask, valid, weight
        if self._cache is not None:
            self._cache[index] = stored
        return stored


@contextmanager
def open_split(store: Store, name: str) -> Iterator[Split]:
    """Open a split for the block, with local copies of its tars (see dataset/split_reader.py).

    Raises DatasetError if the index is missing, a shard does not match the index, or the split has no
    samples.
    """
    with open_split_reader(store, name) as reader:
        yield Split(reader, np.arange(len(reader.table.keys)))


def decode_sample(location: str, key: str, parts: Mapping[str, bytes]) -> DecodedSample:
    """Decode a sample's files; error messages start with `location`. Raises DatasetError."""
    try:
        image = decode(parts["input.jpg"], MAX_PIXELS)
        mask = decode_mask(parts["mask.png"]).astype(np.uint8)
        text, meta = parts["text.txt"].decode(), json.loads(parts["meta.json"])
        overlap = np.asarray(meta["overlap"], np.float64).reshape(-1, 2)
        valid = polygon_mask(overlap, (mask.shape[1], mask.shape[0])).astype(np.uint8)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{location}: cannot be read: {error}; rebuild the shard") from error
    if mask.shape != image.shape[:2]:
        raise DatasetError(
            f"{location}: mask {mask.shape} and image {image.shape[:2]} differ in size; rebuild the shard"
        )
    return DecodedSample(key, image, mask, valid, text, meta)


def step_indices(
    samples: int, batch_size: int, seed: int, step: int, rank: int, world_size: int
) -> list[tuple[int, int]]:
    """Return the (epoch, index) pairs of one rank's share of a step.

    The sample sequence is one random permutation per epoch, concatenated. Each step takes the next
    `batch_size` samples of the sequence and deals them to the ranks in turn. No sample is dropped or
    repeated, and all ranks have equally many samples in every step.
    """
    positions = range(step * batch_size + rank, (step + 1) * batch_size, world_size)
    return [(i // samples, int(_permutation(samples, seed, i // samples)[i % samples])) for i in positions]


class StepSampler:
    """Batch sampler for a DataLoader: the `step_indices` of each step, counted from 0."""

    def __init__(
        self, samples: int, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> None:
        self.steps = steps
        self._step = lambda step: step_indices(samples, batch_size, seed, step, rank, world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self._step, self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def data_loader(
    dataset: TrainingSet, sampler: Iterable[list[tuple[int, int]]], workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """Return a DataLoader of a Batch per step of `sampler`; `workers` processes prefetch (0: none)."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def collate(samples: Sequence[TrainingItem]) -> Batch:
    """Stack samples of equal size into a batch."""
    keys, texts, images, masks, valid, weights = zip(*samples, strict=True)
    return Batch(
        list(keys),
        list(texts),
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(masks))[:, None],
        torch.from_numpy(np.stack(valid))[:, None],
        torch.tensor(weights, dtype=torch.float32),
    )


def to_square(plane: Plane, side_px: int) -> Plane:
    """Stretch an image (H, W, 3) or a 0/1 plane (H, W) to side_px by side_px, whatever its aspect ratio.

    Stretching, as in LAVT (Yang et al. 2022), instead of padding: no pixel is spent on padding, and "the left
    half" is the same half of the square for every aspect ratio.
    """
    if plane.shape[:2] == (side_px, side_px):
        return plane
    if plane.ndim == 3:
        return resize(plane, (side_px, side_px))
    return (resize(plane * np.uint8(255), (side_px, side_px)) >= 128).astype(np.uint8)


@lru_cache(maxsize=4)
def _permutation(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)
