"""Random access to the samples of a split, from a local store or S3.

The table beside each tar holds the offsets of all parts, so that reading a part is one `pread`, and the
columns for filtering, so that filtering reads no sample. Training reads every sample of a split many times
and in random order. Each tar on S3 is therefore downloaded once, in one sequential read, verified by its
SHA-256 and cached under DAGSTER_HOME for all later epochs, runs and processes of this machine. Ranged reads
from the bucket would cost one round trip per sample and epoch, during which the GPU would idle.

Each part is verified by its SHA-256 when it is read; an error names the damaged sample.
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
from ..storage import paths
from ..storage.local import LocalStore
from ..storage.sample_tar import SAMPLE_PARTS
from ..storage.store import MissingObject, Store

CLASSES = ("edit_type", "category", "scope", "verdict")
_COLUMNS = ("key", *CLASSES, "area", "confidence", "offset", "part_bytes", "sha256")


class DatasetError(BananagramsError, RuntimeError):
    """An unreadable dataset; the message names the split, or shard and sample, and what to do."""


@dataclass(frozen=True)
class SampleTable:
    """The samples of one or more shards: one row per sample, in the order of the tars.

    `keys` and each column of `classes`: str objects (N,); `area`, `confidence`: float64 (N,), 0..1;
    `offsets` in the tar and `sizes`, in bytes: int64 (N, 5), one column per part of SAMPLE_PARTS;
    `digests`: the SHA-256 of each part, uint8 (N, 5, 32).
    """

    keys: npt.NDArray[Any]
    classes: dict[str, npt.NDArray[Any]]
    area: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]

    def select(
        self,
        min_confidence: float = 0.0,
        edit_types: Collection[str] = (),
        categories: Collection[str] = (),
        scopes: Collection[str] = (),
        verdicts: Collection[str] = (),
    ) -> npt.NDArray[np.int64]:
        """Return the indices of the rows that pass every filter; an empty filter passes all."""
        kept = self.confidence >= min_confidence
        for column, values in zip(CLASSES, (edit_types, categories, scopes, verdicts), strict=True):
            if values:
                kept &= np.isin(self.classes[column], list(values))
        return np.flatnonzero(kept)

    def matches_digest(self, row: int, part: str, data: bytes) -> bool:
        """Check `data` against the SHA-256 of a row's part."""
        return bool(hashlib.sha256(data).digest() == self.digests[row, SAMPLE_PARTS.index(part)].tobytes())


def read_index(store: Store, split: str) -> dict[str, Any]:
    """Read `index/<split>.json`. Raises DatasetError if it does not exist."""
    name = paths.index_json(split)
    try:
        index: dict[str, Any] = json.loads(store.read(name))
    except MissingObject:
        raise DatasetError(
            f"split {split!r} has no index in {store.describe(name)}: "
            "build the dataset first (`bananagrams build`)"
        ) from None
    return index


def read_sample_table(store: Store, shard: dict[str, Any]) -> SampleTable:
    """Read the table of a shard listed in an index. Raises DatasetError if table and index disagree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = paths.shard_table(shard["shard"])
    try:
        with store.local_path(name) as path:
            table = pq.read_table(path, columns=[*_COLUMNS], filters=[("status", "=", "written")])
    except MissingObject as error:
        raise DatasetError(f"{error}; rebuild the shard") from None
    except (pa.ArrowException, KeyError) as error:
        raise DatasetError(
            f"{store.describe(name)}: sample offsets are missing; rebuild the shard ({error})"
        ) from error
    if table.num_rows != shard["samples"]:
        raise DatasetError(
            f"{store.describe(shard['name'])}: has {table.num_rows} samples, but "
            f"{shard['samples']} according to its index; rebuild the index of split "
            f"{paths.split_of(shard['shard'])!r}"
        )
    sizes = _flattened(table.column("part_bytes")).to_numpy().reshape(-1, len(SAMPLE_PARTS))
    digests = bytes.fromhex("".join(_flattened(table.column("sha256")).to_pylist()))
    return SampleTable(
        _strings(table.column("key")),
        {column: _strings(table.column(column)) for column in CLASSES},
        table.column("area").to_numpy(),
        table.column("confidence").to_numpy(),
        _part_offsets(table.column("offset").to_numpy(), sizes),
        sizes,
        np.frombuffer(digests, np.uint8).reshape(-1, len(SAMPLE_PARTS), 32),
    )


def damaged_part_error(tar: str, key: str, part: str) -> DatasetError:
    """Return the error for a part whose bytes do not match its digest."""
    return DatasetError(
        f"{tar}, sample {key}: {part} is damaged: its SHA-256 does not match its table; rebuild the shard"
    )


class SplitReader:
    """Reads parts of a split's samples; open with `open_split_reader`.

    `digest` identifies the contents of the shards. `tar_of` is the index into `tars` of each row of `table`.
    """

    def __init__(self, name: str, digest: str, tars: list[str], table: SampleTable, tar_of: Any) -> None:
        self.name = name
        self.digest = digest
        self.table = table
        self._tars = tars
        self._tar_of = tar_of
        self._files: dict[tuple[int, int], int] = {}

    def read(self, row: int, part: str) -> bytes:
        """Read one of SAMPLE_PARTS of a row. Raises DatasetError if it is damaged."""
        column, tar = SAMPLE_PARTS.index(part), int(self._tar_of[row])
        owner = os.getpid(), tar  # loader processes open their own files
        if owner not in self._files:
            self._files[owner] = os.open(self._tars[tar], os.O_RDONLY)
        size, offset = int(self.table.sizes[row, column]), int(self.table.offsets[row, column])
        data = os.pread(self._files[owner], size, offset)
        if not self.table.matches_digest(row, part, data):
            raise damaged_part_error(self._tars[tar], self.table.keys[row], part)
        return data

    def location(self, row: int) -> str:
        """Return tar and sample of a row, for messages."""
        return f"{self._tars[int(self._tar_of[row])]}, sample {self.table.keys[row]}"

    def close(self) -> None:
        """Close the files that this process opened."""
        for owner in [owner for owner in self._files if owner[0] == os.getpid()]:
            os.close(self._files.pop(owner))


@contextmanager
def open_split_reader(store: Store, split: str) -> Iterator[SplitReader]:
    """Open a split for reading; its tars are on this machine while the block runs.

    Raises DatasetError if there is no index, a shard does not match the index, or the split has no samples.
    """
    index = read_index(store, split)
    shards = [shard for shard in index["shards"] if shard["samples"]]
    if not shards:
        raise DatasetError(
            f"split {split!r} holds no samples: no photo was assigned to it, or all its pairs were rejected; "
            f"see the tables beside its shards, or change splits.{split}.ratio"
        )
    tables = [read_sample_table(store, shard) for shard in shards]
    tar_of = np.repeat(np.arange(len(shards)), [len(table.keys) for table in tables])
    tars = [str(_local_tar(store, shard)) for shard in shards]
    reader = SplitReader(split, digest_of_index(index), tars, _concatenated(tables), tar_of)
    try:
        yield reader
    finally:
        reader.close()


def digest_of_index(index: dict[str, Any]) -> str:
    """Return 16 hex digits over the contents of a split's shards."""
    return digest_of([[shard["name"], shard["sha256"]] for shard in index["shards"]])


