"""The `manifest` stage: parse every line of every manifest into records of a shard or rejects.

Records stream into temporary files, one per shard. Their keys and digests stream into a temporary SQLite
database, which finds duplicates, draws the sample and sorts each shard. No record stays in memory.
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
from ..records.attribution import load_attributions
from ..records.edit_types import allowed_names
from ..records.manifest_line import Source, parse_line
from ..records.open_images import Photos, open_photos
from ..records.record import LOCAL, MANIFEST_COLUMNS, Record, Reject
from ..records.sources import SAMPLE, SourceError, is_url, local_copy, source_digest
from ..records.splits import shard_assigner
from ..storage import paths
from ..storage.store import FileInfo, Store, StoreError
from ..storage.tables import REJECTS_COLUMNS, reason_class, write_columns, write_table
from ..storage.temporary_shard_files import ShardFiles
from .stage import ExternalInput, StageResult, StageRun

LONGEST_LINE = 2**24
"""Longest line of a manifest, in bytes; a longer one is a reject."""
_DIGESTED_BYTES = 2**16
"""Bytes at each end of a local image that `_file_digest` reads."""
_BATCH_BYTES = 2**19
_BATCH_ROWS = 1000
_LOG_RECORDS = 50_000
_LISTED_LINES = 5
_CACHE_KIB = 16_000
_ENCODER = json.JSONEncoder(check_circular=False)
_SEPARATOR = "\0"
"""Separates the fields of a record in the input of a digest."""


class ManifestError(SourceError):
    """A manifest without any record; the message gives the manifest and the reason."""


def build_manifest(run: StageRun) -> StageResult:
    """Read the profile's sources and write the table of every shard and the table of rejects.

    The result has one part for each shard. Of equal records the first is kept. Records that differ but share
    a key are all rejected, because it is unknown which of them the edited image belongs to.
    `source.max_samples` keeps the records whose keys have the smallest digests: the choice does not depend
    on the order of lines and spreads evenly over shards. Raises SourceError for a source that cannot be read,
    ManifestError if no record is left, ConfigError for a bad `source.edit_types`, StoreError.
    """
    store, profile, log = run.store, run.settings, run.log
    is_wanted = _record_filter(profile.source)
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        try:
            with (
                open_photos(profile.source, profile.fetch, log) as photos,
                closing(sqlite3.connect(Path(folder) / "records.sqlite", isolation_level=None)) as database,
            ):
                shard_files = ShardFiles(Path(folder))
                _create_tables(database)
                for number, name in enumerate(profile.source.manifests):
                    _read_manifest(database, shard_files, number, name, photos, is_wanted, profile, log)
                _reject_duplicates(database, profile.source.manifests)
                _select_records(database, profile.source.max_samples)
                return _write_tables(store, profile, database, shard_files, log)
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{folder}: {error}; records are sorted in this folder; set TMPDIR to use another one"
            ) from error


def source_versions(store: Store, profile: Profile, partition: str, log: Log) -> dict[str, ExternalInput]:
    """Return a digest of each source by its path or URL. Raises SourceError."""
    sources = [*profile.source.manifests, *filter(None, [profile.source.open_images.csv])]
    return {source: ExternalInput(source_digest(source, profile.fetch, log)) for source in sources}


def sample_folder(settings: SampleSettings) -> Path:
    """Return the folder of the embedded sample, under DAGSTER_HOME, else `.bananagrams`."""
    return home_folder() / f"sample-{settings.digest()}"


def _record_filter(source: SourceSettings) -> Callable[[Record], bool]:
    """Return a predicate for records that pass the profile's filters. Raises ConfigError."""
    kinds, types = frozenset(source.kinds), allowed_names(source.edit_types)
    categories, scopes = frozenset(source.categories), frozenset(source.scopes)

    def is_wanted(record: Record) -> bool:
        return (
            (not kinds or record.kind in kinds)
            and (not types or record.edit_type in types)
            and (not categories or record.category in categories)
            and (not scopes or (record.scope or "unknown") in scopes)
        )

    return is_wanted


