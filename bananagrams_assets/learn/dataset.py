"""A split of the dataset as training samples: read at random from its tars, in an order that can resume.

The tars are not streamed (stream.py does that): a table of where each sample's files lie in them makes a
sample one `pread` a file, and makes the order a pure function of seed and step: a run that resumes, on any
number of devices or loader processes, goes on with exactly the samples that would have come next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import AugmentSettings, TrainSettings
from ..dataset.split_reader import DatasetError as DatasetError
from ..dataset.split_reader import SplitParts, open_parts
from ..storage.store import Store
from ..vision.images import decode, decode_mask, resize
from .augment import augment

Plane = npt.NDArray[np.uint8]
Item = tuple[str, str, Plane, Plane, Plane, float]
"""Key, text, picture uint8 RGB (S, S, 3), mask uint8 0..255, known uint8 0/1 (S, S), weight in the loss."""

CACHE_BYTES = 256 * 2**20
NOT_GLOBAL = ("local", "nothing")
MAX_PIXELS = 2**30  # a dataset's own pictures passed the builder's limits; this one only stops nonsense


@dataclass(frozen=True)
class Sample:
    """A sample as stored: picture uint8 RGB (H, W, 3); mask and known uint8 0/1 (H, W)."""

    key: str
    image: Plane
    mask: Plane
    known: Plane
    text: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """B keys and texts, pictures uint8 (B, 3, S, S), mask uint8 (B, 1, S, S), known uint8 0/1, weights (B,).

    mask is the edited share of each pixel, from 0 to 255; weights float32 are each sample's in the loss.
    """

    keys: list[str]
    texts: list[str]
    images: Tensor
    mask: Tensor
    known: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, pictures in channels_last order."""
        return Batch(
            self.keys,
            self.texts,
            self.images.to(device, non_blocking=True, memory_format=torch.channels_last),
            self.mask.to(device, non_blocking=True),
            self.known.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
        )

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` parts of equal size."""
        size = len(self.keys) // count
        planes = (self.images, self.mask, self.known, self.weights)
        for start in range(0, size * count, size):
            part = slice(start, start + size)
            yield Batch(self.keys[part], self.texts[part], *(plane[part] for plane in planes))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader calls this."""
        planes = (plane.pin_memory() for plane in (self.images, self.mask, self.known, self.weights))
        return Batch(self.keys, self.texts, *planes)


class Split(Sequence[Sample]):
    """The samples of one split, or some of them, in the order of its index. Open with `open_split`."""

    def __init__(self, parts: SplitParts, rows: npt.NDArray[np.int64]) -> None:
        self.name = parts.name
        self.digest = parts.digest
        self._parts = parts
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The sample at a position, decoded. Raises DatasetError if its files cannot be read."""
        row = self._rows[index]
        names = ("input.jpg", "mask.png", "text.txt", "meta.json")
        found = {part: self._parts.read(row, part) for part in names}
        return decode_sample(self._parts.where(row), self._parts.rows.keys[row], found)

    def mask(self, index: int) -> Plane:
        """The mask alone, uint8 0/1 (H, W)."""
        return decode_mask(self._parts.read(self._rows[index], "mask.png")).astype(np.uint8)

    def text(self, index: int) -> str:
        """The instruction alone."""
        return self._parts.read(self._rows[index], "text.txt").decode()

    def meta(self, index: int) -> dict[str, Any]:
        """The content of meta.json alone."""
        found: dict[str, Any] = json.loads(self._parts.read(self._rows[index], "meta.json"))
        return found

    def where(
        self,
        min_confidence: float = 0.0,
        edit_types: Collection[str] = (),
        categories: Collection[str] = (),
        scopes: Collection[str] = (),
        verdicts: Collection[str] = (),
    ) -> Split:
        """The samples that pass every filter; an empty one lets all pass. Reads none of them."""
        chosen = self._parts.rows.chosen(min_confidence, edit_types, categories, scopes, verdicts)
        return Split(self._parts, self._rows[np.isin(self._rows, chosen)])

    def select(self, settings: TrainSettings) -> Split:
        """The samples that are confident enough and, unless whole-picture edits are wanted, local."""
        return self.where(settings.min_confidence, verdicts=() if settings.include_global else NOT_GLOBAL)


class TrainingSet(Dataset[Item]):
    """Samples at `side_px`, augmented, addressed by (epoch, position): the same address, the same pixels.

    `weigh` gives a sample's weight in the loss from its meta; without it all weigh 1.
    """

    def __init__(
        self,
        split: Split,
        side_px: int,
        settings: AugmentSettings | None = None,
        seed: int = 0,
        cache: bool = True,
        weigh: Callable[[Mapping[str, Any]], float] | None = None,
    ) -> None:
        self.split = split
        self.weigh = weigh
        self.side_px = side_px
        self.settings = settings
        self.seed = seed
        # Stored larger than needed by what a crop may cut away, so that a crop loses no resolution.
        self._stored_px = round(side_px / (1 - (settings.crop if settings else 0)))
        fits = len(split) * self._stored_px**2 * 5 <= CACHE_BYTES
        self._cache: dict[int, Item] | None = {} if cache and fits else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        key, text, image, mask, known, weight = self._stored(index)
        if self.settings is not None:
            rng = np.random.default_rng([self.seed, epoch, index])
            image, mask, known, text = augment(image, mask, known, text, self.settings, rng)
        square = (self.side_px, self.side_px)
        if mask.shape != square:
            image, mask, known = (
                resize(image, square), resize(mask, square), to_square(known, self.side_px)
            )  # fmt: skip
        return key, text, image, mask, known, weight

    def _stored(self, index: int) -> Item:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.split[index]
        # Not cut at one half: thin letters would be lost at a small side, and an edge placed less exactly.
        mask = resize(sample.mask * np.uint8(255), (self._stored_px, self._stored_px))
        image, known = (to_square(plane, self._stored_px) for plane in (sample.image, sample.known))
        weight = self.weigh(sample.meta) if self.weigh else 1.0
        stored = sample.key, sample.text, image, mask, known, weight
        if self._cache is not None:
            self._cache[index] = stored
        return stored


@contextmanager
def open_split(store: Store, name: str) -> Iterator[Split]:
    """The split, its tars at hand on this machine (see data/read.py) while the block runs.

    Raises DatasetError where there is no index, a shard is not what the index says, or no sample is left.
    """
    with open_parts(store, name) as parts:
        yield Split(parts, np.arange(len(parts.rows.keys)))


def decode_sample(where: str, key: str, parts: Mapping[str, bytes]) -> Sample:
    """A sample of its files; `where` names it in messages. Raises DatasetError if they cannot be read."""
    try:
        image = decode(parts["input.jpg"], MAX_PIXELS)
        mask = decode_mask(parts["mask.png"]).astype(np.uint8)
        text, meta = parts["text.txt"].decode(), json.loads(parts["meta.json"])
        known = draw_polygon(meta["overlap"], mask.shape)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{where}: cannot be read: {error}; rebuild the shard") from error
    if mask.shape != image.shape[:2]:
        raise DatasetError(
            f"{where}: mask {mask.shape} and picture {image.shape[:2]} differ in size; rebuild the shard"
        )
    return Sample(key, image, mask, known, text, meta)


def addresses(samples: int, batch: int, seed: int, step: int, rank: int, world: int) -> list[tuple[int, int]]:
    """The (epoch, position) of each sample of one rank's part of one step.

    Epochs are permutations laid end to end; step s takes the s-th run of `batch` samples and its ranks
    take turns in it. Nothing is dropped or repeated, and every rank has as many samples at every step.
    """
    stream = range(step * batch + rank, (step + 1) * batch, world)
    return [(at // samples, int(_order(samples, seed, at // samples)[at % samples])) for at in stream]


class Steps:
    """The addresses of one rank's part of each step from `first` to before `last`, for a DataLoader."""

    def __init__(
        self, samples: int, batch: int, seed: int, first: int, last: int, rank: int = 0, world: int = 1
    ) -> None:
        self.steps = range(first, last)
        self._step = lambda step: addresses(samples, batch, seed, step, rank, world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(self._step, self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def loader(
    dataset: TrainingSet, steps: Iterable[list[tuple[int, int]]], workers: int, pin: bool = False
) -> DataLoader[Any]:
    """The Batch of each list of addresses, loaded ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        dataset,
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )


def collate(samples: Sequence[Item]) -> Batch:
    """Stack samples of one size."""
    keys, texts, images, masks, known, weights = zip(*samples, strict=True)
    return Batch(
        list(keys),
        list(texts),
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(masks))[:, None],
        torch.from_numpy(np.stack(known))[:, None],
        torch.tensor(weights, dtype=torch.float32),
    )


def to_square(plane: Plane, side_px: int) -> Plane:
    """A picture (H, W, 3) or a 0/1 plane (H, W) at side_px by side_px, its sides stretched alike or not.

    Stretching, as LAVT (Yang et al. 2022) does, where others pad: no pixel of a step is wasted on
    padding, and "the left half" is the same half of the square whatever the photograph's shape.
    """
    if plane.shape[:2] == (side_px, side_px):
        return plane
    if plane.ndim == 3:
        return resize(plane, (side_px, side_px))
    return (resize(plane * np.uint8(255), (side_px, side_px)) >= 128).astype(np.uint8)


def draw_polygon(points: Any, shape: tuple[int, int]) -> Plane:
    """A polygon of (x, y) in px, as pairs or flat, filled → uint8 0/1 (H, W)."""
    polygon = np.asarray(points, np.float64).reshape(-1, 2)
    plane = np.zeros(shape, np.uint8)
    # Sub-pixel corners as fixed-point numbers, which is how OpenCV takes them.
    fixed = np.round(polygon * 256).astype(np.int32)
    cv2.fillPoly(plane, [fixed], 1, shift=8)
    return plane


@lru_cache(maxsize=4)
def _order(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)
