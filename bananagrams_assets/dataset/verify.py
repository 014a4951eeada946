"""Read a dataset back and say what is wrong with it."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ..progress import Log
from ..stages.shards import PARTS
from ..storage import paths
from ..storage.digests import digest_like
from ..storage.local import LocalStore
from ..storage.sample_tar import SampleError, read_folder, split_name
from ..storage.store import MissingObject, Store, StoreError
from ..storage.tables import read_table

SPLITS = ("train", "dev", "test")
_BLOCK = 512
_READ = 2**20


@dataclass(frozen=True)
class ReadBack:
    """Samples that a shard holds, and each fault found, with the sample's key."""

    samples: int
    faults: list[str]


@dataclass(frozen=True)
class Fault:
    """Something broken: in which file, in which sample and bytes of it where that can be told."""

    place: str
    what: str
    key: str = ""
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        sample = f" sample {self.key}:" if self.key else ""
        where = "" if self.first is None else f" bytes {self.first}-{self.last}:"
        return f"{self.place}:{sample}{where} {self.what}"


@dataclass(frozen=True)
class Verdict:
    """What was read, and what is wrong with it."""

    shards: int
    samples: int
    bytes: int
    faults: Sequence[Fault]


@dataclass
class _Shard:
    """What one tar or folder turned out to hold."""

    name: str
    place: str
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, source_id, split), in order."""
    faults: list[Fault] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""

    def add(self, what: str, key: str = "", first: int | None = None, end: int = 0) -> None:
        """Note a fault, of the bytes from `first` up to `end` where it lies in some."""
        last = None if first is None else max(first, end - 1)
        self.faults.append(Fault(self.place, what, key, first, last))


def verify(store: Store, workers: int, log: Log) -> Verdict:
    """Read every shard of a store, or of any folder or prefix of tars, or of a folder of extracted samples.

    Of each shard: the tar's structure; each sample's parts, that they decode, and that picture, mask and
    metadata agree in size; its table's rows and digests of each part; length and SHA-256 as the receipt
    and the split's index have them. Of the whole: no key twice, no photograph in two splits; and every
    other file that a receipt tells of. Memory holds a sample for each of `workers` and a shard's keys.
    Raises StoreError where there is no dataset, or the store cannot be reached.
    """
    names = [name for name in store.list("shards/") if name.endswith(".tar")]
    if not names:
        names = [name for name in store.list("") if name.endswith(".tar")]
    if not names and isinstance(store, LocalStore) and any(store.folder.glob("*.meta.json")):
        return _across([_read_extracted(store)])
    faults: list[Fault] = []
    indexes, receipts = _indexes(store, faults), _receipts(store, faults)
    if not (names or indexes or receipts):
        raise StoreError(f"{store.url}: no dataset is here: no tar, no index, no samples")
    others = {**indexes, **receipts}
    for name in names:
        others.pop(name, None)
    indexed = {paths.split_of(shard["shard"]) for shard in indexes.values()}
    with ThreadPoolExecutor(workers) as pool:
        reading = pool.map(lambda name: _read_shard(store, name), names)
        comparing = pool.map(lambda name: _compare(store, name, others[name]), sorted(others))

        def compared() -> Iterator[_Shard]:
            for number, shard in enumerate(reading, start=1):
                index = indexes.get(shard.name)
                _against(shard, receipts.get(shard.name), index)
                if index is None and paths.split_of(Path(shard.name).stem) in indexed:
                    shard.add("the index of its split does not have it: it is left from another build")
                log(f"[{number}/{len(names)}] {shard.name}: {len(shard.samples)} samples")
                yield shard

        verdict = _across(compared())
        return replace(verdict, faults=[*faults, *verdict.faults, *itertools.chain(*comparing)])


def photos_in_two_splits(store: Store, shards: Iterable[str]) -> dict[str, list[str]]:
    """Source photographs whose records are in more than one split: source_id → splits."""
    import numpy as np
    import pyarrow.parquet as parquet

    # Sixteen bytes a photograph: a dictionary of a large set's would be a tenfold of that.
    found: dict[str, list[Any]] = {}
    for shard in shards:
        with store.local_path(paths.manifest_table(shard)) as path:
            column = parquet.read_table(path, columns=["source_id"]).column("source_id").unique()
        found.setdefault(paths.split_of(shard), []).append(np.array(column.to_pylist(), "S16"))
    splits = {split: np.unique(np.concatenate(parts)) for split, parts in found.items()}
    leaks: dict[str, set[str]] = {}
    for one, other in itertools.combinations(splits, 2):
        for source in np.intersect1d(splits[one], splits[other], assume_unique=True):
            leaks.setdefault(source.decode(), set()).update((one, other))
    return {source: sorted(among) for source, among in sorted(leaks.items())}


def read_back(store: Store, name: str) -> ReadBack:
    """Read every sample of a dataset shard through `webdataset`, as its users do.

    A fault is a part that is missing or cannot be decoded, or a mask, picture and metadata that
    disagree about the size, each with the sample's key.
    """
    import webdataset

    faults, samples = [], 0
    try:
        with store.local_path(name) as path:
            # An empty shard is a finding of its own (few_rejected), not a fault of the tar.
            for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
                samples += 1
                faults += [f"{sample['__key__']}: {fault}" for _, fault in _faults(sample)]
    except MissingObject as error:
        faults.append(str(error))
    except Exception as error:  # webdataset raises whatever tarfile does, with the URL added
        faults.append(f"{store.describe(name)}: sample {samples + 1} cannot be read: {error}")
    return ReadBack(samples, faults)


@dataclass(frozen=True)
class _Member:
    """A part in a tar: `header` is where it begins, `start` and `end` where its content lies."""

    key: str
    part: str
    data: bytes
    header: int
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class _Reading:
    """A file read once, in order, counted and hashed, as `known` was if that is given."""

    def __init__(self, file: IO[bytes], known: str = "") -> None:
        self._file, self._digest, self.position = file, digest_like(known), 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self.position += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _members(file: _Reading, shard: _Shard) -> Iterator[_Member]:
    """The members of a tar; behind what is broken it goes on at the next block that is a header."""
    lost = False
    empty = 0
    while block := file.read(_BLOCK):
        header = file.position - len(block)
        if not block.strip(b"\0"):
            empty += 1
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if not lost:
                shard.add(f"no tar header: {error}", first=header, end=file.position)
            lost, empty = True, 0
            continue
        if empty:
            shard.add("empty blocks between samples", first=header - _BLOCK * empty, end=header)
        lost, empty = False, 0
        data, padding = file.read(info.size), file.read(-info.size % _BLOCK)
        start = header + _BLOCK
        try:
            key, part = split_name(info.name)
        except SampleError as error:
            shard.add(str(error), first=header, end=start)
            continue
        if start + info.size + -info.size % _BLOCK > file.position:
            shard.add(f"{part}: the file ends within it", key, header, file.position)
            return
        if padding.strip(b"\0"):
            shard.add(f"{part}: its padding is not empty", key, start + info.size, file.position)
        yield _Member(key, part, data, header, start)
    if empty < 2:
        shard.add("the end of the tar is missing", first=file.position, end=file.position)


def _read_shard(store: Store, name: str) -> _Shard:
    shard = _Shard(name, store.describe(name))
    try:
        rows = _rows(store, name, shard)
        with store.open(name) as opened:
            file = _Reading(opened)
            try:
                for key, members in itertools.groupby(_members(file, shard), key=lambda member: member.key):
                    _check_sample(key, list(members), rows.get(key) if rows is not None else {}, shard)
                while file.read(_READ):
                    continue
            finally:
                shard.bytes, shard.sha256 = file.position, file.sha256
    except StoreError as error:
        shard.add(_reason(shard, error))
        return shard
    present = {key for key, _, _ in shard.samples}
    for key in sorted((rows or {}).keys() - present):
        shard.add("its table has this sample, the tar has not", key)
    return shard


def _read_extracted(store: LocalStore) -> _Shard:
    shard = _Shard("", store.url)
    try:
        for sample in read_folder(store.folder):
            members = [_Member(sample.key, part, data, 0, 0) for part, data in sample.parts.items()]
            shard.bytes += sum(len(member.data) for member in members)
            _check_sample(sample.key, members, {}, shard)
    except SampleError as error:
        shard.add(str(error))
    shard.faults = [replace(fault, first=None, last=None) for fault in shard.faults]
    return shard


def _check_sample(key: str, members: Sequence[_Member], row: Mapping[str, Any] | None, shard: _Shard) -> None:
    """Add a sample and its faults. `row` is its table's: {} without a table, None where that lacks it."""
    found = {member.part: member for member in members}
    first, end = members[0].header, members[-1].end
    if len(found) < len(members):
        shard.add("a part is there twice", key, first, end)
    if row is None:
        shard.add("the tar has this sample, its table has not", key, first, end)
    elif row and row.get("offset") not in (None, first):
        shard.add(f"its table says that it begins at byte {row['offset']}", key, first, end)
    for part, sha256 in zip(PARTS, (row or {}).get("sha256") or (), strict=False):
        member = found.get(part)
        if member and hashlib.sha256(member.data).hexdigest() != sha256:
            shard.add(f"{part}: its bytes are not those that were written", key, member.start, member.end)
    for part, what in _faults({part: member.data for part, member in found.items()}):
        one = found.get(part)
        shard.add(what, key, one.start if one else first, one.end if one else end)
    if shard.samples and shard.samples[-1][0] >= key:
        shard.add(f"it stands behind {shard.samples[-1][0]}, out of the order of keys", key, first, end)
    try:
        meta = json.loads(found["meta.json"].data)
        shard.samples.append((key, str(meta["source_id"]), str(meta["split"])))
    except (KeyError, ValueError, TypeError):
        shard.samples.append((key, "", ""))  # told of by now
        return
    told = str(meta.get("key")), str(meta.get("shard"))
    if told[0] != key or (shard.name.startswith("shards/") and paths.shard_tar(told[1]) != shard.name):
        shard.add(f"its metadata is of {told[0]} in {told[1]}", key, first, end)
    if not (meta.get("license") and "attribution" in meta):
        shard.add("its metadata tells no licence or no attribution", key, first, end)


