"""The `manifest` stage: every line of every source, as a record in its shard or a reject with a reason.

Lines stream into a temporary SQLite file, which finds duplicates, draws the sample and groups records
into shards without holding them in memory.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import json
import os
import shutil
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from ..config import FetchSettings, Profile, SampleSettings
from . import layout
from .edit_types import allowed_names
from .product import Product, Say
from .records import Record, Reject, Source, parse_line
from .sources import SAMPLE, SourceError, is_url
from .store import Store
from .tables import MANIFEST, REJECTS, reason_class, write_table

LONGEST_LINE = 2**24
ATTRIBUTION = "ATTRIBUTION.csv"
"""A file of this name beside a local manifest says who made the photographs: columns `url`, `title`,
`author`, `license`."""

_EDGE = 2**16
_FIELDS = tuple(field.name for field in fields(Record))


class ManifestError(SourceError):
    """A manifest that gives no records at all; the message says which and why."""


def build_manifest(store: Store, profile: Profile, say: Say) -> dict[str, Product]:
    """Read the profile's sources and write every shard's table and the rejects.

    Returns a Product for each shard and, under "", one for the whole. Duplicates: of equal records the
    first is kept; where one key stands for different records none is, because nothing says which of them
    the edited picture belongs to. `source.max_samples` takes the records whose keys' digests are
    smallest: a choice that no order of lines changes and that spreads evenly over shards. Raises
    ManifestError for a source that cannot be read or gives no record, ConfigError for a bad
    `source.edit_types`, StoreError.
    """
    wanted = allowed_names(profile.source.edit_types)
    with (
        tempfile.TemporaryDirectory(prefix="bananagrams-") as folder,
        closing(sqlite3.connect(Path(folder) / "records.sqlite")) as database,
    ):
        _create(database)
        for number, name in enumerate(profile.source.manifests):
            _read_source(database, number, name, profile, say)
        _reject_duplicates(database)
        _select(database, wanted, profile.source.max_samples)
        return _write(store, profile, database, say)


def sample_folder(settings: SampleSettings) -> Path:
    """Where the embedded sample of these settings lies: under DAGSTER_HOME, else `.bananagrams`."""
    home = os.environ.get("DAGSTER_HOME")
    root = Path(home).expanduser() if home else Path(".bananagrams").absolute()
    return root / f"sample-{settings.digest()}"


def _create(database: sqlite3.Connection) -> None:
    database.executescript(
        """
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
        CREATE TABLE records (source INTEGER, line INTEGER, key TEXT, digest TEXT, rank BLOB,
            edit_type TEXT, shard TEXT, chosen INTEGER DEFAULT 1, content TEXT, row TEXT,
            PRIMARY KEY (source, line)) WITHOUT ROWID;
        CREATE TABLE rejects (source INTEGER, line INTEGER, manifest TEXT, reason TEXT, output_image TEXT);
        """
    )


def _read_source(database: sqlite3.Connection, number: int, name: str, profile: Profile, say: Say) -> None:
    with _open_source(name, profile, say) as (file, source):
        credits = _attributions(source.folder)
        lines = found = 0
        for line, data in _lines(file):
            if not data.strip(b"\xef\xbb\xbf \t\r\n"):
                continue
            lines += 1
            parsed = (
                parse_line(data, line, source, profile.splits)
                if len(data) <= LONGEST_LINE
                else Reject(source.name, line, f"line too long: over {LONGEST_LINE:,} bytes")
            )
            if isinstance(parsed, Reject):
                _insert_reject(database, number, parsed)
                continue
            found += 1
            _insert_record(database, number, parsed, _attribution(parsed, credits))
            if found % 50_000 == 0:
                say(f"{name}: {found:,} records read")
        database.commit()
    if not found:
        first = database.execute(
            "SELECT line, reason FROM rejects WHERE source = ? ORDER BY line LIMIT 1", (number,)
        ).fetchone()
        why = f"; the first of them, line {first[0]}: {first[1]}" if first else ""
        raise ManifestError(
            f"manifest {name}: no usable record in {lines:,} lines{why}" if lines
            else f"manifest {name}: it is empty"
        )  # fmt: skip
    say(f"{name}: {found:,} records and {lines - found:,} rejects in {lines:,} lines")


def _insert_reject(database: sqlite3.Connection, number: int, reject: Reject) -> None:
    database.execute(
        "INSERT INTO rejects VALUES (?, ?, ?, ?, ?)",
        (number, reject.line, reject.manifest, reject.reason, reject.output_image),
    )


def _insert_record(database: sqlite3.Connection, number: int, record: Record, attribution: str) -> None:
    row = {name: getattr(record, name) for name in _FIELDS} | {"attribution": attribution}
    # Where a record stands, where its local files lie and whom it credits is no part of what it says.
    left_out = ("line", "manifest", "local_input", "local_output", "attribution")
    digest = _digest({name: value for name, value in row.items() if name not in left_out})
    files = [_file_digest(record.local_input), _file_digest(record.local_output)]
    content = _digest([digest, attribution, files])
    rank = hashlib.blake2b(record.key.encode(), digest_size=8).digest()
    database.execute(
        "INSERT INTO records (source, line, key, digest, rank, edit_type, shard, content, row) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, record.line, record.key, digest, rank, record.edit_type, record.shard, content,
         json.dumps(row)),
    )  # fmt: skip


def _reject_duplicates(database: sqlite3.Connection) -> None:
    database.execute("CREATE INDEX records_by_key ON records (key, source, line)")
    repeated = database.execute(
        "SELECT key, COUNT(DISTINCT digest) FROM records GROUP BY key HAVING COUNT(*) > 1"
    ).fetchall()
    for key, contents in repeated:
        found = database.execute(
            "SELECT source, line, row FROM records WHERE key = ? ORDER BY source, line", (key,)
        ).fetchall()
        rows = [json.loads(row) for _, _, row in found]
        one_manifest = len({source for source, _, _ in found}) == 1
        places = [f"line {row['line']}" + ("" if one_manifest else f" of {row['manifest']}") for row in rows]
        listed = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        dropped = range(len(found)) if contents > 1 else range(1, len(found))
        for index in dropped:
            reason = (
                f"output_image of different records: {rows[index]['output_image']} on {listed}"
                if contents > 1
                else f"exact duplicate: {places[index]} repeats {places[0]}"
            )
            source, line, _ = found[index]
            row = rows[index]
            _insert_reject(database, source, Reject(row["manifest"], line, reason, row["output_image"]))
            database.execute("DELETE FROM records WHERE source = ? AND line = ?", (source, line))


def _select(database: sqlite3.Connection, wanted: frozenset[str], max_samples: int | None) -> None:
    if wanted:
        marks = ", ".join("?" * len(wanted))
        database.execute(f"UPDATE records SET chosen = 0 WHERE edit_type NOT IN ({marks})", sorted(wanted))
    if max_samples is not None:
        database.execute(
            "UPDATE records SET chosen = 0 WHERE chosen AND key NOT IN "
            "(SELECT key FROM records WHERE chosen ORDER BY rank, key LIMIT ?)",
            (max_samples,),
        )
    database.execute("CREATE INDEX records_by_shard ON records (shard, chosen, key)")
    database.commit()


def _write(store: Store, profile: Profile, database: sqlite3.Connection, say: Say) -> dict[str, Product]:
    chosen = _count(database, "SELECT COUNT(*) FROM records WHERE chosen")
    if not chosen:
        types = ", ".join(profile.source.edit_types)
        raise ManifestError(f"no record is left: none is of the types in source.edit_types ({types})")
    products = {shard: _write_shard(store, database, shard) for shard in profile.shard_keys()}
    rejects = database.execute(
        "SELECT manifest, line, reason, output_image FROM rejects ORDER BY source, line"
    )
    info = write_table(
        store, layout.MANIFEST_REJECTS, REJECTS, (dict(zip(REJECTS, row, strict=True)) for row in rejects)
    )
    reasons: Counter[str] = Counter()
    for (reason,) in database.execute("SELECT reason FROM rejects"):
        reasons[reason_class(reason)] += 1
    by_split: Counter[str] = Counter()
    for shard, product in products.items():
        by_split[layout.split_of(shard)] += product.stats["records"]
    stats = {
        "sources": list(profile.source.manifests),
        "records": chosen,
        "left_out": _count(database, "SELECT COUNT(*) FROM records WHERE NOT chosen"),
        "rejected": reasons.total(),
        "reasons": dict(sorted(reasons.items())),
        "by_split": dict(by_split),
        "by_edit_type": _total(products, "by_edit_type"),
        "shards": len(products),
        "photographs": sum(product.stats["photographs"] for product in products.values()),
    }
    say(f"{chosen:,} records in {len(products)} shards, {reasons.total():,} rejects")
    content = _digest([[product.content for product in products.values()], info.sha256])
    products[""] = Product({layout.MANIFEST_REJECTS: info}, stats, content=content)
    return products


def _write_shard(store: Store, database: sqlite3.Connection, shard: str) -> Product:
    digest = hashlib.blake2b(digest_size=16)
    kinds: Counter[str] = Counter()
    photographs: set[str] = set()

    def rows() -> Iterator[dict[str, Any]]:
        found = database.execute(
            "SELECT row, content FROM records WHERE shard = ? AND chosen ORDER BY key", (shard,)
        )
        for text, content in found:
            row: dict[str, Any] = json.loads(text)
            digest.update(content.encode() + b"\n")
            kinds[row["edit_type"]] += 1
            photographs.add(row["source_id"])
            yield row

    name = layout.manifest_table(shard)
    info = write_table(store, name, MANIFEST, rows())
    stats = {
        "records": kinds.total(),
        "photographs": len(photographs),
        "by_edit_type": dict(sorted(kinds.items())),
    }
    return Product({name: info}, stats, content=digest.hexdigest())


@contextmanager
def _open_source(name: str, profile: Profile, say: Say) -> Iterator[tuple[IO[bytes], Source]]:
    prefix = profile.source.cdn_prefix
    if is_url(name):
        with tempfile.TemporaryFile() as copy:
            _download(name, copy, profile.fetch, say)
            copy.seek(0)
            yield copy, Source(name, None, prefix)
        return
    path = Path(name).expanduser()
    if name == SAMPLE:
        from ..sample.make import ensure_sample

        folder = sample_folder(profile.source.sample)
        ensure_sample(folder, profile.source.sample, say)
        path = folder / "sft.jsonl"
    try:
        file = path.open("rb")
    except OSError as error:
        raise ManifestError(f"manifest {name}: cannot be read: {error.strerror or error}") from error
    with file:
        yield file, Source(name, path.absolute().parent, prefix)


def _download(url: str, file: IO[bytes], settings: FetchSettings, say: Say) -> None:
    """The whole of a remote manifest into `file`, with as many tries as a picture gets."""
    request = urllib.request.Request(url, headers={"User-Agent": settings.user_agent})
    for attempt in range(1, settings.attempts + 1):
        file.seek(0)
        file.truncate()
        try:
            with urllib.request.urlopen(request, timeout=settings.timeout_s) as answer:
                shutil.copyfileobj(answer, file, 2**20)
                length = answer.headers.get("Content-Length")
            if length is None or file.tell() == int(length):
                return
            problem = f"the answer was cut: {file.tell():,} of {int(length):,} bytes came"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise ManifestError(f"manifest {url}: {problem}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < settings.attempts:
            say(f"manifest {url}: {problem}; trying again")
            time.sleep(settings.backoff_s * 2 ** (attempt - 1))
    raise ManifestError(f"manifest {url}: {problem} (after {settings.attempts} tries)")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line); a line over LONGEST_LINE comes cut to one byte more than that."""
    number = 0
    while data := file.readline(LONGEST_LINE + 1):
        number += 1
        rest = data
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield number, data


