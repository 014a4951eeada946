"""Write an evaluation of masks: a JSON summary, a CSV table and a page with the worst pairs."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Profile
from ..vision.geometry import image_size, warp
from ..vision.images import RGB, encode_jpeg
from ..vision.overlay import mask_overlay, panel_strip
from ..vision.page import render_template
from .cases import Case
from .mask_evaluation import PairScore, measure_case, strength_name, summarise_scores

TEMPLATE = Path(__file__).parent / "scores.html"
WORST_PAIRS = 24
TILE_PX = 256


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
    rows = [_page_row(case, score, profile) for case, score in worst]
    page = output / "index.html"
    content = render_template(TEMPLATE, title="Masks against true masks", summary=summary, rows=rows)
    page.write_text(content, encoding="utf-8")
    return page


def _page_row(case: Case, score: PairScore, profile: Profile) -> dict[str, Any]:
    """Return the images of a pair as data URIs, and its `facts`, the values listed below them."""
    pair = measure_case(case, profile)
    aligned, _ = warp(pair.after, pair.alignment.homography, image_size(pair.before))
    difference = np.zeros(pair.truth.shape, np.float32) if pair.mask is None else pair.mask.difference
    return {
        "name": score.name,
        "text": case.text,
        "image": _data_uri(panel_strip(pair.before, aligned, difference, pair.predicted, TILE_PX)),
        "truth_image": _data_uri(mask_overlay(pair.before, pair.truth, TILE_PX)),
        "facts": {
            "IoU": f"{score.iou:.3f}",
            "precision": f"{score.precision:.3f}",
            "recall": f"{score.recall:.3f}",
            "boundary F": f"{score.boundary_f:.3f}",
            "true verdict": score.truth,
            "predicted verdict": score.verdict if not score.reason else f"{score.verdict} ({score.reason})",
            "family": score.family or "not given",
            "strength": strength_name(score.strength),
            "corner error": "unknown" if score.corner_px is None else f"{score.corner_px:.2f} px",
            "confidence": f"alignment {score.align_confidence:.2f}, mask {score.mask_confidence:.2f}",
        },
    }


def _data_uri(image: RGB) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, 80)).decode()
