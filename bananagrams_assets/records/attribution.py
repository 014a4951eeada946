"""Who made the photographs of a local manifest, as a list beside it says."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ATTRIBUTION = "ATTRIBUTION.csv"
"""The list's name; its columns are `url`, `title` (or `photo`), `author` and `license`."""

_BETWEEN = " · "


def read_credits(database: sqlite3.Connection, number: int, folder: Path | None) -> Callable[[str], str]:
    """Photograph's URL → credit line, or "", from the list in a local manifest's folder.

    The list is kept in `database`, under the manifest's `number`.
    """
    path = folder / ATTRIBUTION if folder else None
    if path is None or not path.is_file():
        return lambda url: ""
    database.execute(
        "CREATE TABLE IF NOT EXISTS credits (source INTEGER, url TEXT, credit TEXT, "
        "PRIMARY KEY (source, url)) WITHOUT ROWID"
    )
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            cells = {str(name).strip().lower(): (value or "").strip() for name, value in row.items() if name}
            if cells.get("url"):
                database.execute(
                    "INSERT OR REPLACE INTO credits VALUES (?, ?, ?)",
                    (number, cells["url"].partition("#")[0], _credit(cells)),
                )

    def credit(url: str) -> str:
        row = database.execute(
            "SELECT credit FROM credits WHERE source = ? AND url = ?", (number, url)
        ).fetchone()
        return str(row[0]) if row else ""

    return credit


class Credit(NamedTuple):
    """Who made a photograph, under which licence, and where it is shown; "" for what is not known."""

    title: str
    author: str
    licence: str
    link: str


def credit_line(credit: Credit) -> str:
    """`A dune by Ann · CC BY 2.0 · https://…`, as records and samples carry it."""
    title, author, licence, link = (" ".join(part.replace(_BETWEEN, " - ").split()) for part in credit)
    by = f" by {author}" if author else ""
    return _BETWEEN.join([f"{title or 'photograph'}{by}", *filter(None, (licence, link))])


def read_credit(line: str, url: str) -> Credit:
    """What a credit line says of a photograph that was asked for at `url`."""
    first, *rest = line.split(_BETWEEN)
    if first.startswith("photograph: "):  # of one of which only the address is known
        return Credit("", "", "", url)
    link = (
        rest.pop()
        if rest and rest[-1].startswith("http") and "//creativecommons.org/" not in rest[-1]
        else url
    )
    title, by, author = first.rpartition(" by ")
    return Credit(title if by else first, author if by else "", _BETWEEN.join(rest), link)


def _credit(row: dict[str, str]) -> str:
    title = row.get("title") or row.get("photo") or ""
    return credit_line(Credit(title, row.get("author", ""), row.get("license", ""), row["url"]))