def _attributions(folder: Path | None) -> dict[str, str]:
    """Photograph's URL → credit line, from the ATTRIBUTION.csv beside a local manifest."""
    path = folder / ATTRIBUTION if folder else None
    if path is None or not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [
            {str(name).strip().lower(): (value or "").strip() for name, value in row.items() if name}
            for row in csv.DictReader(file)
        ]
    return {_photograph(row["url"]): _credit(row) for row in rows if row.get("url")}


def _credit(row: dict[str, str]) -> str:
    title = row.get("title") or row.get("photo") or "photograph"
    author = f" by {row['author']}" if row.get("author") else ""
    licence = f", {row['license']}" if row.get("license") else ""
    return f"{title}{author}{licence}, {row['url']}"


def _attribution(record: Record, credits: dict[str, str]) -> str:
    """Who made the photograph, where that is known, else where it lies."""
    photograph = _photograph(record.input_url)
    return credits.get(photograph) or (
        f"photograph: {photograph}" if photograph else "photograph: local file"
    )


def _photograph(url: str) -> str:
    return url.partition("#")[0]


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


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _count(database: sqlite3.Connection, query: str) -> int:
    return int(database.execute(query).fetchone()[0])


def _total(products: dict[str, Product], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for product in products.values():
        total.update(product.stats[name])
    return dict(sorted(total.items()))