def _rows(store: Store, name: str, shard: _Shard) -> dict[str, dict[str, Any]] | None:
    """The samples that the table beside a tar says are in it; None where there is no table to be read."""
    table = name.removesuffix(".tar") + ".parquet"
    if not store.exists(table):
        return None
    try:
        return {row["key"]: row for row in read_table(store, table) if row["status"] == "written"}
    except (OSError, ValueError, KeyError, StoreError) as error:
        shard.add(f"its table {store.describe(table)} cannot be read: {first_line(error)}")
        return None


def _indexes(store: Store, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """What the splits' indexes say of each shard, by its tar's name: `bytes`, `sha256`, `samples`."""
    found: dict[str, dict[str, Any]] = {}
    for name in store.list("index/"):
        if name.removeprefix("index/").removesuffix(".json") not in SPLITS or not name.endswith(".json"):
            continue
        try:
            found.update({shard["name"]: shard for shard in json.loads(store.read(name))["shards"]})
        except (ValueError, KeyError, TypeError, StoreError) as error:
            faults.append(Fault(store.describe(name), f"cannot be read: {first_line(error)}"))
    return found


def _receipts(store: Store, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """`bytes` and `sha256` of every file that a receipt tells of, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for name in store.list("receipts/"):
        if name.endswith(".json"):
            try:
                found.update(json.loads(store.read(name))["files"])
            except (ValueError, KeyError, TypeError, StoreError) as error:
                faults.append(Fault(store.describe(name), f"cannot be read: {first_line(error)}"))
    return found


def _against(shard: _Shard, receipt: Mapping[str, Any] | None, index: Mapping[str, Any] | None) -> None:
    """Compare what was read with what its receipt and its split's index say of it."""
    for where, told in (("receipt", receipt), ("index", index)):
        if told is None or not shard.sha256:
            continue
        if (shard.bytes, shard.sha256) != (told["bytes"], told["sha256"]):
            shard.add(
                f"{shard.bytes:,} bytes of SHA-256 {shard.sha256}; its {where} says {told['bytes']:,} of "
                f"{told['sha256']}"
            )
    if index is not None and len(shard.samples) != index["samples"]:
        shard.add(f"{len(shard.samples)} samples; its index says {index['samples']}")


def _compare(store: Store, name: str, told: Mapping[str, Any]) -> list[Fault]:
    """A file that is no shard, with what its receipt says of it."""
    place = store.describe(name)
    try:
        with store.open(name) as opened:
            file = _Reading(opened, told["sha256"])
            while file.read(_READ):
                continue
    except MissingObject:
        return [Fault(place, "it is missing")]
    except StoreError as error:
        return [Fault(place, first_line(error).removeprefix(f"{place}: "))]
    if (file.position, file.sha256) == (told["bytes"], told["sha256"]):
        return []
    return [
        Fault(
            place,
            f"{file.position:,} bytes of SHA-256 {file.sha256}; its receipt says {told['bytes']:,} of "
            f"{told['sha256']}",
        )
    ]


def _across(shards: Iterable[_Shard]) -> Verdict:
    """All shards' faults, and those of the whole: a key in two of them, a photograph in two splits."""
    faults: list[Fault] = []
    count = samples = size = 0
    # On disk where it is large.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        database.execute("BEGIN")
        for table in ("keys", "photographs"):
            database.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        for shard in shards:
            count, samples, size = count + 1, samples + len(shard.samples), size + shard.bytes
            for key, source, split in shard.samples:
                if other := _other(database, "keys", key, shard.place):
                    shard.add(f"the key is in {other}, too", key)
                if source and (other := _other(database, "photographs", source, split)) not in ("", split):
                    shard.add(f"its photograph {source} is in {other} and in {split}", key)
            faults += shard.faults
    return Verdict(count, samples, size, faults)


def _other(database: sqlite3.Connection, table: str, name: str, place: str) -> str:
    """Where a name was met before; empty if nowhere."""
    added = database.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (name, place)).rowcount
    if added:
        return ""
    return str(database.execute(f"SELECT place FROM {table} WHERE name = ?", (name,)).fetchone()[0])


def _reason(shard: _Shard, error: Exception) -> str:
    return first_line(error).removeprefix(f"{shard.place}: ")


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _faults(sample: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """(part, what is wrong with it) of one sample."""
    from PIL import Image

    if missing := [part for part in PARTS if part not in sample]:
        return [(missing[0], f"{', '.join(missing)} missing")]
    faults: list[tuple[str, str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    for part in ("input.jpg", "mask.png"):
        try:
            with Image.open(io.BytesIO(sample[part])) as image:
                image.load()
                sizes[part] = image.size
                if part == "mask.png":
                    values = sorted(value for _, value in image.getcolors() or [(0, -1)])
                    if image.mode != "L" or not set(values) <= {0, 255}:
                        found = f"mode {image.mode}, values {values[:5]}"
                        faults.append((part, f"mask.png is not single-channel 0/255 ({found})"))
        except (OSError, ValueError, SyntaxError) as error:
            faults.append((part, f"{part} cannot be decoded: {first_line(error)}"))
    try:
        meta = json.loads(sample["meta.json"])
        sizes["meta.json"] = (meta["width"], meta["height"])
    except (ValueError, KeyError, TypeError) as error:
        faults.append(("meta.json", f"meta.json cannot be read: {first_line(error)}"))
    for part in ("text.txt", "summary.txt"):
        try:
            sample[part].decode()
        except UnicodeDecodeError as error:
            faults.append((part, f"{part} is not UTF-8: {error}"))
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{part} {size[0]} x {size[1]}" for part, size in sizes.items())
        faults.append(("mask.png", f"sizes disagree: {said}"))
    return faults
