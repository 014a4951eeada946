"""Attributions of photos: author, licence and landing page as one line of text."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ATTRIBUTION = "ATTRIBUTION.csv"
"""The attribution list beside a local manifest; its columns are `url`, `title` (or `photo`), `author` and
`license`."""

_SEPARATOR = " · "


class Attribution(NamedTuple):
    """Title, author, licence and landing page of a photo; "" where unknown."""

    title: str
    author: str
    licence: str
    link: str


def format_attribution(attribution: Attribution) -> str:
    """Return the line `A dune by Ann · CC BY 2.0 · https://…`, which records and samples carry."""
    title, author, licence, link = (" ".join(part.replace(_SEPARATOR, " - ").split()) for part in attribution)
    by = f" by {author}" if author else ""
    return _SEPARATOR.join([f"{title or 'photograph'}{by}", *filter(None, (licence, link))])


def parse_attribution(line: str, url: str) -> Attribution:
    """Parse a record's attribution line. `url` is the link of a photo whose line has none."""
    first, *rest = line.split(_SEPARATOR)
    if first.startswith("photograph: "):  # only the photo's URL is known
        return Attribution("", "", "", url)
    has_link = rest and rest[-1].startswith("http") and "//creativecommons.org/" not in rest[-1]
    link = rest.pop() if has_link else url
    title, by, author = first.rpartition(" by ")
    return Attribution(title if by else first, author if by else "", _SEPARATOR.join(rest), link)


def load_attributions(
    database: sqlite3.Connection, manifest: int, folder: Path | None
) -> Callable[[str], str]:
    """Return a function photo URL → attribution line, "" if the manifest's list does not have the URL.

    The list is the file `ATTRIBUTION.csv` in `folder`, the folder of a local manifest. Its rows are stored
    in `database` under the manifest's number.
    """
    path = folder / ATTRIBUTION if folder else None
    if path is None or not path.is_file():
        return lambda url: ""
    database.execute(
        "CREATE TABLE IF NOT EXISTS attributions (manifest INTEGER, url TEXT, line TEXT, "
        "PRIMARY KEY (manifest, url)) WITHOUT ROWID"
    )
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            cells = {str(name).strip().lower(): (value or "").strip() for name, value in row.items() if name}
            if url := cells.get("url"):
                database.execute(
                    "INSERT OR REPLACE INTO attributions VALUES (?, ?, ?)",
                    (manifest, url.partition("#")[0], format_attribution(_from_cells(cells))),
                )

    def attribution_of(url: str) -> str:
        row = database.execute(
            "SELECT line FROM attributions WHERE manifest = ? AND url = ?", (manifest, url)
        ).fetchone()
        return str(row[0]) if row else ""

    return attribution_of


def _from_cells(cells: dict[str, str]) -> Attribution:
    title = cells.get("title") or cells.get("photo") or ""
    return Attribution(title, cells.get("author", ""), cells.get("license", ""), cells["url"])