def _create_tables(database: sqlite3.Connection) -> None:
    """Create the tables. `identity` and `content`: see `_digests`; `start`, `size`: see `ShardFiles`."""
    database.executescript(
        f"""
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
        PRAGMA temp_store = FILE; PRAGMA cache_size = -{_CACHE_KIB};
        CREATE TABLE records (id INTEGER PRIMARY KEY, manifest INTEGER, line INTEGER, key TEXT,
            output_image TEXT, shard TEXT, start INTEGER, size INTEGER, wanted INTEGER, sample_rank INTEGER,
            identity BLOB, content BLOB);
        CREATE TABLE rejects (id INTEGER PRIMARY KEY, manifest INTEGER, line INTEGER, reason TEXT,
            output_image TEXT);
        BEGIN;
        """
    )


def _read_manifest(
    database: sqlite3.Connection,
    shard_files: ShardFiles,
    number: int,
    name: str,
    photos: Photos,
    is_wanted: Callable[[Record], bool],
    profile: Profile,
    log: Log,
) -> None:
    """Parse a manifest into the database and the shard files. Raises ManifestError if it has no record."""
    line_count = record_count = reject_count = logged = 0
    with _open_manifest(name, profile, log) as (file, folder):
        attribution_of = load_attributions(database, number, folder)
        assign_shard = shard_assigner(profile.splits)
        source = Source(name, folder, profile.source.cdn_prefix, photos, assign_shard, attribution_of)
        for lines, records, rejects in _batches(file, source):
            _insert_records(database, shard_files, number, records, is_wanted)
            _insert_rejects(database, number, rejects)
            line_count += lines
            record_count += len(records)
            reject_count += len(rejects)
            if record_count - logged >= _LOG_RECORDS:
                logged = record_count
                log(f"{name}: {record_count:,} records read")
    if not line_count:
        raise ManifestError(f"manifest {name}: it is empty")
    if not record_count:
        first = database.execute(
            "SELECT line, reason FROM rejects WHERE manifest = ? ORDER BY line LIMIT 1", (number,)
        ).fetchone()
        detail = f"; the first of them, line {first[0]}: {first[1]}" if first else ""
        raise ManifestError(f"manifest {name}: no usable record in {line_count:,} lines{detail}")
    log(f"{name}: {record_count:,} records and {reject_count:,} rejects in {line_count:,} lines")


def _batches(file: IO[bytes], source: Source) -> Iterator[tuple[int, list[Record], list[Reject]]]:
    """Yield (number of lines that are not blank, their records, their rejects) in bounded batches."""
    records: list[Record] = []
    rejects: list[Reject] = []
    lines = size = 0
    for line, data in _lines(file):
        if not data.strip(b"\xef\xbb\xbf \t\r\n"):
            continue
        lines += 1
        size += len(data)
        if len(data) > LONGEST_LINE:
            rejects.append(Reject(source.name, line, f"line too long: over {LONGEST_LINE:,} bytes"))
            continue
        for item in parse_line(data, line, source):
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
        "INSERT INTO rejects (manifest, line, reason, output_image) VALUES (?, ?, ?, ?)",
        [(number, reject.line, reject.reason, reject.output_image) for reject in rejects],
    )


