"""Pages of overlays: single HTML files that work from a file, from S3 and behind any server.

They bring style, script and data along, link relatively and ask for nothing from elsewhere. All that people
wrote goes in as JSON and reaches the page as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .overlay import BRIGHTEST_DE

TEMPLATES = Path(__file__).parent
LEAST = 12
"""Samples that a shard's summary brings to the page over all shards."""

REJECTED = "rejected"
"""The `mask` of a record that gave none."""


@dataclass(frozen=True)
class PageRow:
    """One sample on the page.

    `picture`: link to its panels, relative to the page, or "" where there is none; `panels` says how many
    stand side by side in it: before; after as aligned; difference. `width`, `height`: of one panel in px.
    `outline`: the mask as SVG path data in a panel's pixels. `mask`: local, global, nothing or rejected, and
    then `reason` says why. `confidence`, `area`: 0..1. `source`: where the photograph is from.
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
    """The page of one shard as HTML: its samples in the given order, to filter, step through and judge.

    `name` is what verdicts are kept under in the browser, `contents` a relative link to the page over all.
    """
    return _render(
        "page.html", title=title, name=name, contents=contents, rows=[asdict(row) for row in rows],
        brightest=round(BRIGHTEST_DE),
    )  # fmt: skip


def render_contents(title: str, names: Sequence[str]) -> str:
    """The page over all shards as HTML, beside their folders `names`; a shard without a page is told of.

    It depends on the names alone: each shard's figures come from the `summary.js` in its own folder, so
    that no build of one shard has to know of the others.
    """
    return _render("contents.html", title=title, names=list(names))


def render_summary(name: str, split: str, figures: Mapping[str, Any], rows: Sequence[PageRow]) -> str:
    """`summary.js` of a shard: its figures and its first masks, as `render_contents` reads them."""
    least = [asdict(row) for row in rows if row.image and row.mask != REJECTED][:LEAST]
    content = {"name": name, "split": split, "samples": len(rows), **figures, "least": least}
    return f"bananagrams({json.dumps(content)});\n"


@dataclass(frozen=True)
class ScoredPair:
    """One pair with a true mask on the page of scores. `picture`, `truth_picture`: links or data URIs of the
    strip and of the true mask over the input. `facts`: what is said below, name → text."""

    name: str
    text: str
    image: str
    truth_image: str
    facts: Mapping[str, str]


def render_scores(title: str, summary: Mapping[str, Any], rows: Sequence[ScoredPair]) -> str:
    """Tables of `data.mask_evaluation.summarise_scores` and a card for each row, as one HTML file."""
    return _render("scores.html", title=title, summary=summary, rows=rows)


def _render(template: str, **content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**content)
