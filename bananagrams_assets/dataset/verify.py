"""Verify a dataset: read all of its files and report every fault."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from ..progress import Log
from ..storage import paths
from ..storage.digests import digest_like
from ..storage.local import LocalStore
from ..storage.sample_tar import SAMPLE_PARTS, SampleError, read_folder, split_name
from ..storage.store import MissingObject, Store, StoreError
from ..storage.tables import read_table
from .shard_checks import first_line, sample_faults

SPLITS = ("train", "dev", "test")
_BLOCK = 512
_READ = 2**20
_Records: TypeAlias = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """A fault in the file or folder `place`, if known with the sample's key and its bytes, first to last."""

    place: str
    what: str
    key: str = ""
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        sample = f" sample {self.key}:" if self.key else ""
        span = "" if self.first is None else f" bytes {self.first}-{self.last}:"
        return f"{self.place}:{sample}{span} {self.what}"


@dataclass(frozen=True)
class VerifyReport:
    """Numbers of shards, samples and bytes read, and the faults."""

    shards: int
    samples: int
    bytes: int
    faults: Sequence[Fault]


@dataclass
class _ShardReport:
    """Contents and faults of one tar, or of a folder of extracted samples."""

    name: str
    place: str
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, source_id, split), in order."""
    faults: list[Fault] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""

    def add(self, what: str, key: str = "", first: int | None = None, end: int = 0) -> None:
        """Add a fault, of the bytes from `first` up to, not including, `end` if `first` is given."""
        last = None if first is None else max(first, end - 1)
        self.faults.append(Fault(self.place, what, key, first, last))


def verify(store: Store, workers: int, log: Log) -> VerifyReport:
    """Read every shard of a store, of any folder or prefix of tars, or of a folder of extracted samples.

    Checks per shard: the structure of the tar; the parts of each sample, that they decode, and that image,
    mask and metadata have one size; rows and digests of its table; length and SHA-256 in its receipt and in
    the index of its split. Checks of the whole: no duplicate key, no photo in two splits, and the length and
    SHA-256 of every other file with a receipt. Memory holds one sample per worker and the keys of a shard.
    Raises StoreError if there is no dataset or the store cannot be reached.
    """
    names = [name for name in store.list("shards/") if name.endswith(".tar")]
    if not names:
        names = [name for name in store.list("") if name.endswith(".tar")]
    if not names and isinstance(store, LocalStore) and any(store.folder.glob("*.meta.json")):
        return _combined([_verify_extracted(store)])
    faults: list[Fault] = []
    indexes, receipts = _recorded_files(store, faults)
    if not (names or indexes or receipts):
        raise StoreError(f"{store.url}: no dataset found: no tar, no index, no samples")
    other_files = {name: info for name, info in {**indexes, **receipts}.items() if name not in set(names)}
    indexed_splits = {paths.split_of(shard["shard"]) for shard in indexes.values()}
    with ThreadPoolExecutor(workers) as pool:
        reports = pool.map(lambda name: _verify_shard(store, name), names)
        file_faults = pool.map(lambda name: _verify_file(store, name, other_files[name]), sorted(other_files))

        def compared() -> Iterator[_ShardReport]:
            for number, shard in enumerate(reports, start=1):
                index = indexes.get(shard.name)
                _compare_digests(shard, receipts.get(shard.name), index)
                if index is None and paths.split_of(Path(shard.name).stem) in indexed_splits:
                    shard.add("not in the index of its split: left over from another build")
                log(f"[{number}/{len(names)}] {shard.name}: {len(shard.samples)} samples")
                yield shard

        report = _combined(compared())
        return replace(report, faults=[*faults, *report.faults, *itertools.chain(*file_faults)])


class _HashingReader:
    """Reads a file once, in order; counts the bytes and computes a digest of the same kind as `expected`."""

    def __init__(self, file: IO[bytes], expected: str = "") -> None:
        self._file, self._digest, self.position = file, digest_like(expected), 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self.position += len(data)
        return data

    def drain(self) -> None:
        """Read to the end of the file."""
        while self.read(_READ):
            continue

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class _Member:
    """One part in a tar; `header` and `start` are the offsets of its header and of its content."""

    key: str
    part: str
    data: bytes
    header: int
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def _members(file: _HashingReader, shard: _ShardReport) -> Iterator[_Member]:
    """Yield the members of a tar; after a damaged header, continue at the next block that is a header."""
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
                shard.add(f"invalid tar header: {error}", first=header, end=file.position)
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
            shard.add(f"{part}: truncated by the end of the file", key, header, file.position)
            return
        if padding.strip(b"\0"):
            shard.add(f"{part}: nonzero padding", key, start + info.size, file.position)
        yield _Member(key, part, data, header, start)
    if empty < 2:
        shard.add("the end-of-archive blocks are missing", first=file.position, end=file.position)


def _verify_shard(store: Store, name: str) -> _ShardReport:
    """Read a tar, and compare it with its table if there is one."""
    shard = _ShardReport(name, store.describe(name))
    try:
        rows = _table_rows(store, name, shard)
        with store.open(name) as opened:
            file = _HashingReader(opened)
            try:
                for key, members in itertools.groupby(_members(file, shard), key=lambda member: member.key):
                    _check_sample(key, list(members), rows.get(key) if rows is not None else {}, shard)
                file.drain()
            finally:
                shard.bytes, shard.sha256 = file.position, file.sha256
    except StoreError as error:
        shard.add(first_line(error).removeprefix(f"{shard.place}: "))
        return shard
    present = {key for key, _, _ in shard.samples}
    for key in sorted((rows or {}).keys() - present):
        shard.add("the sample is in the table, but not in the tar", key)
    return shard


def _verify_extracted(store: LocalStore) -> _ShardReport:
    """Read a folder of extracted samples; its faults have no byte ranges."""
    shard = _ShardReport("", store.url)
    try:
        for sample in read_folder(store.folder):
            members = [_Member(sample.key, part, data, 0, 0) for part, data in sample.parts.items()]
            shard.bytes += sum(len(member.data) for member in members)
            _check_sample(sample.key, members, {}, shard)
    except SampleError as error:
        shard.add(str(error))
    shard.faults = [replace(fault, first=None, last=None) for fault in shard.faults]
    return shard


def _check_sample(
    key: str, members: Sequence[_Member], row: Mapping[str, Any] | None, shard: _ShardReport
) -> None:
    """Add a sample and its faults to `shard`.

    `row` is the sample's row in the table: {} if there is no table, None if the table lacks the sample.
    """
    by_part = {member.part: member for member in members}
    first, end = members[0].header, members[-1].end
    if len(by_part) < len(members):
        shard.add("duplicate part", key, first, end)
    if row is None:
        shard.add("the sample is in the tar, but not in the table", key, first, end)
    elif row and row.get("offset") not in (None, first):
        shard.add(f"the sample starts at byte {row['offset']} according to the table", key, first, end)
    for part, sha256 in zip(SAMPLE_PARTS, (row or {}).get("sha256") or (), strict=False):
        member = by_part.get(part)
        if member and hashlib.sha256(member.data).hexdigest() != sha256:
            shard.add(f"{part}: the SHA-256 does not match the table", key, member.start, member.end)
    for part, what in sample_faults({part: member.data for part, member in by_part.items()}):
        faulty = by_part.get(part)
        shard.add(what, key, faulty.start if faulty else first, faulty.end if faulty else end)
    if shard.samples and shard.samples[-1][0] >= key:
        shard.add(f"not in key order: the sample follows {shard.samples[-1][0]}", key, first, end)
    try:
        meta = json.loads(by_part["meta.json"].data)
        shard.samples.append((key, str(meta["source_id"]), str(meta["split"])))
    except (KeyError, ValueError, TypeError):
        shard.samples.append((key, "", ""))  # reported by sample_faults
        return
    meta_key, meta_shard = str(meta.get("key")), str(meta.get("shard"))
    other_shard = shard.name.startswith("shards/") and paths.shard_tar(meta_shard) != shard.name
    if meta_key != key or other_shard:
        shard.add(f"meta.json belongs to sample {meta_key} in shard {meta_shard}", key, first, end)
    if not (meta.get("license") and "attribution" in meta):
        shard.add("meta.json has no licence or no attribution", key, first, end)


def _table_rows(store: Store, name: str, shard: _ShardReport) -> dict[str, dict[str, Any]] | None:
    """Return the rows of written samples in the table beside a tar, by key; None without a readable table."""
    table = name.removesuffix(".tar") + ".parquet"
    if not store.exists(table):
        return None
    try:
        return {row["key"]: row for row in read_table(store, table) if row["status"] == "written"}
    except (OSError, ValueError, KeyError, StoreError) as error:
        shard.add(f"its table {store.describe(table)} cannot be read: {first_line(error)}")
        return None


def _recorded_files(store: Store, faults: list[Fault]) -> tuple[_Records, _Records]:
    """Return the shards in the splits' indexes and the files in the receipts, by name.

    Each has `bytes` and `sha256`, a shard also `samples`.
    """
    indexed: _Records = {}
    received: _Records = {}
    indexes = {paths.index_json(split) for split in SPLITS}
    receipts = [name for name in store.list("receipts/") if name.endswith(".json")]
    for name in [*(name for name in store.list("index/") if name in indexes), *receipts]:
        try:
            content = json.loads(store.read(name))
            if name in indexes:
                indexed.update({shard["name"]: shard for shard in content["shards"]})
            else:
                received.update(content["files"])
        except (ValueError, KeyError, TypeError, StoreError) as error:
            faults.append(Fault(store.describe(name), f"cannot be read: {first_line(error)}"))
    return indexed, received


def _compare_digests(
    shard: _ShardReport, receipt: Mapping[str, Any] | None, index: Mapping[str, Any] | None
) -> None:
    """Compare a shard with its receipt and with the index of its split."""
    for record_name, record in (("receipt", receipt), ("index", index)):
        if record is None or not shard.sha256:
            continue
        if difference := _difference(shard.bytes, shard.sha256, record, record_name):
            shard.add(difference)
    if index is not None and len(shard.samples) != index["samples"]:
        shard.add(f"{len(shard.samples)} samples, but {index['samples']} in its index")


def _verify_file(store: Store, name: str, receipt: Mapping[str, Any]) -> list[Fault]:
    """Compare a file other than a shard with its receipt."""
    place = store.describe(name)
    try:
        with store.open(name) as opened:
            file = _HashingReader(opened, receipt["sha256"])
            file.drain()
    except MissingObject:
        return [Fault(place, "the file is missing")]
    except StoreError as error:
        return [Fault(place, first_line(error).removeprefix(f"{place}: "))]
    difference = _difference(file.position, file.sha256, receipt, "receipt")
    return [Fault(place, difference)] if difference else []


def _difference(size: int, sha256: str, record: Mapping[str, Any], record_name: str) -> str:
    """Describe how length or SHA-256 differ from a receipt or index; "" if they are equal."""
    if (size, sha256) == (record["bytes"], record["sha256"]):
        return ""
    return (
        f"{size:,} bytes with SHA-256 {sha256}, "
        f"but {record['bytes']:,} bytes with {record['sha256']} in its {record_name}"
    )


def _combined(shards: Iterable[_ShardReport]) -> VerifyReport:
    """Combine the reports of all shards, and check for duplicate keys and photos in two splits."""
    faults: list[Fault] = []
    count = samples = size = 0
    # SQLite moves a large temporary database from memory to disk.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        database.execute("BEGIN")
        for table in ("keys", "photos"):
            database.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")
        for shard in shards:
            count, samples, size = count + 1, samples + len(shard.samples), size + shard.bytes
            for key, source, split in shard.samples:
                if earlier := _insert_or_find(database, "keys", key, shard.place):
                    shard.add(f"duplicate key, also in {earlier}", key)
                earlier_split = _insert_or_find(database, "photos", source, split) if source else ""
                if earlier_split not in ("", split):
                    shard.add(f"its photo {source} is in {earlier_split} and in {split}", key)
            faults += shard.faults
    return VerifyReport(count, samples, size, faults)


def _insert_or_find(database: sqlite3.Connection, table: str, name: str, place: str) -> str:
    """Insert a name and return "", or return the place of the name if it is already in the table."""
    if database.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (name, place)).rowcount:
        return ""
    return str(database.execute(f"SELECT place FROM {table} WHERE name = ?", (name,)).fetchone()[0])
