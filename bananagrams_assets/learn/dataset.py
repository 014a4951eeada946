"""A split of the dataset as training samples: read at random from its tars, in an order that can resume.

The tars are not streamed. A table of where each sample's files lie in them makes a sample one `pread`
a file, and makes the order a pure function of seed and step: a run that resumes, on any number of
devices or loader processes, goes on with exactly the samples that would have come next.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import AugmentSettings, TrainSettings
from ..data import layout
from ..data.samples import split_name
from ..data.store import MissingObject, Store
from ..vision.images import decode, decode_mask, resize
from .augment import augment

Plane = npt.NDArray[np.uint8]
Item = tuple[str, str, Plane, Plane, Plane, float]
"""Key, text, picture uint8 RGB (S, S, 3), mask uint8 0..255, known uint8 0/1 (S, S), weight in the loss."""

CACHE_BYTES = 256 * 2**20
MAX_PIXELS = 2**30  # a dataset's own pictures passed the builder's limits; this one only stops nonsense


class DatasetError(RuntimeError):
    """A dataset that cannot be trained on; the message names the split or shard and what to do."""


class Place(NamedTuple):
    """Where one file of a sample lies: the tar's number, the first byte, the length in bytes."""

    tar: int
    offset: int
    size: int


class Entry(NamedTuple):
    """A sample that was not read yet."""

    key: str
    picture: Place
    mask: Place
    text: Place
    meta: Place


