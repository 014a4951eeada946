"""A page of overlays: one HTML file that works from file://, without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("page.html")
SCORES_TEMPLATE = Path(__file__).with_name("scores.html")


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
    return _render(
        TEMPLATE,
        title=title,
        rows=rows,
        verdicts=sorted(Counter(row.verdict for row in rows).items()),
        types=sorted(Counter(row.edit_type for row in rows).items()),
        unsure=sum(row.confidence < 0.5 for row in rows),
    )


@dataclass(frozen=True)
class ScoredPair:
    """One pair with a true mask on the page of scores. `picture`, `truth_picture`: links or data URIs of the
    strip and of the true mask over the input. `facts`: what is said below, name → text."""

    name: str
    text: str
    picture: str
    truth_picture: str
    facts: Mapping[str, str]


def render_scores(title: str, summary: Mapping[str, Any], rows: Sequence[ScoredPair]) -> str:
    """Tables of `data.mask_evaluation.summarise_scores` and a card for each row, as one HTML file."""
    return _render(SCORES_TEMPLATE, title=title, summary=summary, rows=rows)


def _render(template: Path, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
