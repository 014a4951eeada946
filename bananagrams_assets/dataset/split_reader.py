"""The samples of a split, read at random from its tars on either store.

The tables beside the tars say where each part of a sample lies, so that a part is one `pread`, and what a
reader filters by, so that choosing samples reads none of them. Training reads every sample of a split many
times and in random order: from S3 each tar is therefore fetched once, in one sequential read, compared with
its SHA-256 and kept under DAGSTER_HOME for every later epoch, run and process of this machine. Ranged reads
of the bucket would cost a round trip a sample in each epoch, and would leave the GPU waiting for them.

Each part is compared with its SHA-256 as it is read: a damaged byte is an error with the sample's name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import digest_of
from ..errors import BananagramsError
from ..profiles import home_folder
from ..stages.shards import PARTS
from ..storage import paths
from ..storage.local import LocalStore
from ..storage.store import MissingObject, Store

CLASSES = ("edit_type", "category", "scope", "verdict")
_COLUMNS = ("key", *CLASSES, "area", "confidence", "offset", "part_bytes", "sha256")


class DatasetError(BananagramsError, RuntimeError):
    """A dataset that cannot be read; the message names the split, or shard and sample, and what to do."""


@dataclass(frozen=True)
class ShardRows:
    """A shard's samples as its table tells of them, a row each, in the order of the tar.

    `keys` and each of `classes` (by column): str objects (N,); `area`, `confidence`: float64 (N,), 0..1;
    `offsets` in the tar and `sizes`, in bytes: int64 (N, 5), a column for each of PARTS, as in `digests`, the
    SHA-256 of each, bytes (N, 5, 32) as uint8.
    """

    keys: npt.NDArray[Any]
    classes: dict[str, npt.NDArray[Any]]
    area: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]

    def chosen(
        self,
        min_confidence: float = 0.0,
        edit_types: Collection[str] = (),
        categories: Collection[str] = (),
        scopes: Collection[str] = (),
        verdicts: Collection[str] = (),
    ) -> npt.NDArray[np.int64]:
        """Numbers of the rows that pass every filter; an empty one lets all pass."""
        kept = self.confidence >= min_confidence
        for column, wanted in zip(CLASSES, (edit_types, categories, scopes, verdicts), strict=True):
            if wanted:
                kept &= np.isin(self.classes[column], list(wanted))
        return np.flatnonzero(kept)

    def is_whole(self, row: int, part: str, data: bytes) -> bool:
        """Whether these are the bytes that were written as a part of a row."""
        return bool(hashlib.sha256(data).digest() == self.digests[row, PARTS.index(part)].tobytes())


def read_index(store: Store, split: str) -> dict[str, Any]:
    """`index/<split>.json`. Raises DatasetError where there is none."""
    name = paths.index_json(split)
    try:
        index: dict[str, Any] = json.loads(store.read(name))
    except MissingObject:
        raise DatasetError(
            f"split {split!r} has no index in {store.describe(name)}: "
            "build the dataset first (`bananagrams build`)"
        ) from None
    return index


def read_rows(store: Store, shard: dict[str, Any]) -> ShardRows:
    """The rows of a shard of an index. Raises DatasetError where table and index disagree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = paths.shard_table(shard["shard"])
    try:
        with store.local_path(name) as path:
            table = pq.read_table(path, columns=[*_COLUMNS], filters=[("status", "=", "written")])
    except MissingObject as error:
        raise DatasetError(f"{error}; build the shard again") from None
    except (pa.ArrowException, KeyError) as error:
        raise DatasetError(
            f"{store.describe(name)}: does not say where samples lie; build the shard again ({error})"
        ) from error
    if table.num_rows != shard["samples"]:
        raise DatasetError(
            f"{store.describe(shard['name'])}: holds {table.num_rows} samples where its index says "
            f"{shard['samples']}; rebuild the index of split {paths.split_of(shard['shard'])!r}"
        )
    sizes = _flat(table.column("part_bytes")).to_numpy().reshape(-1, len(PARTS))
    digests = bytes.fromhex("".join(_flat(table.column("sha256")).to_pylist()))
    return ShardRows(
        _strings(table.column("key")),
        {column: _strings(table.column(column)) for column in CLASSES},
        table.column("area").to_numpy(),
        table.column("confidence").to_numpy(),
        _offsets(table.column("offset").to_numpy(), sizes),
        sizes,
        np.frombuffer(digests, np.uint8).reshape(-1, len(PARTS), 32),
    )


def damaged(place: str, key: str, part: str) -> DatasetError:
    """The error for a part that is not what was written."""
    return DatasetError(
        f"{place}, sample {key}: {part} is damaged: its SHA-256 is not that of what was written; "
        "build the shard again"
    )