@dataclass(frozen=True)
class Sample:
    """A sample as stored: picture uint8 RGB (H, W, 3); mask and known uint8 0/1 (H, W)."""

    key: str
    picture: Plane
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
    pictures: Tensor
    mask: Tensor
    known: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, pictures in channels_last order."""
        return Batch(
            self.keys,
            self.texts,
            self.pictures.to(device, non_blocking=True, memory_format=torch.channels_last),
            self.mask.to(device, non_blocking=True),
            self.known.to(device, non_blocking=True),
            self.weights.to(device, non_blocking=True),
        )

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in `count` parts of equal size."""
        size = len(self.keys) // count
        planes = (self.pictures, self.mask, self.known, self.weights)
        for start in range(0, size * count, size):
            part = slice(start, start + size)
            yield Batch(self.keys[part], self.texts[part], *(plane[part] for plane in planes))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; DataLoader calls this."""
        planes = (plane.pin_memory() for plane in (self.pictures, self.mask, self.known, self.weights))
        return Batch(self.keys, self.texts, *planes)


class Split(Sequence[Sample]):
    """The samples of one split, in the order of its index. Open with `open_split`."""

    def __init__(self, name: str, tars: list[str], entries: list[Entry], digest: str) -> None:
        self.name = name
        self.digest = digest
        self._tars = tars
        self._entries = entries
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        """The sample at a position, decoded. Raises DatasetError if its files cannot be read."""
        entry = self._entries[index]
        try:
            picture = decode(self._read(entry.picture), MAX_PIXELS)
            mask = decode_mask(self._read(entry.mask)).astype(np.uint8)
            meta = json.loads(self._read(entry.meta))
            known = draw_polygon(meta["overlap"], mask.shape)
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self._where(entry)}: cannot be read: {error}; rebuild the shard") from error
        if mask.shape != picture.shape[:2]:
            raise DatasetError(
                f"{self._where(entry)}: mask {mask.shape} and picture {picture.shape[:2]} differ in size; "
                "rebuild the shard"
            )
        return Sample(entry.key, picture, mask, known, self._read(entry.text).decode(), meta)

    def mask(self, index: int) -> Plane:
        """The mask alone, uint8 0/1 (H, W)."""
        return decode_mask(self._read(self._entries[index].mask)).astype(np.uint8)

    def text(self, index: int) -> str:
        """The instruction alone."""
        return self._read(self._entries[index].text).decode()

    def meta(self, index: int) -> dict[str, Any]:
        """The content of meta.json alone."""
        found: dict[str, Any] = json.loads(self._read(self._entries[index].meta))
        return found

    def select(self, settings: TrainSettings) -> Split:
        """The samples that are confident enough and, unless whole-picture edits are wanted, local."""
        if settings.min_confidence == 0 and settings.include_global:
            return self
        kept = []
        for entry in self._entries:
            found = json.loads(self._read(entry.meta))["mask"]
            if found["confidence"] >= settings.min_confidence and (
                settings.include_global or not found["is_global"]
            ):
                kept.append(entry)
        chosen = Split(self.name, self._tars, kept, self.digest)
        chosen._files = self._files  # closed together
        return chosen

    def _read(self, place: Place) -> bytes:
        mine = os.getpid(), place.tar  # loader processes open their own files
        if mine not in self._files:
            self._files[mine] = os.open(self._tars[place.tar], os.O_RDONLY)
        data = os.pread(self._files[mine], place.size, place.offset)
        if len(data) != place.size:
            raise DatasetError(f"{self._tars[place.tar]}: ends too early; rebuild the shard")
        return data

    def close(self) -> None:
        """Close the files that this process opened."""
        for mine in [mine for mine in self._files if mine[0] == os.getpid()]:
            os.close(self._files.pop(mine))

    def _where(self, entry: Entry) -> str:
        return f"{self._tars[entry.mask.tar]}, sample {entry.key}"


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
        key, text, picture, mask, known, weight = self._stored(index)
        if self.settings is not None:
            rng = np.random.default_rng([self.seed, epoch, index])
            picture, mask, known, text = augment(picture, mask, known, text, self.settings, rng)
        square = (self.side_px, self.side_px)
        if mask.shape != square:
            picture, mask, known = (
                resize(picture, square), resize(mask, square), to_square(known, self.side_px)
            )  # fmt: skip
        return key, text, picture, mask, known, weight

    def _stored(self, index: int) -> Item:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        sample = self.split[index]
        # Not cut at one half: thin letters would be lost at a small side, and an edge placed less exactly.
        mask = resize(sample.mask * np.uint8(255), (self._stored_px, self._stored_px))
        picture, known = (to_square(plane, self._stored_px) for plane in (sample.picture, sample.known))
        weight = self.weigh(sample.meta) if self.weigh else 1.0
        stored = sample.key, sample.text, picture, mask, known, weight
        if self._cache is not None:
            self._cache[index] = stored
        return stored


@contextmanager
def open_split(store: Store, name: str) -> Iterator[Split]:
    """The split, its tars at hand on this machine (from S3 they are fetched whole) while the block runs.

    Raises DatasetError where there is no index, a shard is not what the index says, or no sample is left.
    """
    try:
        content = store.read(layout.index_json(name))
    except MissingObject:
        raise DatasetError(
            f"split {name!r} has no index in {store.describe(layout.index_json(name))}: "
            "build the dataset first (`bananagrams build`)"
        ) from None
    index = json.loads(content)
    shards = [shard for shard in index["shards"] if shard["samples"]]
    with ExitStack() as stack:
        tars = [str(stack.enter_context(store.local_path(shard["name"]))) for shard in shards]
        entries: list[Entry] = []
        for number, (tar, shard) in enumerate(zip(tars, shards, strict=True)):
            found = scan(Path(tar), number)
            if len(found) != shard["samples"]:
                raise DatasetError(
                    f"{store.describe(shard['name'])}: holds {len(found)} samples where its index says "
                    f"{shard['samples']}; rebuild the index of split {name!r}"
                )
            entries += found
        if not entries:
            raise DatasetError(
                f"split {name!r} holds no samples: its photographs all fell into other splits, or all its "
                f"pairs were rejected; see the tables beside its shards, or change splits.{name}.ratio"
            )
        split = Split(name, tars, entries, digest_of_index(index))
        try:
            yield split
        finally:
            split.close()


def digest_of_index(index: dict[str, Any]) -> str:
    """16 hex digits over the contents of a split's shards."""
    from ..config import digest_of

    return digest_of([[shard["name"], shard["sha256"]] for shard in index["shards"]])


def scan(tar: Path, number: int) -> list[Entry]:
    """The samples of one tar, from its headers alone. Raises DatasetError if parts of a sample lack."""
    samples: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(tar) as file:
            for member in file:
                key, part = split_name(member.name)
                place = Place(number, member.offset_data, member.size)
                samples.setdefault(key, {})[part.partition(".")[0]] = place
    except (tarfile.TarError, ValueError) as error:
        raise DatasetError(f"{tar}: not a dataset shard: {error}") from error
    for key, parts in samples.items():
        if missing := {"input", "mask", "text", "meta"} - set(parts):
            raise DatasetError(f"{tar}, sample {key}: has no {', '.join(sorted(missing))}; rebuild the shard")
    return [
        Entry(key, parts["input"], parts["mask"], parts["text"], parts["meta"])
        for key, parts in samples.items()
    ]


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
    keys, texts, pictures, masks, known, weights = zip(*samples, strict=True)
    return Batch(
        list(keys),
        list(texts),
        torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
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
