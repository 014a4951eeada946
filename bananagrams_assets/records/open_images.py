"""Open Images: find the photo of a record, and list the locations of a source photo.

All source photos of pico-banana-400k are training images of Open Images. Its list of 1.7 million photos
(`train-images-boxable-with-rotation.csv`, https://storage.googleapis.com/openimages/web/download.html)
gives the ImageID, original URL, author, title and licence of each. It is read once into an SQLite index
under DAGSTER_HOME, with a 64-bit digest of the URL as the lookup key.
"""

from __future__ import annotations

import csv
import re
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..config import FetchSettings, SourceSettings
from ..profiles import home_folder
from ..progress import Log
from .attribution import Attribution, format_attribution
from .record import LOCAL
from .sources import SourceError, local_copy
from .splits import source_id

REQUIRED = ("ImageID", "OriginalURL")
"""Required columns of the list. Rotation, License, Author, Title and OriginalLandingURL may be absent."""

_MIRRORS = ("open-images-dataset.s3.amazonaws.com/train/", "s3.amazonaws.com/open-images-dataset/train/")
_LAYOUT = 1
"""Version of the index's tables; part of the file name."""
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
_INSERT = (
    "INSERT INTO photographs (url, image, rotation, license, author, title, landing) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_Row: TypeAlias = "tuple[int, int, int | None, int, str, str, str]"
_SELECT = (
    "SELECT image, rotation, title, author, name, landing FROM photographs "
    "LEFT JOIN licenses ON licenses.id = license WHERE {} = ? ORDER BY photographs.id LIMIT 1"
)


class Photo(NamedTuple):
    """A photo of Open Images.

    `rotation` is the angle in degrees counter-clockwise (0, 90, 180, 270) that brings the original and the
    mirror's copy upright, None if the list has no angle. `attribution` is the attribution line, "" if
    unknown.
    """

    image_id: str
    rotation: int | None = None
    attribution: str = ""


class Photos:
    """Finds photos by URL or file name, and lists their locations in the order of `source.photos_from`."""

    def __init__(self, source: SourceSettings, database: sqlite3.Connection | None = None) -> None:
        self._order = source.photos_from
        self._mirror = source.open_images.mirror_prefix
        self._folder = source.open_images.folder and str(Path(source.open_images.folder).expanduser())
        self._database = database
        prefixes = "|".join(re.escape(prefix) for prefix in (self._mirror.partition("://")[2], *_MIRRORS))
        self._mirrored = re.compile(rf"https?://(?:{prefixes})([0-9a-f]{{16}})\.jpg(?:[?#].*)?")

    def lookup(self, url: str, local_name: str) -> Photo | None:
        """Return the photo of a record's URL or of its local file's name, None if Open Images lacks it."""
        mirrored = self._mirrored.fullmatch(url)
        if mirrored:
            return self._by_image(mirrored[1]) or Photo(mirrored[1])
        if self._database is None:
            return None
        photo = self._select("url", _url_digest(url)) if url else None
        if photo is not None or not local_name:
            return photo
        stem = local_name.rpartition("/")[2].removesuffix(".jpg")
        return self._by_image(stem) if re.fullmatch("[0-9a-f]{16}", stem) else None

    def candidates(self, url: str, local: str, photo: Photo | None) -> list[str]:
        """Return the photo's locations, best first: `local:<path>` or a URL.

        `local` is the path of the record's own file, or "". A URL with a media fragment (`#xywh=…`) denotes
        a part of a photo. The mirror and the folder only have whole photos and are left out for a part. The
        URL of a part is left out if there is a local file.
        """
        is_part = "#xywh=" in url
        locations = []
        for location in self._order:
            if location == "local":
                if local:
                    locations.append(LOCAL + local)
                if photo and self._folder and not is_part:
                    path = Path(self._folder, f"{photo.image_id}.jpg")
                    if path.is_file():
                        locations.append(f"{LOCAL}{path}")
            elif location == "mirror":
                if photo and not is_part:
                    locations.append(f"{self._mirror}{photo.image_id}.jpg")
            elif url and not (is_part and local):
                locations.append(url)
        return list(dict.fromkeys(locations))

    def _by_image(self, image_id: str) -> Photo | None:
        return self._select("image", _signed(image_id))

    def _select(self, column: str, value: int) -> Photo | None:
        if self._database is None:
            return None
        row = self._database.execute(_SELECT.format(column), (value,)).fetchone()
        if row is None:
            return None
        image, rotation, title, author, licence, landing = row
        attribution = Attribution(title or "", author or "", licence or "", landing or "")
        line = format_attribution(attribution) if any(attribution) else ""
        return Photo(image.to_bytes(8, "big", signed=True).hex(), rotation, line)


@contextmanager
def open_photos(source: SourceSettings, fetch: FetchSettings, log: Log) -> Iterator[Photos]:
    """Open the photos of the profile's list, after indexing the list if it is new or has changed.

    Raises SourceError for a list that is unreadable or has the wrong format, and for a missing folder.
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
    """Return the path of the list's SQLite index, after rebuilding it if the list has changed."""
    path, digest = local_copy(name, fetch, log)
    label = blake2b(name.encode(), digest_size=8).hexdigest()
    index = home_folder() / "sources" / f"open-images-{_LAYOUT}-{label}.sqlite"
    if _indexed_digest(index) == digest:
        return index
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = index.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with closing(sqlite3.connect(temporary)) as database:
            database.executescript(_TABLES)
            photos, skipped = _read_list(database, path, name, log)
            database.executescript(_INDEXES)
            database.execute("INSERT INTO about VALUES (?)", (digest,))
            database.commit()
        temporary.replace(index)
    except sqlite3.OperationalError as error:
        raise SourceError(f"{index}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    log(f"{name}: {photos:,} photos read, {skipped:,} rows without ImageID or URL skipped")
    return index


def _indexed_digest(index: Path) -> str:
    """Return the SHA-256 of the list that an index was built from, "" if the index is not complete."""
    if not index.is_file():
        return ""
    try:
        with closing(sqlite3.connect(f"{index.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            return str(database.execute("SELECT csv FROM about").fetchone()[0])
    except (sqlite3.DatabaseError, TypeError):
        return ""


def _read_list(database: sqlite3.Connection, path: Path, name: str, log: Log) -> tuple[int, int]:
    """Stream the list into the index; return (number of photos, number of skipped rows)."""
    licenses: dict[str, int] = {}
    counts: Counter[str] = Counter()

    def rows(reader: Iterable[list[str]], columns: dict[str, int]) -> Iterator[_Row]:
        for cells in reader:
            row = _row(cells, columns, licenses)
            if row is None:
                counts["skipped"] += bool(cells)
                continue
            yield row
            counts["photos"] += 1
            if counts["photos"] % 500_000 == 0:
                log(f"{name}: {counts['photos']:,} photos read")

    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [column.strip() for column in next(reader, [])]
            if missing := [column for column in REQUIRED if column not in header]:
                raise SourceError(
                    f"{name}: no column {' and no column '.join(missing)}; is it "
                    "train-images-boxable-with-rotation.csv of Open Images?"
                )
            columns = {column: index for index, column in enumerate(header)}
            database.executemany(_INSERT, rows(reader, columns))
        except csv.Error as error:
            raise SourceError(f"{name}: line {reader.line_num}: not CSV: {error}") from error
    if not counts["photos"]:
        raise SourceError(f"{name}: the list has no photos")
    database.executemany("INSERT INTO licenses (name, id) VALUES (?, ?)", licenses.items())
    return counts["photos"], counts["skipped"]


def _row(cells: list[str], columns: dict[str, int], licenses: dict[str, int]) -> _Row | None:
    """Return the index row of a line of the list, None for an invalid ImageID or URL.

    `licenses` maps each licence to its id; a new licence is added to it.
    """

    def cell(column: str) -> str:
        index = columns.get(column, len(cells))
        return " ".join(cells[index].split()) if index < len(cells) else ""

    image, url = cell("ImageID").lower(), cell("OriginalURL")
    try:
        url_digest = _url_digest(url)
    except ValueError:
        return None
    if not re.fullmatch("[0-9a-f]{16}", image) or not url:
        return None
    licence = licenses.setdefault(cell("License"), len(licenses))
    return (
        url_digest, _signed(image), _degrees(cell("Rotation")), licence, cell("Author"),
        cell("Title"), cell("OriginalLandingURL"),
    )  # fmt: skip


def _degrees(text: str) -> int | None:
    """Return the angle of a cell if it is a multiple of 90."""
    try:
        degrees = float(text)
    except ValueError:
        return None
    return int(degrees) if degrees in (0, 90, 180, 270) else None


def _url_digest(url: str) -> int:
    """Return a 64-bit digest of a photo's URL, the same for http and https because Flickr serves both."""
    if url[:5].lower() == "http:":
        url = "https" + url[4:]
    return _signed(source_id(url))


def _signed(hex_digits: str) -> int:
    """Return 16 hex digits as a signed integer, because SQLite's integers are signed."""
    return int.from_bytes(bytes.fromhex(hex_digits), "big", signed=True)
