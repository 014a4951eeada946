"""Masks against true masks: any folder of pairs, scored pair by pair, summed up, the worst drawn.

A folder is either what `bananagrams sample` writes (`sft.jsonl` and `truth.jsonl`), or files of one name a
pair: `NAME.before.jpg`, `NAME.after.png` (any format that is read) and `NAME.truth.png` (white where edited,
of the before picture's size), and beside them, if anything more is known, a `NAME.json` with any of `family`,
`strength`, `edit_type`, `text`, `is_global` and `homography` (9 numbers, edited px → before px).
"""

from __future__ import annotations

import base64
import csv
import io
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from ..config import AlignSettings, MaskSettings, Profile
from ..errors import BananagramsError
from ..progress import Log
from ..records.edit_types import edit_type
from ..vision.align import Alignment, align
from ..vision.geometry import Floats, frame, overlap_polygon, polygon_mask, project, warp
from ..vision.images import RGB, ImageError, Mask, decode, decode_mask, encode_jpeg
from ..vision.mask import EditMask, edit_mask
from ..vision.overlay import strip, tinted
from ..vision.page import ScoredPair, render_scores
from .mask_scores import auroc, calibration_error, reliability, score_mask

VERDICTS = ("local", "global", "nothing")
GOOD_IOU = 0.75
"""From which a mask counts as right when its confidence is judged."""
GOOD_CORNER_PX = 4.0
"""Up to which an alignment counts as right when its confidence is judged."""
WORST = 24
TILE_PX = 256


