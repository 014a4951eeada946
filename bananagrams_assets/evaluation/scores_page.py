"""Write an evaluation of masks: a JSON summary, a CSV table and a page with the worst pairs."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Profile
from ..vision.geometry import image_size, warp
from ..vision.images import RGB, encode_jpeg
from ..vision.overlay import mask_overlay, panel_strip
from ..vision.page import render_template
from .cases import Case
from .mask_evaluation import PairScore, measure_case, summarise_scores

TEMPLATE = Path(__file__).parent / "scores.html"
WORST_PAIRS = 24
TILE_PX = 256


@dataclass(frozen=True)
class ScoredPair:
    """One pair on the scores page.

    `image`, `truth_image`: links or data URIs of the panels and of the true mask over the input. `facts`: the
    values listed below them, name → text.
    """

    name: str
    text: str
    image: str
    truth_image: str
    facts: Mapping[str, str]


def write_evaluation(
    cases: Sequence[Case],
    scores: Sequence[PairScore],
    profile: Profile,
    output: Path,
    worst_pairs: int = WORST_PAIRS,
) -> Path:
    """Write `scores.json`, `pairs.csv` and `index.html`; return the path of the page.

    The page shows the `worst_pairs` pairs with the lowest IoU and needs no other file.
    """
    output.mkdir(parents=True, exist_ok=True)
    summary = summarise_scores(scores)
    (output / "scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(PairScore)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    (output / "pairs.csv").write_text(table.getvalue(), encoding="utf-8")
    readable = [(case, score) for case, score in zip(cases, scores, strict=True) if not score.problem]
    worst = sorted(readable, key=lambda pair: pair[1].iou)[:worst_pairs]
    rows = [_scored_pair(case, score, profile) for case, score in worst]
    page = output / "index.html"
    page.write_text(render_scores("Masks against true masks", summary, rows), encoding="utf-8")
    return page


def render_scores(title: str, summary: Mapping[str, Any], rows: Sequence[ScoredPair]) -> str:
    """Render the tables of `summarise_scores` and a card for each row as one HTML file."""
    return render_template(TEMPLATE, title=title, summary=summary, rows=rows)


def _scored_pair(case: Case, score: PairScore, profile: Profile) -> ScoredPair:
    pair = measure_case(case, profile.align, profile.mask, profile.fetch.max_pixels)
    aligned, _ = warp(pair.after, pair.alignment.homography, image_size(pair.before))
    difference, mask = np.zeros(pair.truth.shape, np.float32), np.zeros_like(pair.truth)
    if pair.mask is not None:
        difference, mask = pair.mask.difference, pair.mask.mask
    return ScoredPair(
        name=score.name,
        text=case.text,
        image=_data_uri(panel_strip(pair.before, aligned, difference, mask, TILE_PX)),
        truth_image=_data_uri(mask_overlay(pair.before, pair.truth, TILE_PX)),
        facts={
            "IoU": f"{score.iou:.3f}",
            "precision": f"{score.precision:.3f}",
            "recall": f"{score.recall:.3f}",
            "boundary F": f"{score.boundary_f:.3f}",
            "true verdict": score.truth,
            "predicted verdict": score.verdict if not score.reason else f"{score.verdict} ({score.reason})",
            "family": score.family or "not given",
            "strength": "not given" if score.strength is None else f"{score.strength:g}",
            "corner error": "unknown" if score.corner_px is None else f"{score.corner_px:.2f} px",
            "confidence": f"alignment {score.align_confidence:.2f}, mask {score.mask_confidence:.2f}",
        },
    )


def _data_uri(image: RGB) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, 80)).decode()
