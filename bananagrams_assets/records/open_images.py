"""Open Images: which of its photographs a record is about, and where a source photograph can be had.

All sources of pico-banana-400k are training pictures of Open Images, whose list of 1.7 million photographs
(`train-images-boxable-with-rotation.csv`, https://storage.googleapis.com/openimages/web/download.html)
gives each one's ImageID, original URL, author, title and licence. It is read once, into an SQLite file
under DAGSTER_HOME that is looked up by a 64-bit digest of the URL.
"""

from __future__ import annotations

import csv
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from ..config import FetchSettings, SourceSettings
from ..profiles import home_folder
from ..progress import Log
from .attribution import Credit, credit_line
from .manifest_line import LOCAL, source_id
from .sources import SourceError, latest

REQUIRED = ("ImageID", "OriginalURL")
"""Columns that the list must have. Rotation, License, Author, Title and OriginalLandingURL may be absent."""

_MIRRORS = ("open-images-dataset.s3.amazonaws.com/train/", "s3.amazonaws.com/open-images-dataset/train/")
_LAYOUT = 1
_TABLES = """
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
    CREATE TABLE about (csv TEXT);
    CREATE TABLE licenses (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
    CREATE TABLE photographs (id INTEGER PRIMARY KEY, url INTEGER, image INTEGER, rotation INTEGER,
        license INTEGER, author TEXT, title TEXT, landing TEXT);
"""
_INDEXES = """
    CREATE INDEX photographs_by_url ON photographs (url);
    CREATE INDEX photographs_by_image ON photographs (image);
"""
_FOUND = (
    "SELECT image, rotation, title, author, name, landing FROM photographs "
    "LEFT JOIN licenses ON licenses.id = license WHERE {} = ? ORDER BY photographs.id LIMIT 1"
)


class Photo(NamedTuple):
    """A photograph of Open Images.

    `rotation` says by how many degrees counter-clockwise (0, 90, 180, 270) the original and the mirror's
    copy must be turned to stand as its author meant; None where the list does not say. `attribution` is
    a credit line, "" where nothing is known.
    """

    image_id: str
    rotation: int | None = None
    attribution: str = ""


class Photos:
    """Finds photographs by URL and says where each can be had, as `source.photos_from` orders it."""

    def __init__(self, source: SourceSettings, database: sqlite3.Connection | None = None) -> None:
        self._order = source.photos_from
        self._mirror = source.open_images.mirror_prefix
        self._folder = source.open_images.folder and str(Path(source.open_images.folder).expanduser())
        self._database = database
        prefixes = "|".join(re.escape(prefix) for prefix in (self._mirror.partition("://")[2], *_MIRRORS))
        self._mirrored = re.compile(rf"https?://(?:{prefixes})([0-9a-f]{{16}})\.jpg(?:[?#].*)?")

    def known(self, url: str, local_name: str) -> Photo | None:
        """The photograph that a record's URL, or the name of its local file, stands for."""
        mirrored = self._mirrored.fullmatch(url)
        if mirrored:
            return self._by_image(mirrored[1]) or Photo(mirrored[1])
        if self._database is None:
            return None
        found = self._find("url", _url_number(url)) if url else None
        if found is not None or not local_name:
            return found
        stem = local_name.rpartition("/")[2].removesuffix(".jpg")
        return self._by_image(stem) if re.fullmatch("[0-9a-f]{16}", stem) else None

    def candidates(self, url: str, local: str, known: Photo | None) -> list[str]:
        """Where the photograph can be had, best first: `local:<path>` or a URL.

        `local` is the path of the record's own file, or "". A URL with a media fragment (`#xywh=…`)
        names a part of a photograph: the mirror and the folder, which hold the whole, do not serve it,
        and nor does the URL where there is a local file.
        """
        part = "#xywh=" in url
        found = []
        for place in self._order:
            if place == "local":
                if local:
                    found.append(LOCAL + local)
                if known and self._folder and not part:
                    path = Path(self._folder, f"{known.image_id}.jpg")
                    if path.is_file():
                        found.append(f"{LOCAL}{path}")
            elif place == "mirror":
                if known and not part:
                    found.append(f"{self._mirror}{known.image_id}.jpg")
            elif url and not (part and local):
                found.append(url)
        return list(dict.fromkeys(found))

    def _by_image(self, image_id: str) -> Photo | None:
        return self._find("image", _signed(bytes.fromhex(image_id)))

    def _find(self, column: str, number: int) -> Photo | None:
        if self._database is None:
            return None
        row = self._database.execute(_FOUND.format(column), (number,)).fetchone()
        if row is None:
            return None
        image, rotation, title, author, licence, landing = row
        known = Credit(title or "", author or "", licence or "", landing or "")
        credit = credit_line(known) if any(known) else ""
        return Photo(image.to_bytes(8, "big", signed=True).hex(), rotation, credit)