class SplitParts:
    """The parts of a split's samples; open with `open_parts`. `digest` is of the shards' contents."""

    def __init__(self, name: str, digest: str, tars: list[str], rows: ShardRows, shard_of: Any) -> None:
        self.name = name
        self.digest = digest
        self.rows = rows
        self._tars = tars
        self._shard_of = shard_of
        self._files: dict[tuple[int, int], int] = {}

    def read(self, row: int, part: str) -> bytes:
        """One of PARTS of a row. Raises DatasetError, which names tar and sample, for a damaged one."""
        column, tar = PARTS.index(part), int(self._shard_of[row])
        mine = os.getpid(), tar  # loader processes open their own files
        if mine not in self._files:
            self._files[mine] = os.open(self._tars[tar], os.O_RDONLY)
        size, offset = int(self.rows.sizes[row, column]), int(self.rows.offsets[row, column])
        data = os.pread(self._files[mine], size, offset)
        if not self.rows.is_whole(row, part, data):
            raise damaged(self._tars[tar], self.rows.keys[row], part)
        return data

    def where(self, row: int) -> str:
        """Tar and sample of a row, for messages."""
        return f"{self._tars[int(self._shard_of[row])]}, sample {self.rows.keys[row]}"

    def close(self) -> None:
        """Close the files that this process opened."""
        for mine in [mine for mine in self._files if mine[0] == os.getpid()]:
            os.close(self._files.pop(mine))


@contextmanager
def open_parts(store: Store, split: str) -> Iterator[SplitParts]:
    """A split, its tars at hand on this machine.

    Raises DatasetError where there is no index, a shard is not what the index says, or no sample is left.
    """
    index = read_index(store, split)
    shards = [shard for shard in index["shards"] if shard["samples"]]
    if not shards:
        raise DatasetError(
            f"split {split!r} holds no samples: its photographs all fell into other splits, or all its "
            f"pairs were rejected; see the tables beside its shards, or change splits.{split}.ratio"
        )
    found = [read_rows(store, shard) for shard in shards]
    shard_of = np.repeat(np.arange(len(shards)), [len(rows.keys) for rows in found])
    tars = [str(_at_hand(store, shard)) for shard in shards]
    parts = SplitParts(split, digest_of_index(index), tars, _joined(found), shard_of)
    try:
        yield parts
    finally:
        parts.close()


def digest_of_index(index: dict[str, Any]) -> str:
    """16 hex digits over the contents of a split's shards."""
    return digest_of([[shard["name"], shard["sha256"]] for shard in index["shards"]])


def _at_hand(store: Store, shard: dict[str, Any]) -> Path:
    """A file of this machine that holds the shard, of the length that the index says."""
    if isinstance(store, LocalStore):
        with store.local_path(shard["name"]) as path:
            if path.stat().st_size != shard["bytes"]:
                raise DatasetError(
                    f"{path}: has {path.stat().st_size} bytes where its index says {shard['bytes']}; rebuild "
                    f"the index of split {paths.split_of(shard['shard'])!r}, or the shard"
                )
            return path
    folder = home_folder() / "cache" / digest_of(store.url)
    path = folder / f"{shard['shard']}-{shard['sha256'][:16]}.tar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes that want a shard, as the ranks of a training do, one fetches it.
        with (folder / f"{shard['shard']}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _fetch(store, shard, path)
    except OSError as error:
        raise DatasetError(
            f"{path}: a copy of {store.describe(shard['name'])} cannot be kept: {error.strerror or error}; "
            "copies of shards lie under DAGSTER_HOME"
        ) from error
    return path


def _fetch(store: Store, shard: dict[str, Any], path: Path) -> None:
    """Copy a shard, compare it with the index, and remove copies of what it was before."""
    partial, digest = path.with_name(f"{shard['shard']}.part"), hashlib.sha256()
    with store.open(shard["name"]) as source, partial.open("wb") as target:
        while block := source.read(2**20):
            digest.update(block)
            target.write(block)
    if digest.hexdigest() != shard["sha256"]:
        partial.unlink()
        raise DatasetError(
            f"{store.describe(shard['name'])}: its SHA-256 is not that of its index: it is damaged or was "
            f"built again; build the shard, or the index of split {paths.split_of(shard['shard'])!r}, again"
        )
    for earlier in path.parent.glob(f"{shard['shard']}-*.tar"):
        earlier.unlink()
    partial.replace(path)


def _joined(found: list[ShardRows]) -> ShardRows:
    names = ("keys", "area", "confidence", "offsets", "sizes", "digests")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(rows, name) for rows in found]) for name in names
    }
    classes = {name: np.concatenate([rows.classes[name] for rows in found]) for name in CLASSES}
    return ShardRows(classes=classes, **columns)


def _offsets(first: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the parts (N, 5) of samples lie whose first headers lie at `first` (N,).

    A header is a block of 512 bytes, and contents are filled up to whole blocks (POSIX.1-1988, ustar).
    """
    block = tarfile.BLOCKSIZE
    taken = block + -(-sizes // block) * block
    return first[:, None] + np.cumsum(taken, axis=1) - taken + block


def _flat(column: Any) -> Any:
    return column.combine_chunks().flatten()


def _strings(column: Any) -> npt.NDArray[Any]:
    """A column of strings as objects, equal ones being one object."""
    return np.asarray(column.fill_null("").to_pandas(deduplicate_objects=True).to_numpy(object))
