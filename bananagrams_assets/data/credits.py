"""Who made the photographs of a local manifest, as a list beside it says."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path

ATTRIBUTION = "ATTRIBUTION.csv"
"""The list's name; its columns are `url`, `title` (or `photo`), `author` and `license`."""


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


def _credit(row: dict[str, str]) -> str:
    title = row.get("title") or row.get("photo") or "photograph"
    author = f" by {row['author']}" if row.get("author") else ""
    licence = f", {row['license']}" if row.get("license") else ""
    return f"{title}{author}{licence}, {row['url']}"