class EvaluationError(BananagramsError, ValueError):
    """A folder that cannot be evaluated; the message names the file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Case:
    """One pair on disk and what is known of it; `homography` maps edited px to before px."""

    name: str
    before: Path
    after: Path
    truth: Path
    family: str = ""
    strength: float | None = None
    edit_type: str = ""
    text: str = ""
    is_global: bool | None = None
    homography: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PairScore:
    """How the masks fare on one pair. Where `problem` says why it could not be read, nothing else counts.

    `iou` to `false_area` are 0..1, over the pixels that both pictures show; a pair that cannot be aligned has
    an empty mask. `corner_px`: the largest error of the four corners in before px, None where it is not
    known where they belong.
    """

    name: str
    family: str
    strength: float | None
    truth: str
    verdict: str
    aligned: bool
    reason: str
    iou: float
    precision: float
    recall: float
    boundary_f: float
    false_area: float
    corner_px: float | None
    align_confidence: float
    mask_confidence: float
    problem: str = ""


def read_cases(folder: Path) -> list[Case]:
    """The pairs of a folder, in order; raises EvaluationError where there are none or a file is missing."""
    cases = list(_made(folder) if (folder / "truth.jsonl").is_file() else _named(folder))
    if not cases:
        raise EvaluationError(
            f"{folder} holds no pairs: neither truth.jsonl, as `bananagrams sample` writes it, nor "
            "NAME.before.*, NAME.after.* and NAME.truth.png"
        )
    for case in cases:
        for path in (case.before, case.after, case.truth):
            if not path.is_file():
                raise EvaluationError(f"{path} is missing")
    return cases


def _made(folder: Path) -> Iterator[Case]:
    records = {record["output_image"]: record for record in _lines(folder / "sft.jsonl", "output_image")}
    for truth in _lines(folder / "truth.jsonl", "output_image"):
        record = records.get(truth["output_image"])
        if record is None or "local_input_image" not in record or "mask" not in truth:
            raise EvaluationError(f"{folder}/truth.jsonl: {truth['output_image']} has no record or no mask")
        yield _case(
            folder / "truth.jsonl",
            Path(truth["output_image"]).stem,
            (folder / record["local_input_image"], folder / truth["output_image"], folder / truth["mask"]),
            {"edit_type": record.get("edit_type", ""), "text": record.get("text", ""), **truth},
        )


def _named(folder: Path) -> Iterator[Case]:
    for before in sorted(folder.rglob("*.before.*")):
        name = before.name.rsplit(".before.", 1)[0]
        after = sorted(before.parent.glob(f"{_literal(name)}.after.*"))
        if not after:
            raise EvaluationError(f"{before} has no {name}.after.* beside it")
        said: Any = {}
        if (before.parent / f"{name}.json").is_file():
            said = _json(
                (before.parent / f"{name}.json").read_text(encoding="utf-8"),
                str(before.parent / f"{name}.json"),
            )
        key = (before.parent / name).relative_to(folder).as_posix()
        yield _case(
            before.parent / f"{name}.json", key, (before, after[0], before.parent / f"{name}.truth.png"), said
        )


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _case(source: Path, name: str, paths: tuple[Path, Path, Path], said: Mapping[str, Any]) -> Case:
    homography, strength, is_global = said.get("homography"), said.get("strength"), said.get("is_global")
    try:
        numbers = None if homography is None else tuple(float(value) for value in np.ravel(homography))
        if numbers is not None and (len(numbers) != 9 or not np.isfinite(numbers).all()):
            raise ValueError("homography must be 9 finite numbers")
        if not isinstance(is_global, bool | None):
            raise ValueError("is_global must be true or false")
        return Case(
            name, *paths, str(said.get("family", "")), None if strength is None else float(strength),
            str(said.get("edit_type", "")), str(said.get("text", "")), is_global, numbers,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{source}: {name}: {error}") from None


def _lines(path: Path, key: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise EvaluationError(f"{path} is missing")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        content = _json(line, f"{path}, line {number}")
        if key not in content:
            raise EvaluationError(f"{path}, line {number}: has no {key}")
        found.append(content)
    return found


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{where}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{where}: not a JSON object")
    return content


@dataclass(frozen=True, eq=False)
class Measured:
    """A pair decoded, aligned and masked; `mask` is None where it could not be aligned."""

    before: RGB
    after: RGB
    truth: Mask
    known: Mask
    alignment: Alignment
    mask: EditMask | None


def measure_case(case: Case, align_with: AlignSettings, mask_with: MaskSettings, max_pixels: int) -> Measured:
    """Align and mask a pair. Raises PictureError where a picture cannot be read or sizes disagree."""
    before, after = (decode(path.read_bytes(), max_pixels) for path in (case.before, case.after))
    truth = decode_mask(case.truth.read_bytes())
    if truth.shape != before.shape[:2]:
        sizes = (
            f"{truth.shape[1]} x {truth.shape[0]} px, the picture {before.shape[1]} x {before.shape[0]} px"
        )
        raise ImageError(f"the true mask has {sizes}")
    size, source = (before.shape[1], before.shape[0]), (after.shape[1], after.shape[0])
    known = np.ones(truth.shape, bool)
    if case.homography is not None:
        known = polygon_mask(overlap_polygon(_matrix(case.homography), source, size), size)
    alignment = align(before, after, align_with)
    found = None
    if alignment.accepted:
        scope = edit_type(case.edit_type).scope
        found = edit_mask(before, after, alignment.homography, alignment.overlap, mask_with, scope)
    return Measured(before, after, truth, known, alignment, found)


def score_case(case: Case, align_with: AlignSettings, mask_with: MaskSettings, max_pixels: int) -> PairScore:
    """Score a pair; what cannot be read is a row with its `problem`."""
    try:
        pair = measure_case(case, align_with, mask_with, max_pixels)
    except ImageError as error:
        return PairScore(
            case.name, case.family, case.strength, "", "", False, "", 0.0, 0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0,
            str(error),
        )  # fmt: skip
    mask = np.zeros_like(pair.truth) if pair.mask is None else pair.mask.mask
    scores = score_mask(mask, pair.truth, pair.known)
    corner = None
    if case.homography is not None:
        corners = frame((pair.after.shape[1], pair.after.shape[0]))
        apart = project(pair.alignment.homography, corners) - project(_matrix(case.homography), corners)
        corner = round(float(np.linalg.norm(apart, axis=1).max()), 4)
    return PairScore(
        name=case.name,
        family=case.family,
        strength=case.strength,
        truth=_true_verdict(case, pair.truth),
        verdict="not aligned" if pair.mask is None else pair.mask.verdict,
        aligned=pair.mask is not None,
        reason=pair.alignment.reason,
        iou=scores.iou,
        precision=scores.precision,
        recall=scores.recall,
        boundary_f=scores.boundary_f,
        false_area=scores.false_area,
        corner_px=corner,
        align_confidence=pair.alignment.confidence,
        mask_confidence=0.0 if pair.mask is None else pair.mask.confidence,
    )


def _true_verdict(case: Case, truth: Mask) -> str:
    if case.is_global or (case.is_global is None and truth.all()):
        return "global"
    return "local" if truth.any() else "nothing"


def _matrix(numbers: Sequence[float]) -> Floats:
    return np.array(numbers, np.float64).reshape(3, 3)


def score_folder(cases: Sequence[Case], profile: Profile, workers: int, log: Log) -> list[PairScore]:
    """The scores of every pair, in order; they depend on neither `workers` nor what else runs."""
    score = partial(
        score_case, align_with=profile.align, mask_with=profile.mask, max_pixels=profile.fetch.max_pixels
    )
    if workers <= 1:
        return list(_told(map(score, cases), len(cases), log))
    # A spawned process shares no locks with this one's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        return list(_told(pool.map(score, cases, chunksize=4), len(cases), log))


def _one_thread() -> None:
    cv2.setNumThreads(1)
    threadpool_limits(1)


def _told(scores: Iterator[PairScore], total: int, log: Log) -> Iterator[PairScore]:
    for number, score in enumerate(scores, start=1):
        if number % 100 == 0:
            log(f"{number} of {total} pairs scored")
        yield score


def summarise_scores(scores: Sequence[PairScore]) -> dict[str, Any]:
    """Everything that `evaluate-masks` reports, as JSON.

    `local`: means over pairs with a local edit, by family and by strength too. `verdicts`: counts, true
    verdict → found. `false_area`: of pairs with no visible edit. `corner_px`: errors of aligned pairs.
    `confidence`: how far the two can be believed, see GOOD_CORNER_PX and GOOD_IOU.
    """
    read = [score for score in scores if not score.problem]
    local = [score for score in read if score.truth == "local"]
    untouched = [score.false_area for score in read if score.truth == "nothing"]
    corners = [score.corner_px for score in read if score.aligned and score.corner_px is not None]
    placed = [score for score in read if score.corner_px is not None]
    return {
        "pairs": len(scores),
        "not_read": {score.name: score.problem for score in scores if score.problem},
        "not_aligned": sum(not score.aligned for score in read),
        "local": _means(local),
        "by_strength": _grouped(
            local, lambda score: "not given" if score.strength is None else f"{score.strength:g}"
        ),
        "by_family": _grouped(local, lambda score: score.family or "not given"),
        "verdicts": {
            truth: dict(sorted(Counter(score.verdict for score in read if score.truth == truth).items()))
            for truth in VERDICTS
            if any(score.truth == truth for score in read)
        },
        "false_area": {
            "pairs": len(untouched),
            "mean": _mean(untouched),
            "max": max(untouched, default=None),
        },
        "corner_px": {
            "pairs": len(corners),
            "median": _percentile(corners, 50),
            "p95": _percentile(corners, 95),
            "over_8": sum(corner > 8 for corner in corners),
        },
        "confidence": {
            f"alignment (corners within {GOOD_CORNER_PX:g} px)": _calibration(
                [score.align_confidence for score in placed],
                [score.corner_px is not None and score.corner_px <= GOOD_CORNER_PX for score in placed],
            ),
            f"mask (IoU {GOOD_IOU:g} or more)": _calibration(
                [score.mask_confidence for score in local], [score.iou >= GOOD_IOU for score in local]
            ),
        },
    }


def _means(scores: Sequence[PairScore]) -> dict[str, Any]:
    names = ("iou", "precision", "recall", "boundary_f")
    return {"pairs": len(scores)} | {
        name: _mean([getattr(score, name) for score in scores]) for name in names
    }


def _grouped(scores: Sequence[PairScore], label: Callable[[PairScore], str]) -> dict[str, dict[str, Any]]:
    labels = sorted({label(score) for score in scores})
    return {name: _means([score for score in scores if label(score) == name]) for name in labels}


def _calibration(confidence: Sequence[float], good: Sequence[bool]) -> dict[str, Any]:
    return {
        "pairs": len(confidence),
        "good": _mean([float(each) for each in good]),
        "auroc": auroc(confidence, good),
        "calibration_error": calibration_error(confidence, good),
        "reliability": reliability(confidence, good),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None


def write_evaluation(
    cases: Sequence[Case], scores: Sequence[PairScore], profile: Profile, output: Path, worst: int = WORST
) -> Path:
    """`scores.json`, `pairs.csv` and `index.html`, which draws the worst pairs and needs no other file.

    Returns the page's path.
    """
    output.mkdir(parents=True, exist_ok=True)
    summary = summarise_scores(scores)
    (output / "scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(PairScore)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    (output / "pairs.csv").write_text(text.getvalue(), encoding="utf-8")
    paired = [pair for pair in zip(cases, scores, strict=True) if not pair[1].problem]
    drawn = [
        _drawn(case, score, profile) for case, score in sorted(paired, key=lambda pair: pair[1].iou)[:worst]
    ]
    page = output / "index.html"
    page.write_text(render_scores("Masks against true masks", summary, drawn), encoding="utf-8")
    return page


def _drawn(case: Case, score: PairScore, profile: Profile) -> ScoredPair:
    pair = measure_case(case, profile.align, profile.mask, profile.fetch.max_pixels)
    size = pair.before.shape[1], pair.before.shape[0]
    aligned, _ = warp(pair.after, pair.alignment.homography, size)
    nothing = np.zeros(pair.truth.shape, np.float32)
    panels = (nothing, pair.truth & False) if pair.mask is None else (pair.mask.difference, pair.mask.mask)
    return ScoredPair(
        name=score.name,
        text=case.text,
        image=_data_uri(strip(pair.before, aligned, *panels, TILE_PX)),
        truth_image=_data_uri(tinted(pair.before, pair.truth, TILE_PX)),
        facts={
            "IoU": f"{score.iou:.3f}",
            "precision": f"{score.precision:.3f}",
            "recall": f"{score.recall:.3f}",
            "boundary F": f"{score.boundary_f:.3f}",
            "truth": score.truth,
            "verdict": score.verdict if not score.reason else f"{score.verdict} ({score.reason})",
            "family": score.family or "not given",
            "strength": "not given" if score.strength is None else f"{score.strength:g}",
            "corners": "not known" if score.corner_px is None else f"{score.corner_px:.2f} px off",
            "confidence": f"alignment {score.align_confidence:.2f}, mask {score.mask_confidence:.2f}",
        },
    )


def _data_uri(image: RGB) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image, 80)).decode()