def _local_tar(store: Store, shard: dict[str, Any]) -> Path:
    """Return the shard's tar on this machine, downloaded if needed. Raises DatasetError."""
    if isinstance(store, LocalStore):
        with store.local_path(shard["name"]) as path:
            if path.stat().st_size != shard["bytes"]:
                raise DatasetError(
                    f"{path}: has {path.stat().st_size} bytes, but {shard['bytes']} according to its index; "
                    f"rebuild the index of split {paths.split_of(shard['shard'])!r}, or the shard"
                )
            return path
    folder = home_folder() / "cache" / digest_of(store.url)
    path = folder / f"{shard['shard']}-{shard['sha256'][:16]}.tar"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One of several processes, such as the ranks of a training run, downloads the shard.
        with (folder / f"{shard['shard']}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _download(store, shard, path)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot store a copy of {store.describe(shard['name'])}: {error.strerror or error}; "
            "DAGSTER_HOME sets the folder of such copies"
        ) from error
    return path


def _download(store: Store, shard: dict[str, Any], path: Path) -> None:
    """Copy a shard to `path`, verify its digest, and remove copies of earlier versions of the shard."""
    partial, digest = path.with_name(f"{shard['shard']}.part"), hashlib.sha256()
    with store.open(shard["name"]) as source, partial.open("wb") as target:
        while block := source.read(2**20):
            digest.update(block)
            target.write(block)
    if digest.hexdigest() != shard["sha256"]:
        partial.unlink()
        raise DatasetError(
            f"{store.describe(shard['name'])}: its SHA-256 is not that of its index: it was damaged or "
            f"rebuilt; rebuild the shard, or the index of split {paths.split_of(shard['shard'])!r}"
        )
    for earlier in path.parent.glob(f"{shard['shard']}-*.tar"):
        earlier.unlink()
    partial.replace(path)


def _concatenated(tables: list[SampleTable]) -> SampleTable:
    names = ("keys", "area", "confidence", "offsets", "sizes", "digests")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables]) for name in names
    }
    classes = {name: np.concatenate([table.classes[name] for table in tables]) for name in CLASSES}
    return SampleTable(classes=classes, **columns)


def _part_offsets(first: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the content offsets (N, 5) of the parts of samples whose first headers are at `first` (N,).

    A header is one block of 512 bytes, and contents are padded to whole blocks (POSIX.1-1988, ustar).
    """
    block = tarfile.BLOCKSIZE
    occupied = block + -(-sizes // block) * block
    return first[:, None] + np.cumsum(occupied, axis=1) - occupied + block


def _flattened(column: Any) -> Any:
    return column.combine_chunks().flatten()


def _strings(column: Any) -> npt.NDArray[Any]:
    """Convert a column of strings to str objects; equal strings share one object."""
    return np.asarray(column.fill_null("").to_pandas(deduplicate_objects=True).to_numpy(object))