@contextmanager
def open_photos(source: SourceSettings, fetch: FetchSettings, log: Log) -> Iterator[Photos]:
    """Photographs with the list that the profile names, which is read now if it is new or changed.

    Raises SourceError for a list that cannot be read or that is none, and for a folder that is not there.
    """
    folder = source.open_images.folder
    if folder and not Path(folder).expanduser().is_dir():
        raise SourceError(f"source.open_images.folder: {folder}: no such folder")
    if source.open_images.csv is None:
        yield Photos(source)
        return
    index = _index(source.open_images.csv, fetch, log)
    with closing(sqlite3.connect(f"{index.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        yield Photos(source, database)


def _index(name: str, fetch: FetchSettings, log: Log) -> Path:
    """The SQLite file made from the list, made anew where the list's content is another."""
    path, digest = latest(name, fetch, log)
    label = blake2b(name.encode(), digest_size=8).hexdigest()
    index = home_folder() / "sources" / f"open-images-{_LAYOUT}-{label}.sqlite"
    if _made_from(index) == digest:
        return index
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = index.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with closing(sqlite3.connect(temporary)) as database:
            database.executescript(_TABLES)
            found, left_out = _read_list(database, path, name, log)
            database.executescript(_INDEXES)
            database.execute("INSERT INTO about VALUES (?)", (digest,))
            database.commit()
        temporary.replace(index)
    except sqlite3.OperationalError as error:
        raise SourceError(f"{index}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    log(f"{name}: {found:,} photographs read, {left_out:,} rows without ImageID or URL left out")
    return index


def _made_from(index: Path) -> str:
    """SHA-256 of the list that an index was made from; "" where there is no whole index."""
    if not index.is_file():
        return ""
    try:
        with closing(sqlite3.connect(f"{index.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            return str(database.execute("SELECT csv FROM about").fetchone()[0])
    except (sqlite3.DatabaseError, TypeError):
        return ""


def _read_list(database: sqlite3.Connection, path: Path, name: str, log: Log) -> tuple[int, int]:
    """(photographs, rows left out) of the list, streamed into the index."""
    licenses: dict[str, int] = {}
    found = left_out = 0
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [column.strip() for column in next(reader, [])]
            if missing := [column for column in REQUIRED if column not in header]:
                raise SourceError(
                    f"{name}: no column {' and no column '.join(missing)}; is it "
                    "train-images-boxable-with-rotation.csv of Open Images?"
                )
            at = {column: place for place, column in enumerate(header)}
            batch = []
            for row in reader:
                photo = _row(row, at, licenses)
                if photo is None:
                    left_out += bool(row)
                    continue
                batch.append(photo)
                found += 1
                if len(batch) == 1000:
                    _insert(database, batch)
                    batch.clear()
                if found % 500_000 == 0:
                    log(f"{name}: {found:,} photographs read")
        except csv.Error as error:
            raise SourceError(f"{name}: line {reader.line_num}: not CSV: {error}") from error
        _insert(database, batch)
    if not found:
        raise SourceError(f"{name}: no photograph in it")
    database.executemany("INSERT INTO licenses (name, id) VALUES (?, ?)", licenses.items())
    return found, left_out


_Row = tuple[int, int, "int | None", int, str, str, str]


def _insert(database: sqlite3.Connection, rows: list[_Row]) -> None:
    database.executemany(
        "INSERT INTO photographs (url, image, rotation, license, author, title, landing) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def _row(row: list[str], at: dict[str, int], licenses: dict[str, int]) -> _Row | None:
    def cell(column: str) -> str:
        place = at.get(column, len(row))
        return " ".join(row[place].split()) if place < len(row) else ""

    image, url = cell("ImageID").lower(), cell("OriginalURL")
    try:
        number = _url_number(url)
    except ValueError:
        return None
    if not re.fullmatch("[0-9a-f]{16}", image) or not url:
        return None
    licence = licenses.setdefault(cell("License"), len(licenses))
    return (
        number, _signed(bytes.fromhex(image)), _degrees(cell("Rotation")), licence, cell("Author"),
        cell("Title"), cell("OriginalLandingURL"),
    )  # fmt: skip


def _degrees(text: str) -> int | None:
    try:
        degrees = float(text)
    except ValueError:
        return None
    return int(degrees) if degrees in (0, 90, 180, 270) else None


def _url_number(url: str) -> int:
    """64 bits of a photograph's URL; http and https are one, as they are at Flickr."""
    if url[:5].lower() == "http:":
        url = "https" + url[4:]
    return _signed(bytes.fromhex(source_id(url)))


def _signed(digest: bytes) -> int:
    """SQLite's integers are signed."""
    return int.from_bytes(digest, "big", signed=True)
