"""The `manifest` stage: every line of every source, as records in their shard or rejects with a reason.

Records stream into temporary files, one a shard, and what tells them apart into an SQLite file, which finds
duplicates, draws the sample and puts each shard in order without holding records in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from ..config import Profile, SampleSettings, SourceSettings
from ..profiles import home_folder
from ..progress import Log
from ..records.attribution import read_credits
from ..records.edit_types import allowed_names
from ..records.manifest_line import LOCAL, Record, Reject, Source, assigning, parse_line
from ..records.open_images import Photos, open_photos
from ..records.sources import SAMPLE, SourceError, is_url, latest
from ..storage import paths
from ..storage.shard_spill import Buckets
from ..storage.store import Store, StoreError
from ..storage.tables import MANIFEST, REJECTS, reason_class, write_columns, write_table
from .stage import StageResult

LONGEST_LINE = 2**24
_EDGE = 2**16
_BATCH_BYTES = 2**19
_BATCH_ROWS = 1000
_CACHE_KIB = 16_000
_ENCODER = json.JSONEncoder(check_circular=False)
_BOUNDARY = "\0"
"""Between the parts of what is digested as one text."""


class ManifestError(SourceError):
    """A manifest that gives no records at all; the message says which and why."""


def build_manifest(store: Store, profile: Profile, log: Log) -> dict[str, StageResult]:
    """Read the profile's sources and write every shard's table and the rejects.

    Returns a Product for each shard and, under "", one for the whole. Duplicates: of equal records the
    first is kept; where one key stands for different records none is, because nothing says which of them
    the edited picture belongs to. `source.max_samples` takes the records whose keys' digests are
    smallest: a choice that no order of lines changes and that spreads evenly over shards. Raises
    SourceError for a source that cannot be read, ManifestError where it gives no record, ConfigError for
    a bad `source.edit_types`, StoreError.
    """
    wanted = _filter(profile.source)
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        try:
            with (
                open_photos(profile.source, profile.fetch, log) as photos,
                closing(sqlite3.connect(Path(folder) / "records.sqlite", isolation_level=None)) as database,
            ):
                buckets = Buckets(Path(folder))
                _create(database)
                for number, name in enumerate(profile.source.manifests):
                    _read_source(database, buckets, number, name, photos, wanted, profile, log)
                _reject_duplicates(database, profile.source.manifests)
                _pick(database, profile.source.max_samples)
                return _write(store, profile, database, buckets, log)
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{folder}: {error}; records are sorted there: TMPDIR names another folder for it"
            ) from error


def sample_folder(settings: SampleSettings) -> Path:
    """Where the embedded sample of these settings lies: under DAGSTER_HOME, else `.bananagrams`."""
    return home_folder() / f"sample-{settings.digest()}"


def _filter(source: SourceSettings) -> Callable[[Record], bool]:
    """Whether a record is one that the profile asks for. Raises ConfigError."""
    kinds, types = frozenset(source.kinds), allowed_names(source.edit_types)
    categories, scopes = frozenset(source.categories), frozenset(source.scopes)

    def wanted(record: Record) -> bool:
        return (
            (not kinds or record.kind in kinds)
            and (not types or record.edit_type in types)
            and (not categories or record.category in categories)
            and (not scopes or (record.scope or "unknown") in scopes)
        )

    return wanted


def _create(database: sqlite3.Connection) -> None:
    database.executescript(
        f"""
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
        PRAGMA temp_store = FILE; PRAGMA cache_size = -{_CACHE_KIB};
        CREATE TABLE records (id INTEGER PRIMARY KEY, source INTEGER, line INTEGER, key TEXT,
            output_image TEXT, shard TEXT, place INTEGER, size INTEGER, chosen INTEGER, rank INTEGER,
            says BLOB, content BLOB);
        CREATE TABLE rejects (id INTEGER PRIMARY KEY, source INTEGER, line INTEGER, manifest TEXT,
            reason TEXT, output_image TEXT);
        BEGIN;
        """
    )


def _read_source(
    database: sqlite3.Connection,
    buckets: Buckets,
    number: int,
    name: str,
    photos: Photos,
    wanted: Callable[[Record], bool],
    profile: Profile,
    log: Log,
) -> None:
    lines = found = told = rejected = 0
    with _open_source(name, profile, log) as (file, folder):
        credit = read_credits(database, number, folder)
        source = Source(name, folder, profile.source.cdn_prefix, photos, credit)
        for count, records, rejects in _batches(file, source, profile):
            lines += count
            _insert_records(database, buckets, number, records, wanted)
            _insert_rejects(database, number, rejects)
            found += len(records)
            rejected += len(rejects)
            if found - told >= 50_000:
                told = found
                log(f"{name}: {found:,} records read")
    if not found:
        first = database.execute(
            "SELECT line, reason FROM rejects WHERE source = ? ORDER BY line LIMIT 1", (number,)
        ).fetchone()
        why = f"; the first of them, line {first[0]}: {first[1]}" if first else ""
        raise ManifestError(
            f"manifest {name}: no usable record in {lines:,} lines{why}" if lines
            else f"manifest {name}: it is empty"
        )  # fmt: skip
    log(f"{name}: {found:,} records and {rejected:,} rejects in {lines:,} lines")


def _batches(
    file: IO[bytes], source: Source, profile: Profile
) -> Iterator[tuple[int, list[Record], list[Reject]]]:
    """(lines that are not blank, their records, their rejects), in batches of bounded size."""
    records: list[Record] = []
    rejects: list[Reject] = []
    lines = size = 0
    assign_to = assigning(profile.splits)
    for line, data in _lines(file):
        if not data.strip(b"\xef\xbb\xbf \t\r\n"):
            continue
        lines += 1
        size += len(data)
        if len(data) > LONGEST_LINE:
            rejects.append(Reject(source.name, line, f"line too long: over {LONGEST_LINE:,} bytes"))
            continue
        for item in parse_line(data, line, source, assign_to):
            if isinstance(item, Record):
                records.append(item)
            else:
                rejects.append(item)
        if size > _BATCH_BYTES:
            yield lines, records, rejects
            records, rejects = [], []
            lines = size = 0
    yield lines, records, rejects


def _insert_rejects(database: sqlite3.Connection, number: int, rejects: Sequence[Reject]) -> None:
    database.executemany(
        "INSERT INTO rejects (source, line, manifest, reason, output_image) VALUES (?, ?, ?, ?, ?)",
        [(number, item.line, item.manifest, item.reason, item.output_image) for item in rejects],
    )


def _insert_records(
    database: sqlite3.Connection,
    buckets: Buckets,
    number: int,
    records: Sequence[Record],
    wanted: Callable[[Record], bool],
) -> None:
    rows = []
    for record in records:
        data = _ENCODER.encode(record).encode()
        place = buckets.add(record.shard, data)
        rows.append(
            (number, record.line, record.key, record.output_image, record.shard, place, len(data),
             wanted(record), _rank(record.key), *_digests(record))
        )  # fmt: skip
    database.executemany(
        "INSERT INTO records (source, line, key, output_image, shard, place, size, chosen, rank, says, "
        "content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def _rank(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def _digests(record: Record) -> tuple[bytes, bytes]:
    """(what the record says, what is made of it).

    Where a record stands, where its local files lie, whom it credits and by which address it names the
    photograph is no part of what it says.
    """
    before = record.input_url if record.turn > 1 else record.input_url.partition("#")[2]
    says = hashlib.blake2b(
        _BOUNDARY.join(
            (record.kind, str(record.turn), record.source_id, before, record.edit_type, record.category,
             record.scope, record.text, record.summary, record.output_url)
        ).encode(),
        digest_size=16,
    ).digest()  # fmt: skip
    places = (
        f"{LOCAL}{_file_digest(place[len(LOCAL) :])}" if place.startswith(LOCAL) else place
        for place in record.input_candidates
    )
    content = hashlib.blake2b(
        _BOUNDARY.join(
            (record.split, record.input_url, record.attribution, str(record.rotation),
             _file_digest(record.local_output), *places)
        ).encode(),
        digest_size=16,
        key=says,
    ).digest()  # fmt: skip
    return says, content


def _reject_duplicates(database: sqlite3.Connection, manifests: Sequence[str]) -> None:
    database.executescript(
        """
        CREATE INDEX records_by_key ON records (key);
        CREATE TABLE repeated AS SELECT key, 0 AS contents FROM records INDEXED BY records_by_key
            GROUP BY key HAVING COUNT(*) > 1;
        UPDATE repeated SET contents =
            (SELECT COUNT(DISTINCT says) FROM records WHERE records.key = repeated.key);
        """
    )
    for key, contents in database.execute("SELECT key, contents FROM repeated ORDER BY key"):
        found = "SELECT {} FROM records WHERE key = ? ORDER BY source, line, id"
        count, sources, first = database.execute(
            "SELECT COUNT(*), COUNT(DISTINCT source), MIN(id) FROM records WHERE key = ?", (key,)
        ).fetchone()
        places = [
            f"line {line}" if sources == 1 else f"line {line} of {manifests[source]}"
            for line, source in database.execute(found.format("line, source") + " LIMIT 5", (key,))
        ]
        listed = ", ".join(places) + (f" and {count - 5} more" if count > 5 else "")
        for record, source, line, output_image in database.execute(
            found.format("id, source, line, output_image"), (key,)
        ):
            manifest = manifests[source]
            if contents > 1:
                reason = f"output_image of different records: {output_image} on {listed}"
            elif record == first:
                continue
            else:
                place = f"line {line}" if sources == 1 else f"line {line} of {manifest}"
                reason = f"exact duplicate: {place} repeats {places[0]}"
            _insert_rejects(database, source, [Reject(manifest, line, reason, output_image)])
        database.execute(
            "DELETE FROM records WHERE key = ? AND id != ?", (key, first if contents == 1 else 0)
        )


def _pick(database: sqlite3.Connection, max_samples: int | None) -> None:
    """Put down, by shard and key, the records that are asked for."""
    last = database.execute(
        "SELECT rank, key FROM records WHERE chosen ORDER BY rank, key LIMIT 1 OFFSET ?",
        (max_samples - 1,),
    ).fetchone() if max_samples is not None else None  # fmt: skip
    database.execute(
        "CREATE TABLE picked (shard, key, place, size, content, PRIMARY KEY (shard, key)) WITHOUT ROWID"
    )
    database.execute(
        "INSERT INTO picked SELECT shard, key, place, size, content FROM records WHERE chosen "
        + ("AND (rank, key) <= (?, ?) " if last else "")
        + "ORDER BY shard, key",
        last or (),
    )


def _write(
    store: Store, profile: Profile, database: sqlite3.Connection, buckets: Buckets, log: Log
) -> dict[str, StageResult]:
    chosen = _count(database, "SELECT COUNT(*) FROM picked")
    if not chosen:
        filters = [
            f"source.{name} ({', '.join(values)})"
            for name in ("kinds", "edit_types", "categories", "scopes")
            if (values := getattr(profile.source, name))
        ]
        raise ManifestError(
            f"no record is left: none passes {' and '.join(filters)}" if filters
            else "no record is left: every one shares its output_image with a different one"
        )  # fmt: skip
    results = {shard: _write_shard(store, database, buckets, shard) for shard in profile.shard_keys()}
    rejects = database.execute(
        "SELECT manifest, line, reason, output_image FROM rejects ORDER BY source, line, id"
    )
    info = write_table(
        store, paths.MANIFEST_REJECTS, REJECTS, (dict(zip(REJECTS, row, strict=True)) for row in rejects)
    )
    reasons: Counter[str] = Counter()
    for (reason,) in database.execute("SELECT reason FROM rejects"):
        reasons[reason_class(reason)] += 1
    by_split: Counter[str] = Counter()
    for shard, result in results.items():
        by_split[paths.split_of(shard)] += result.stats["records"]
    stats = {
        "sources": list(profile.source.manifests),
        "records": chosen,
        "left_out": _count(database, "SELECT COUNT(*) FROM records") - chosen,
        "rejected": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
        "by_split": dict(by_split),
        "by_kind": _total(results, "by_kind"),
        "by_edit_type": _total(results, "by_edit_type"),
        "shards": len(results),
        "photographs": sum(result.stats["photographs"] for result in results.values()),
    }
    log(f"{chosen:,} records in {len(results)} shards, {reasons.total():,} rejects")
    digest = hashlib.blake2b(digest_size=16)
    digest.update("".join(f"{result.content}\n" for result in results.values()).encode())
    digest.update(info.sha256.encode())
    results[""] = StageResult({paths.MANIFEST_REJECTS: info}, stats, content=digest.hexdigest())
    return results


def _write_shard(store: Store, database: sqlite3.Connection, buckets: Buckets, shard: str) -> StageResult:
    digest = hashlib.blake2b(digest_size=16)
    types: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    photos: set[str] = set()

    def batches() -> Iterator[dict[str, Sequence[Any]]]:
        found = database.execute(
            "SELECT place, size, content FROM picked WHERE shard = ? ORDER BY key", (shard,)
        )
        with buckets.reading(shard) as read:
            while places := found.fetchmany(_BATCH_ROWS):
                rows = json.loads(b"[" + b",".join(read(place, size) for place, size, _ in places) + b"]")
                batch: dict[str, Sequence[Any]] = dict(
                    zip(Record._fields, zip(*rows, strict=True), strict=True)
                )
                digest.update(b"".join(content for _, _, content in places))
                types.update(batch["edit_type"])
                kinds.update(batch["kind"])
                photos.update(batch["source_id"])
                yield batch

    name = paths.manifest_table(shard)
    info = write_columns(store, name, MANIFEST, batches())
    stats = {
        "records": types.total(),
        "photographs": len(photos),
        "by_kind": dict(sorted(kinds.items())),
        "by_edit_type": dict(sorted(types.items())),
    }
    return StageResult({name: info}, stats, content=digest.hexdigest())


@contextmanager
def _open_source(name: str, profile: Profile, log: Log) -> Iterator[tuple[IO[bytes], Path | None]]:
    """(lines, the folder that its paths are relative to, None for a URL) of a manifest."""
    path = Path(name).expanduser()
    try:
        if name == SAMPLE:
            from ..sample.make import ensure_sample

            folder = sample_folder(profile.source.sample)
            ensure_sample(folder, profile.source.sample, log)
            path = folder / "sft.jsonl"
        elif is_url(name):
            path, _ = latest(name, profile.fetch, log)
        file = path.open("rb")
    except SourceError as error:
        raise ManifestError(f"manifest {error}") from error
    except OSError as error:
        raise ManifestError(f"manifest {name}: cannot be read: {error.strerror or error}") from error
    with file:
        yield file, None if is_url(name) else path.absolute().parent


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line); a line over LONGEST_LINE comes cut to one byte more than that."""
    number = 0
    while data := file.readline(LONGEST_LINE + 1):
        number += 1
        rest = data
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield number, data


def _file_digest(path: str) -> str:
    """Digest of a local picture's size, beginning and end; "" for none.

    Any change of a compressed picture shows in its length or at one of its ends, and reading whole
    pictures here would read the data set twice.
    """
    if not path:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        file.seek(0)
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()


def _count(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _total(results: dict[str, StageResult], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results.values():
        total.update(result.stats[name])
    return dict(sorted(total.items()))
