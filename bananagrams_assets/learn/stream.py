"""A split as a WebDataset pipeline that reads its tars sequentially, for datasets too large to copy locally.

Training uses `dataset.Split` instead, which has random access and can resume in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any, cast

import webdataset

from ..dataset.split_reader import DatasetError, damaged_part_error, read_index, read_sample_table
from ..storage.open_store import open_store
from ..storage.sample_tar import SAMPLE_PARTS, SampleError, read_samples
from ..storage.store import Store
from .dataset import decode_sample


def stream_split(
    store: Store,
    name: str,
    min_confidence: float = 0.0,
    edit_types: Collection[str] = (),
    categories: Collection[str] = (),
    scopes: Collection[str] = (),
    verdicts: Collection[str] = (),
    shuffle: int = 0,
    seed: int = 0,
    decoded: bool = True,
) -> webdataset.DataPipeline:
    """Return a pipeline over the samples of a split, each once per epoch; ranks and workers share the shards.

    An empty filter passes all samples. `shuffle` is the size of the shuffle buffer in samples and also
    shuffles the shards; 0 keeps the order. The pipeline yields `dataset.DecodedSample`s; with `decoded`
    false it yields webdataset's dictionaries of `__key__`, `__url__` and the parts' bytes. `.compose(...)`
    adds stages.

    Raises DatasetError if there is no index. Iterating raises DatasetError for a damaged part, with the
    names of shard and sample, and for a tar whose SHA-256 is not that of the index.
    """
    index = read_index(store, name)
    shards = {shard["name"]: shard for shard in index["shards"] if shard["samples"]}
    if not shards:
        raise DatasetError(f"split {name!r} holds no samples; see the tables beside its shards")
    filters = {
        "min_confidence": min_confidence, "edit_types": edit_types, "categories": categories,
        "scopes": scopes, "verdicts": verdicts,
    }  # fmt: skip
    stages: list[Any] = [webdataset.SimpleShardList(list(shards))]
    if shuffle:
        stages.append(webdataset.detshuffle(len(shards), seed=seed))
    stages += [webdataset.split_by_node, webdataset.split_by_worker, _ReadShards(store, shards, filters)]
    if shuffle:
        stages.append(webdataset.detshuffle(shuffle, seed=seed))
    if decoded:
        stages.append(webdataset.map(_decode))
    return webdataset.DataPipeline(*stages)


def _decode(sample: dict[str, Any]) -> Any:
    return decode_sample(f"{sample['__url__']}, sample {sample['__key__']}", sample["__key__"], sample)


class _ReadShards:
    """Pipeline stage that yields the samples of each shard; every process opens its own store."""

    def __init__(self, store: Store, shards: dict[str, dict[str, Any]], filters: dict[str, Any]) -> None:
        self._url, self._shards, self._filters = store.url, shards, filters
        self._pid_and_store: tuple[int, Store] | None = (os.getpid(), store)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid_and_store": None}

    def __call__(self, items: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if self._pid_and_store is None or self._pid_and_store[0] != os.getpid():
            self._pid_and_store = os.getpid(), open_store(self._url)
        for item in items:
            yield from self._read(self._pid_and_store[1], self._shards[item["url"]])

    def _read(self, store: Store, shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
        tar, table = store.describe(shard["name"]), read_sample_table(store, shard)
        row_of = {key: row for row, key in enumerate(table.keys)}
        selected = set(table.select(**self._filters).tolist())
        last = "the start"
        with store.open(shard["name"]) as file:
            reader = _HashingReader(file)
            try:
                for sample in read_samples(cast("IO[bytes]", reader)):
                    if sample.key not in row_of or set(sample.parts) != set(SAMPLE_PARTS):
                        raise DatasetError(
                            f"{tar}, sample {sample.key}: does not match its table; rebuild the shard"
                        )
                    row, last = row_of[sample.key], f"sample {sample.key}"
                    for part in SAMPLE_PARTS:
                        if not table.matches_digest(row, part, sample.parts[part]):
                            raise damaged_part_error(tar, sample.key, part)
                    if row in selected:
                        yield {"__key__": sample.key, "__url__": tar, **sample.parts}
            except SampleError as error:
                raise DatasetError(f"{tar}, after {last}: {error}; rebuild the shard") from error
        if reader.sha256.hexdigest() != shard["sha256"]:
            raise DatasetError(f"{tar}: its SHA-256 is not that of its index; rebuild the shard")


class _HashingReader:
    """A file for reading that hashes the bytes it reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data
