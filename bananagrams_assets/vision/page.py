"""A page of overlays: one HTML file that works from file://, without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class PageRow:
    """One sample on the page. `picture`: link to its strip, relative to the page. `source`: where the input
    photograph is from. `verdict`: local, global or nothing. `confidence`, `area`: 0..1."""

    key: str
    picture: str
    instruction: str
    edit_type: str
    verdict: str
    confidence: float
    area: float
    source: str
    split: str


def render_page(title: str, rows: Sequence[PageRow]) -> str:
    """The page as HTML: counts on top, a card for each row in the given order, sortable and filterable.

    Every text is escaped; pictures load when they come into view.
    """
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        rows=rows,
        verdicts=sorted(Counter(row.verdict for row in rows).items()),
        types=sorted(Counter(row.edit_type for row in rows).items()),
        unsure=sum(row.confidence < 0.5 for row in rows),
    )
