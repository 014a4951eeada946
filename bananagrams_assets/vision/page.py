"""Overlay pages: single HTML files that work from a disk, from S3 and behind any server.

Each page contains its style, script and data, has only relative links and loads nothing from other sites.
Text from the manifest is embedded as JSON and reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .overlay import HEAT_MAP_MAX_DE

TEMPLATES = Path(__file__).parent
SUMMARY_SAMPLES = 12
"""Number of a shard's samples on the page over all shards."""

REJECTED = "rejected"
"""The `mask` of a record without a mask."""


@dataclass(frozen=True)
class PageRow:
    """One sample on the page.

    `image`: link to its panels, relative to the page; "" if there is none. `panels`: the number of panels
    side by side in it: before, aligned after, difference. `width`, `height`: size of one panel in px.
    `outline`: the mask as SVG path data in a panel's pixels. `mask`: local, global, nothing or rejected; for
    the last, `reason` states why. `confidence`, `area`: 0..1. `source`: attribution or URL of the photo.
    """

    key: str
    text: str
    type: str
    scope: str
    mask: str
    confidence: float
    area: float
    source: str
    split: str
    shard: str
    reason: str = ""
    image: str = ""
    panels: int = 1
    width: int = 4
    height: int = 3
    outline: str = ""


def render_page(title: str, name: str, rows: Sequence[PageRow], contents: str | None = None) -> str:
    """Render the page of one shard as HTML: its samples in the given order, to filter, view and label.

    The browser stores labels under `name`. `contents`: relative link to the page over all shards.
    """
    return render_template(
        TEMPLATES / "page.html",
        title=title,
        name=name,
        contents=contents,
        rows=[_row_content(row) for row in rows],
        brightest=round(HEAT_MAP_MAX_DE),
    )


def render_contents(title: str, names: Sequence[str]) -> str:
    """Render the page over all shards as HTML, to be stored beside their folders `names`.

    It depends only on the names: each shard's figures are in the `summary.js` of its own folder, so that
    building one shard needs no other shard. The page counts shards without a summary.
    """
    return render_template(TEMPLATES / "contents.html", title=title, names=list(names))


def render_summary(name: str, split: str, figures: Mapping[str, Any], rows: Sequence[PageRow]) -> str:
    """Render `summary.js` of a shard, which the page over all shards reads: its figures and first masks."""
    first = [_row_content(row) for row in rows if row.image and row.mask != REJECTED][:SUMMARY_SAMPLES]
    content = {"name": name, "split": split, "samples": len(rows), **figures, "least": first}
    return f"bananagrams({json.dumps(content)});\n"


def _row_content(row: PageRow) -> dict[str, Any]:
    """Return a row as JSON content; stored summaries have the image's link under `picture`."""
    return {"picture" if name == "image" else name: value for name, value in asdict(row).items()}


def render_template(path: Path, **content: Any) -> str:
    """Render a Jinja template that may include files of its own and of this folder; values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([path.parent, TEMPLATES]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(path.name).render(**content)
