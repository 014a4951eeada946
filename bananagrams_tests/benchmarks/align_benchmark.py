"""Measure alignment against exact homographies, its confidence against true errors, and its CPU time.

    python -m bananagrams_tests.benchmarks.align_benchmark accuracy [--half odd] [--every N] [--photos DIR]
    python -m bananagrams_tests.benchmarks.align_benchmark speed [--pairs N]
    python -m bananagrams_tests.benchmarks.align_benchmark refit [--every N]

`accuracy` makes pairs (see `align_pairs`) and prints the corner error by kind and strength: the largest
distance over the edited image's four corners, in px of an input of 1024 px on its longest side. Then it
prints the accepted pairs, the AUROC of the confidence for an error over 4 px, and a reliability table.
`speed` times ours and full-size SIFT with RANSAC in turn, in one process on one core. `refit` fits the
weights of the confidence (`CONFIDENCE_WEIGHTS` in vision/tracking.py).

Photos are numbered by name: those at even positions are for tuning and `refit`, those at odd positions for
figures. Without a folder of photos the packaged ones are used.
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
from bananagrams_assets.evaluation.mask_scores import auroc
from bananagrams_assets.vision.align import align, candidate_fits
from bananagrams_assets.vision.geometry import Floats, frame_corners, image_size, project
from bananagrams_assets.vision.images import RGB
from bananagrams_assets.vision.tracking import CONFIDENCE_WEIGHTS
from bananagrams_tests.benchmarks.align_pairs import FITTING_PLAN, PLAN, USUAL, MadePair, pairs, photos

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SIDE_PX = 1024
WRONG_PX = 4.0
FAR_PX = 8.0
BINS = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)


class Row(NamedTuple):
    """Result of one pair. `error`: largest corner error in px at 1024 px, infinite for unrelated images."""

    kind: str
    strength: float
    model: str
    error: float
    accepted: bool
    confidence: float
    method: str
    reason: str
    seconds: float


def corner_error(homography: Floats, made: MadePair) -> float:
    if made.truth is None:
        return float("inf")
    corners = frame_corners(image_size(made.after))
    distance = np.linalg.norm(project(homography, corners) - project(made.truth, corners), axis=1)
    return float(distance.max() * 1024 / max(made.before.shape))


def measure_photo(paths: Sequence[Path], number: int, plan: dict[str, Sequence[float]]) -> list[Row]:
    cv2.setNumThreads(1)
    rows = []
    for made in pairs(paths, number, SIDE_PX, plan):
        start = time.thread_time()
        alignment = align(made.before, made.after, AlignSettings())
        seconds = time.thread_time() - start
        error = corner_error(alignment.homography, made)
        rows.append(
            Row(
                made.kind, made.strength, made.model, error, alignment.accepted,
                alignment.confidence, alignment.method, alignment.reason, seconds,
            )
        )  # fmt: skip
    return rows


def quantiles(errors: Sequence[float]) -> str:
    if not errors:
        return "-"
    return "  ".join(f"{np.quantile(errors, q, method='higher'):8.2f}" for q in (0.5, 0.9, 0.95, 1.0))


def accuracy(rows: list[Row]) -> str:
    accepted = [row for row in rows if row.accepted]
    lines = [*_errors_by_kind(rows), *_acceptance(rows)]
    for name, group in (("all pairs", rows), ("accepted pairs", accepted)):
        right = [row.error <= WRONG_PX for row in group]
        area = auroc([row.confidence for row in group], right)
        lines.append(
            f"AUROC of the confidence for an error over 4 px, {name}: "
            f"{'-' if area is None else f'{area:.4f}'} ({right.count(False)} of {len(right)} wrong)"
        )
    lines.append("\nconfidence     pairs  mean confidence  share within 4 px")
    for low, high in pairwise(BINS):
        group = [row for row in accepted if low <= row.confidence < high or row.confidence == high == 1]
        if group:
            share = np.mean([row.error <= WRONG_PX for row in group])
            mean = np.mean([row.confidence for row in group])
            lines.append(f"{low:.2f}..{high:.2f}{len(group):9}{mean:17.3f}{share:19.3f}")
    lines.append("\ntrue model: selected models")
    for model in ("resize", "scale", "affine", "homography"):
        methods = Counter(row.method for row in rows if row.kind == f"{model} model")
        lines.append(f"{model:12}{dict(methods.most_common())}")
    lines.append("\nreasons for rejection")
    for reason, count in Counter(row.reason for row in rows if not row.accepted).most_common(12):
        lines.append(f"{count:4}  {reason}")
    return "\n".join(lines)


def _errors_by_kind(rows: list[Row]) -> Iterator[str]:
    yield (
        f"{'kind':18}strength  pairs  accepted    median       90%       95%   largest  over 4  over 8    ms"
    )
    for kind, strength in dict.fromkeys((row.kind, row.strength) for row in rows):
        group = [row for row in rows if (row.kind, row.strength) == (kind, strength)]
        errors = [row.error for row in group if row.accepted]
        yield (
            f"{kind:18}{strength:8g}{len(group):7}{len(errors):10}  {quantiles(errors):>38}"
            f"{sum(error > WRONG_PX for error in errors):8}{sum(error > FAR_PX for error in errors):8}"
            f"{1000 * np.mean([row.seconds for row in group]):6.0f}"
        )
    yield "\nusual edits together; rejected pairs have the error of the plain resize"
    for strength in sorted({row.strength for row in rows if row.kind in USUAL}):
        group = [row for row in rows if row.kind in USUAL and row.strength == strength]
        yield (
            f"{'':18}{strength:8g}{len(group):7}{sum(row.accepted for row in group):10}"
            f"  {quantiles([row.error for row in group]):>38}"
        )


def _acceptance(rows: list[Row]) -> Iterator[str]:
    related = [row for row in rows if np.isfinite(row.error)]
    unrelated = [row for row in rows if not np.isfinite(row.error)]
    yield (
        f"\n{len(related)} related pairs: {sum(row.accepted for row in related)} accepted, of which "
        f"{sum(row.accepted and row.error > WRONG_PX for row in related)} over 4 px and "
        f"{sum(row.accepted and row.error > FAR_PX for row in related)} over 8 px; "
        f"{len(unrelated)} unrelated pairs: {sum(row.accepted for row in unrelated)} accepted"
    )


def plain(before: RGB, after: RGB) -> Floats | None:
    """The usual method: full-size SIFT, brute-force matching, ratio test at 0.75, RANSAC within 5 px."""
    sift = cv2.SIFT.create()
    before_points, before_descriptors = sift.detectAndCompute(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY), None)
    after_points, after_descriptors = sift.detectAndCompute(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY), None)
    if before_descriptors is None or after_descriptors is None or len(before_points) < 2:
        return None
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(after_descriptors, before_descriptors, k=2)
    matches = [nearest for nearest, second in candidates if nearest.distance < 0.75 * second.distance]
    if len(matches) < 4:
        return None
    cv2.setRNGSeed(0)
    homography, _ = cv2.findHomography(
        np.array([after_points[match.queryIdx].pt for match in matches]),
        np.array([before_points[match.trainIdx].pt for match in matches]),
        cv2.RANSAC,
        5.0,
    )
    return None if homography is None else np.asarray(homography, np.float64)


def speed(paths: Sequence[Path], count: int) -> Iterator[str]:
    """Yield lines with CPU ms per pair and errors of ours and the plain method, at three sizes."""

    def ours(before: RGB, after: RGB) -> Floats | None:
        alignment = align(before, after, AlignSettings())
        return alignment.homography if alignment.accepted else None

    methods: dict[str, Callable[[RGB, RGB], Floats | None]] = {"ours": ours, "plain": plain}
    for side in (640, 1024, 2048):
        made_pairs = [
            made
            for number in np.linspace(0, len(paths) - 1, count).astype(int)
            for made in pairs(paths, int(number), side, {"local": (1,)})
        ]
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        errors: dict[str, list[float]] = {name: [] for name in methods}
        for method in methods.values():
            method(made_pairs[0].before, made_pairs[0].after)  # one-time loading is not part of a pair's time
        for made in made_pairs:
            for name, method in methods.items():
                start = time.thread_time()
                homography = method(made.before, made.after)
                seconds[name].append(time.thread_time() - start)
                if homography is not None:
                    errors[name].append(corner_error(homography, made))
        for name in methods:
            yield (
                f"{side:5} px  {name:6}{1000 * np.mean(seconds[name]):8.1f} ms per pair "
                f"(median {1000 * np.median(seconds[name]):.1f}), error {quantiles(errors[name])}"
            )
        yield f"{'':10}{sum(seconds['plain']) / sum(seconds['ours']):.1f} times the speed"


def evidence(
    paths: Sequence[Path], number: int, plan: dict[str, Sequence[float]]
) -> list[tuple[dict[str, float], bool]]:
    """Return the evidence of every candidate fit, and whether its corners lie within 4 px."""
    cv2.setNumThreads(1)
    return [
        (fit.evidence, corner_error(fit.homography, made) <= WRONG_PX)
        for made in pairs(paths, number, SIDE_PX, plan)
        for fit in candidate_fits(made.before, made.after, AlignSettings())
        if not isinstance(fit, str)
    ]


def fit_weights(examples: Sequence[tuple[dict[str, float], bool]]) -> dict[str, float]:
    """Fit CONFIDENCE_WEIGHTS: logistic regression with a weak prior of zero weights, by Newton's method."""
    names = [name for name in CONFIDENCE_WEIGHTS if name]
    inputs = np.array([[1, *(row[name] for name in names)] for row, _ in examples])
    right = np.array([is_right for _, is_right in examples], np.float64)
    spread = np.array([1, *inputs[:, 1:].std(axis=0)])
    scaled, weights = inputs / spread, np.zeros(len(spread))
    prior = np.diag([0.0, *np.full(len(names), 0.5)])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-scaled @ weights))
        gradient = scaled.T @ (probability - right) + prior @ weights
        curvature = scaled.T @ (scaled * (probability * (1 - probability))[:, None]) + prior
        weights -= np.linalg.solve(curvature, gradient)
    return dict(zip(("", *names), (round(float(value), 2) for value in weights / spread), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", choices=("accuracy", "speed", "refit"))
    parser.add_argument("--half", choices=("even", "odd"), default="odd", help="positions of the photos")
    parser.add_argument("--every", type=int, default=1, help="use every nth photo of that half")
    parser.add_argument("--pairs", type=int, default=20, help="pairs to time at each size")
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the packaged ones")
    arguments = parser.parse_args()
    if any(os.environ.get(variable) != "1" for variable in ONE_THREAD):
        # numpy reads these variables on import, so restart with them.
        command = [sys.executable, "-m", "bananagrams_tests.benchmarks.align_benchmark", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **dict.fromkeys(ONE_THREAD, "1")})
    cv2.setNumThreads(1)
    half = "even" if arguments.task == "refit" else arguments.half
    paths = photos(half, arguments.photos)
    numbers = range(0, len(paths), arguments.every)
    if arguments.task == "speed":
        for line in speed(paths, arguments.pairs):
            print(line, flush=True)
        return
    print(f"{len(numbers)} photos at {half} positions, {SIDE_PX} px", flush=True)
    with ProcessPoolExecutor(2) as pool:
        if arguments.task == "accuracy":
            rows = pool.map(measure_photo, repeat(paths), numbers, repeat(PLAN))
            print(accuracy(list(chain.from_iterable(rows))))
        else:
            examples = pool.map(evidence, repeat(paths), numbers, repeat(FITTING_PLAN))
            print(fit_weights(list(chain.from_iterable(examples))))


if __name__ == "__main__":
    main()