def _insert_records(
    database: sqlite3.Connection,
    shard_files: ShardFiles,
    number: int,
    records: Sequence[Record],
    is_wanted: Callable[[Record], bool],
) -> None:
    rows = []
    for record in records:
        data = _ENCODER.encode(record).encode()
        start = shard_files.append(record.shard, data)
        rows.append(
            (number, record.line, record.key, record.output_image, record.shard, start, len(data),
             is_wanted(record), _sample_rank(record.key), *_digests(record))
        )  # fmt: skip
    database.executemany(
        "INSERT INTO records (manifest, line, key, output_image, shard, start, size, wanted, sample_rank, "
        "identity, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def _sample_rank(key: str) -> int:
    """Return a pseudo-random number; `source.max_samples` keeps the records with the smallest ones."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def _digests(record: Record) -> tuple[bytes, bytes]:
    """Return the digests (identity, content) of a record.

    Records with the same identity are duplicates: it leaves out the record's line, the paths of local files,
    the attribution and the URL of the photo. The content decides whether the shard must be rebuilt: it adds
    the attribution, all locations and the content of local files.
    """
    before = record.input_url if record.turn > 1 else record.input_url.partition("#")[2]
    identity = hashlib.blake2b(
        _SEPARATOR.join(
            (record.kind, str(record.turn), record.source_id, before, record.edit_type, record.category,
             record.scope, record.text, record.summary, record.output_url)
        ).encode(),
        digest_size=16,
    ).digest()  # fmt: skip
    candidates = (
        f"{LOCAL}{_file_digest(candidate[len(LOCAL) :])}" if candidate.startswith(LOCAL) else candidate
        for candidate in record.input_candidates
    )
    content = hashlib.blake2b(
        _SEPARATOR.join(
            (record.split, record.input_url, record.attribution, str(record.rotation),
             _file_digest(record.local_output), *candidates)
        ).encode(),
        digest_size=16,
        key=identity,
    ).digest()  # fmt: skip
    return identity, content


def _reject_duplicates(database: sqlite3.Connection, manifests: Sequence[str]) -> None:
    """Reject all but the first of equal records with one key, and all of different records with one key."""
    database.executescript(
        """
        CREATE INDEX records_by_key ON records (key);
        CREATE TABLE repeated AS SELECT key, 0 AS identities FROM records INDEXED BY records_by_key
            GROUP BY key HAVING COUNT(*) > 1;
        UPDATE repeated SET identities =
            (SELECT COUNT(DISTINCT identity) FROM records WHERE records.key = repeated.key);
        """
    )
    for key, identities in database.execute("SELECT key, identities FROM repeated ORDER BY key"):
        _reject_repeated_key(database, manifests, key, are_equal=identities == 1)


def _reject_repeated_key(
    database: sqlite3.Connection, manifests: Sequence[str], key: str, are_equal: bool
) -> None:
    count, manifest_count, first = database.execute(
        "SELECT COUNT(*), COUNT(DISTINCT manifest), MIN(id) FROM records WHERE key = ?", (key,)
    ).fetchone()

    def line_name(manifest: int, line: int) -> str:
        return f"line {line}" if manifest_count == 1 else f"line {line} of {manifests[manifest]}"

    select = "SELECT id, manifest, line, output_image FROM records WHERE key = ? ORDER BY manifest, line, id"
    listed = database.execute(f"{select} LIMIT {_LISTED_LINES}", (key,))
    names = [line_name(manifest, line) for _, manifest, line, _ in listed]
    more = f" and {count - _LISTED_LINES} more" if count > _LISTED_LINES else ""
    for record, manifest, line, output_image in database.execute(select, (key,)):
        if not are_equal:
            reason = f"output_image of different records: {output_image} on {', '.join(names)}{more}"
        elif record == first:
            continue
        else:
            reason = f"exact duplicate: {line_name(manifest, line)} repeats {names[0]}"
        _insert_rejects(database, manifest, [Reject(manifests[manifest], line, reason, output_image)])
    database.execute("DELETE FROM records WHERE key = ? AND id != ?", (key, first if are_equal else 0))


def _select_records(database: sqlite3.Connection, max_samples: int | None) -> None:
    """Create the table `selected`: the wanted records of the sample, sorted by shard and key."""
    last = database.execute(
        "SELECT sample_rank, key FROM records WHERE wanted ORDER BY sample_rank, key LIMIT 1 OFFSET ?",
        (max_samples - 1,),
    ).fetchone() if max_samples is not None else None  # fmt: skip
    database.execute(
        "CREATE TABLE selected (shard, key, start, size, content, PRIMARY KEY (shard, key)) WITHOUT ROWID"
    )
    database.execute(
        "INSERT INTO selected SELECT shard, key, start, size, content FROM records WHERE wanted "
        + ("AND (sample_rank, key) <= (?, ?) " if last else "")
        + "ORDER BY shard, key",
        last or (),
    )


def _write_tables(
    store: Store, profile: Profile, database: sqlite3.Connection, shard_files: ShardFiles, log: Log
) -> StageResult:
    selected = _count(database, "SELECT COUNT(*) FROM selected")
    if not selected:
        raise _no_record_left(profile.source)
    shards = {
        shard: _write_shard(store, database, shard_files, shard) for shard in profile.splits.shard_keys()
    }
    rejects, reasons = _write_rejects(store, database, profile.source.manifests)
    by_split: Counter[str] = Counter()
    for shard, result in shards.items():
        by_split[paths.split_of(shard)] += result.stats["records"]
    stats = {
        "sources": list(profile.source.manifests),
        "records": selected,
        "left_out": _count(database, "SELECT COUNT(*) FROM records") - selected,
        "rejected": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
        "by_split": dict(by_split),
        "by_kind": _total(shards, "by_kind"),
        "by_edit_type": _total(shards, "by_edit_type"),
        "shards": len(shards),
        "photographs": sum(result.stats["photographs"] for result in shards.values()),
    }
    log(f"{selected:,} records in {len(shards)} shards, {reasons.total():,} rejects")
    digest = hashlib.blake2b(digest_size=16)
    digest.update("".join(f"{result.content}\n" for result in shards.values()).encode())
    digest.update(rejects.sha256.encode())
    return StageResult({paths.MANIFEST_REJECTS: rejects}, stats, content=digest.hexdigest(), parts=shards)


def _no_record_left(source: SourceSettings) -> ManifestError:
    filters = [
        f"source.{name} ({', '.join(values)})"
        for name in ("kinds", "edit_types", "categories", "scopes")
        if (values := getattr(source, name))
    ]
    if filters:
        return ManifestError(f"no record is left: none passes {' and '.join(filters)}")
    return ManifestError("no record is left: each shares its output_image with a different record")


def _write_rejects(
    store: Store, database: sqlite3.Connection, manifests: Sequence[str]
) -> tuple[FileInfo, Counter[str]]:
    """Write the table of rejects; return its FileInfo and the number of rejects by class of reason."""
    reasons: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for manifest, line, reason, output_image in database.execute(
            "SELECT manifest, line, reason, output_image FROM rejects ORDER BY manifest, line, id"
        ):
            reasons[reason_class(reason)] += 1
            yield {
                "manifest": manifests[manifest], "line": line, "reason": reason, "output_image": output_image,
            }  # fmt: skip

    return write_table(store, paths.MANIFEST_REJECTS, REJECTS_COLUMNS, rows()), reasons


def _write_shard(
    store: Store, database: sqlite3.Connection, shard_files: ShardFiles, shard: str
) -> StageResult:
    digest = hashlib.blake2b(digest_size=16)
    types: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    photos: set[str] = set()

    def batches() -> Iterator[dict[str, Sequence[Any]]]:
        cursor = database.execute(
            "SELECT start, size, content FROM selected WHERE shard = ? ORDER BY key", (shard,)
        )
        with shard_files.reader(shard) as read:
            while rows := cursor.fetchmany(_BATCH_ROWS):
                records = json.loads(b"[" + b",".join(read(start, size) for start, size, _ in rows) + b"]")
                batch: dict[str, Sequence[Any]] = dict(
                    zip(Record._fields, zip(*records, strict=True), strict=True)
                )
                digest.update(b"".join(content for _, _, content in rows))
                types.update(batch["edit_type"])
                kinds.update(batch["kind"])
                photos.update(batch["source_id"])
                yield batch

    name = paths.manifest_table(shard)
    info = write_columns(store, name, MANIFEST_COLUMNS, batches())
    stats = {
        "records": types.total(),
        "photographs": len(photos),
        "by_kind": dict(sorted(kinds.items())),
        "by_edit_type": dict(sorted(types.items())),
    }
    return StageResult({name: info}, stats, content=digest.hexdigest())


@contextmanager
def _open_manifest(name: str, profile: Profile, log: Log) -> Iterator[tuple[IO[bytes], Path | None]]:
    """Open a manifest; yield the file and the folder that its paths are relative to, None for a URL."""
    path = Path(name).expanduser()
    try:
        if name == SAMPLE:
            from ..sample.sample_folder import ensure_sample

            folder = sample_folder(profile.source.sample)
            ensure_sample(folder, profile.source.sample, log)
            path = folder / "sft.jsonl"
        elif is_url(name):
            path, _ = local_copy(name, profile.fetch, log)
        file = path.open("rb")
    except SourceError as error:
        raise ManifestError(f"manifest {error}") from error
    except OSError as error:
        raise ManifestError(f"manifest {name}: cannot be read: {error.strerror or error}") from error
    with file:
        yield file, None if is_url(name) else path.absolute().parent


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line); a longer line is cut to LONGEST_LINE + 1 bytes."""
    number = 0
    while data := file.readline(LONGEST_LINE + 1):
        number += 1
        rest = data
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield number, data


def _file_digest(path: str) -> str:
    """Return a digest of a local image's size, first and last 64 KiB; "" for no path.

    A change of a compressed image changes its length or one of its ends. Reading whole images here would
    read the dataset twice.
    """
    if not path:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        file.seek(0)
        digest.update(file.read(_DIGESTED_BYTES))
        file.seek(max(0, size - _DIGESTED_BYTES))
        digest.update(file.read(_DIGESTED_BYTES))
    return digest.hexdigest()


def _count(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _total(results: dict[str, StageResult], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results.values():
        total.update(result.stats[name])
    return dict(sorted(total.items()))
