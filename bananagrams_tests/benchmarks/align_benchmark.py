"""Alignment against exact homographies, its confidence against true errors, and its time.

    python -m bananagrams_tests.benchmarks.align_benchmark accuracy [--half odd] [--every N] [--photos DIR]
    python -m bananagrams_tests.benchmarks.align_benchmark speed [--pairs N]
    python -m bananagrams_tests.benchmarks.align_benchmark refit [--every N]

`accuracy` makes pairs (see `align_pairs`) and prints the corner error by kind and strength: the largest
distance over the edited picture's four corners, in px of an input of 1024 px on its longest side. Then what
is accepted, the area under the ROC curve of the confidence for an error over 4 px, and a reliability table.
`speed` times ours and full-size SIFT with RANSAC in turn, in one process on one core. `refit` fits the
weights of the confidence (`WEIGHTS` in vision/align.py) anew.

Photographs are taken by name in turn: those of even place are for tuning and for `refit`, those of odd place
for figures. Without a folder of photographs the packaged ones are used.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from bananagrams_assets.config import AlignSettings
from bananagrams_assets.vision.align import WEIGHTS, align, attempts
from bananagrams_assets.vision.geometry import Floats, frame, project
from bananagrams_assets.vision.images import RGB
from bananagrams_tests.benchmarks.align_pairs import HARD, PLAN, USUAL, Made, pairs, photos

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDE_PX = 1024
WRONG_PX = 4.0
FAR_PX = 8.0
BINS = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)


class Row(NamedTuple):
    """One pair: its kind, the largest corner error in px at 1024 px (infinite for unrelated pictures)."""

    kind: str
    strength: float
    model: str
    error: float
    accepted: bool
    confidence: float
    method: str
    reason: str
    seconds: float


def corner_error(found: Floats, made: Made) -> float:
    if made.truth is None:
        return float("inf")
    corners = frame((made.after.shape[1], made.after.shape[0]))
    distance = np.linalg.norm(project(found, corners) - project(made.truth, corners), axis=1)
    return float(distance.max() * 1024 / max(made.before.shape))


def aligned(paths: Sequence[Path], number: int, plan: dict[str, Sequence[float]]) -> list[Row]:
    cv2.setNumThreads(1)
    rows = []
    for made in pairs(paths, number, SIDE_PX, plan):
        start = time.thread_time()
        found = align(made.before, made.after, AlignSettings())
        seconds = time.thread_time() - start
        rows.append(
            Row(
                made.kind, made.strength, made.model, corner_error(found.homography, made), found.accepted,
                found.confidence, found.method, found.reason, seconds,
            )
        )  # fmt: skip
    return rows


def auroc(wrong: Sequence[bool], confidence: Sequence[float]) -> float:
    """The chance that a wrong one is given less confidence than a right one; nan without one of each."""
    bad, score = np.asarray(wrong, bool), np.asarray(confidence, np.float64)
    above = score[~bad][:, None] - score[bad][None]
    return float((np.sign(above) + 1).mean() / 2) if above.size else float("nan")


def quantiles(errors: Sequence[float]) -> str:
    return (
        "  ".join(f"{np.quantile(errors, q, method='higher'):8.2f}" for q in (0.5, 0.9, 0.95, 1.0))
        if errors
        else "-"
    )


def accuracy(rows: list[Row]) -> str:
    lines = [
        f"{'kind':18}strength  pairs  accepted    median       90%       95%   largest  over 4  over 8    ms"
    ]
    for kind, strength in dict.fromkeys((row.kind, row.strength) for row in rows):
        group = [row for row in rows if (row.kind, row.strength) == (kind, strength)]
        errors = [row.error for row in group if row.accepted]
        lines.append(
            f"{kind:18}{strength:8g}{len(group):7}{len(errors):10}  {quantiles(errors):>38}"
            f"{sum(error > WRONG_PX for error in errors):8}{sum(error > FAR_PX for error in errors):8}"
            f"{1000 * np.mean([row.seconds for row in group]):6.0f}"
        )
    lines.append("\nusual edits together, rejected ones with the error of the plain resize")
    for strength in sorted({row.strength for row in rows if row.kind in USUAL}):
        group = [row for row in rows if row.kind in USUAL and row.strength == strength]
        lines.append(
            f"{'':18}{strength:8g}{len(group):7}{sum(row.accepted for row in group):10}"
            f"  {quantiles([row.error for row in group]):>38}"
        )
    related = [row for row in rows if np.isfinite(row.error)]
    unrelated = [row for row in rows if not np.isfinite(row.error)]
    accepted = [row for row in rows if row.accepted]
    lines.append(
        f"\n{len(related)} related pairs: {sum(row.accepted for row in related)} accepted, of which "
        f"{sum(row.accepted and row.error > WRONG_PX for row in related)} over 4 px and "
        f"{sum(row.accepted and row.error > FAR_PX for row in related)} over 8 px; "
        f"{len(unrelated)} unrelated pairs: {sum(row.accepted for row in unrelated)} accepted"
    )
    for name, group in (("all pairs", rows), ("accepted pairs", accepted)):
        wrong = [row.error > WRONG_PX for row in group]
        lines.append(
            f"AUROC of the confidence for an error over 4 px, {name}: "
            f"{auroc(wrong, [row.confidence for row in group]):.4f} ({sum(wrong)} of {len(wrong)} wrong)"
        )
    lines.append("\nconfidence     pairs  mean confidence  share within 4 px")
    for low, high in pairwise(BINS):
        group = [row for row in accepted if low <= row.confidence < high or row.confidence == high == 1]
        if group:
            right = np.mean([row.error <= WRONG_PX for row in group])
            mean = np.mean([row.confidence for row in group])
            lines.append(f"{low:.2f}..{high:.2f}{len(group):9}{mean:17.3f}{right:19.3f}")
    lines.append("\nmodel of the truth: models found")
    for model in ("resize", "scale", "affine", "homography"):
        found = Counter(row.method for row in rows if row.kind == f"{model} model")
        lines.append(f"{model:12}{dict(found.most_common())}")
    lines.append("\nwhy rejected")
    for reason, count in Counter(row.reason for row in rows if not row.accepted).most_common(12):
        lines.append(f"{count:4}  {reason}")
    return "\n".join(lines)


def plain(before: RGB, after: RGB) -> Floats | None:
    """What is usually done: full-size SIFT, brute force, ratio test at 0.75, RANSAC within 5 px."""
    sift = cv2.SIFT.create()
    points, first = sift.detectAndCompute(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY), None)
    moved, second = sift.detectAndCompute(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY), None)
    if first is None or second is None or len(points) < 2:
        return None
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(second, first, k=2)
    matches = [one for one, other in candidates if one.distance < 0.75 * other.distance]
    if len(matches) < 4:
        return None
    cv2.setRNGSeed(0)
    found, _ = cv2.findHomography(
        np.array([moved[match.queryIdx].pt for match in matches]),
        np.array([points[match.trainIdx].pt for match in matches]),
        cv2.RANSAC,
        5.0,
    )
    return None if found is None else np.asarray(found, np.float64)


def speed(paths: Sequence[Path], count: int) -> Iterator[str]:
    """Lines of CPU ms a pair and errors, ours and the plain way in turn, at three sizes."""

    def ours(before: RGB, after: RGB) -> Floats | None:
        found = align(before, after, AlignSettings())
        return found.homography if found.accepted else None

    ways: dict[str, Callable[[RGB, RGB], Floats | None]] = {"ours": ours, "plain": plain}
    for side in (640, 1024, 2048):
        chosen = [
            made
            for number in np.linspace(0, len(paths) - 1, count).astype(int)
            for made in pairs(paths, int(number), side, {"local": (1,)})
        ]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        errors: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way(chosen[0].before, chosen[0].after)  # what is loaded once is not part of a pair's time
        for made in chosen:
            for name, way in ways.items():
                start = time.thread_time()
                found = way(made.before, made.after)
                seconds[name].append(time.thread_time() - start)
                if found is not None:
                    errors[name].append(corner_error(found, made))
        for name in ways:
            yield (
                f"{side:5} px  {name:6}{1000 * np.mean(seconds[name]):8.1f} ms a pair "
                f"(median {1000 * np.median(seconds[name]):.1f}), error {quantiles(errors[name])}"
            )
        yield f"{'':10}{sum(seconds['plain']) / sum(seconds['ours']):.1f} times the speed"


def evidence(
    paths: Sequence[Path], number: int, plan: dict[str, Sequence[float]]
) -> list[tuple[dict[str, float], bool]]:
    """The evidence of everything that any way to align finds, and whether it is right."""
    cv2.setNumThreads(1)
    return [
        (found.evidence, corner_error(found.homography, made) <= WRONG_PX)
        for made in pairs(paths, number, SIDE_PX, plan)
        for found in attempts(made.before, made.after, AlignSettings())
        if not isinstance(found, str)
    ]


def refitted(seen: Sequence[tuple[dict[str, float], bool]]) -> dict[str, float]:
    """Logistic regression with a weak prior of zero weights, by Newton's method (as in WEIGHTS)."""
    names = [name for name in WEIGHTS if name]
    inputs = np.array([[1, *(row[name] for name in names)] for row, _ in seen])
    right = np.array([good for _, good in seen], np.float64)
    spread = np.array([1, *inputs[:, 1:].std(axis=0)])
    scaled, weights = inputs / spread, np.zeros(len(spread))
    prior = np.diag([0.0, *np.full(len(names), 0.5)])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-scaled @ weights))
        slope = scaled.T @ (chance - right) + prior @ weights
        weights -= np.linalg.solve(scaled.T @ (scaled * (chance * (1 - chance))[:, None]) + prior, slope)
    return dict(zip(("", *names), (round(float(value), 2) for value in weights / spread), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("accuracy", "speed", "refit"))
    parser.add_argument("--half", choices=("even", "odd"), default="odd", help="photographs, by place")
    parser.add_argument("--every", type=int, default=1, help="take every nth photograph of that half")
    parser.add_argument("--pairs", type=int, default=20, help="pairs to time at each size")
    parser.add_argument("--photos", type=Path, help="folder of photographs; default: the packaged ones")
    chosen = parser.parse_args()
    if any(os.environ.get(variable) != "1" for variable in ONE_THREAD):
        # numpy reads these when it is imported: start again with them.
        command = [sys.executable, "-m", "bananagrams_tests.benchmarks.align_benchmark", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **dict.fromkeys(ONE_THREAD, "1")})
    cv2.setNumThreads(1)
    half = "even" if chosen.what == "refit" else chosen.half
    paths = photos(half, chosen.photos)
    numbers = range(0, len(paths), chosen.every)
    if chosen.what == "speed":
        for line in speed(paths, chosen.pairs):
            print(line, flush=True)
        return
    print(f"{len(numbers)} photographs of {half} place, {SIDE_PX} px", flush=True)
    with ProcessPoolExecutor(2) as pool:
        if chosen.what == "accuracy":
            rows = pool.map(aligned, repeat(paths), numbers, repeat(PLAN))
            print(accuracy(list(chain.from_iterable(rows))))
        else:
            seen = pool.map(evidence, repeat(paths), numbers, repeat(HARD))
            print(refitted(list(chain.from_iterable(seen))))


if __name__ == "__main__":
    main()
