"""Compare the masks of made pairs: ours, two recipes and the floor, in turn, in one process on one core.

    python -m bananagrams_tests.benchmarks.mask_benchmark [--pairs N] [--side PX] [--photos DIR --held-out]

Pairs with exactly known masks are made as `bananagrams sample --photos` makes them, from the packaged photos
or those of `--photos`, at strengths 0, 1 and 2 in turn. `--held-out` uses every second photo, on which no
setting was tuned. Every method starts from the bytes of a JPEG and a PNG and ends with the bytes of a mask;
`recipes.py` describes the methods. Times are CPU times of this process. Scores count only valid pixels.
`--processes` compares two processes on two cores with one. `--memory` measures the peak memory of one pair of
4096 x 4096 px.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from bananagrams_assets.config import SampleSettings
from bananagrams_assets.evaluation.mask_scores import MaskScores, auroc, score_mask
from bananagrams_assets.records.edit_types import edit_type
from bananagrams_assets.sample.pairs import PHOTO_COUNTS, Scenes, make_photo_pair
from bananagrams_assets.sample.photos import folder_photos, packaged_photos
from bananagrams_assets.vision.geometry import (
    Floats,
    frame_corners,
    image_size,
    overlap_polygon,
    polygon_mask,
    project,
)
from bananagrams_assets.vision.images import Mask
from bananagrams_tests.benchmarks.recipes import RECIPES, Outcome, ours

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MODULE = "bananagrams_tests.benchmarks.mask_benchmark"
JPEG_QUALITY = 92


@dataclass(frozen=True, eq=False)
class Pair:
    """A made pair as file contents, with its truth; `size` is that of the edited image."""

    before: bytes
    after: bytes
    truth: Mask
    valid: Mask
    homography: Floats
    size: tuple[int, int]
    verdict: str
    scope: str
    family: str
    strength: float


@dataclass(frozen=True, eq=False)
class Row:
    """Result of one method on one pair; `corner_px`: the largest error of the four corners."""

    pair: Pair
    outcome: Outcome
    scores: MaskScores
    corner_px: float


def make_pairs(
    photos: Path | None,
    held_out: bool,
    count: int,
    side_px: int,
    strengths: Sequence[float],
    families: Sequence[str] = (),
) -> list[Pair]:
    """Make pairs with their truths; `held_out`: from photos 1, 3, 5, … of the sorted folder."""
    used = packaged_photos() if photos is None else folder_photos(photos, print)
    if held_out:
        used = used[1::2]
    scenes = Scenes(used, side_px, enlarge=True)
    settings = SampleSettings(pairs=count, side_px=side_px, seed=1)
    if not families:
        families = [name for name, times in PHOTO_COUNTS.items() for _ in range(times)]
    return [
        _encode(make_photo_pair(number, scenes, settings, strengths, families)) for number in range(count)
    ]


def _encode(made: Any) -> Pair:
    edit = made.edit
    files = io.BytesIO(), io.BytesIO()
    Image.fromarray(edit.before).save(files[0], "JPEG", quality=JPEG_QUALITY)
    Image.fromarray(made.edited).save(files[1], "PNG", compress_level=4)
    size, target = image_size(made.edited), image_size(edit.before)
    valid = polygon_mask(overlap_polygon(made.homography, size, target), target)
    scope = edit_type(edit.edit_type).scope
    return Pair(
        files[0].getvalue(), files[1].getvalue(), edit.mask, valid, made.homography, size,
        edit.verdict, scope, edit.family, made.strength,
    )  # fmt: skip


def measure(pairs: Iterable[Pair], methods: Sequence[str]) -> dict[str, list[Row]]:
    """Run each method on each pair, in turn."""
    rows: dict[str, list[Row]] = {name: [] for name in methods}
    for pair in pairs:
        corners = project(pair.homography, frame_corners(pair.size))
        for name in methods:
            outcome = RECIPES[name](pair.before, pair.after, pair.scope)
            mask = np.zeros_like(pair.truth) if outcome.mask is None else outcome.mask
            error = float("inf")
            if outcome.homography is not None:
                placed = project(outcome.homography, frame_corners(pair.size))
                error = float(np.linalg.norm(placed - corners, axis=1).max())
            rows[name].append(Row(pair, outcome, score_mask(mask, pair.truth, pair.valid), error))
    return rows


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{np.mean(values):6.{digits}f}" if values else "     -"


def report(rows: dict[str, list[Row]]) -> str:
    """Return the tables of accuracy and time."""
    lines = [*_iou_table(rows), *_verdict_table(rows)]
    if "ours" in rows:
        confidence = [row.outcome.confidences[0] for row in rows["ours"]]
        right = [row.corner_px <= 4 for row in rows["ours"]]
        area = auroc(confidence, right)
        accepted_wrong = sum(row.outcome.mask is not None and row.corner_px > 8 for row in rows["ours"])
        lines.append(
            f"ours: AUROC of the alignment confidence for corners within 4 px "
            f"{'-' if area is None else f'{area:.3f}'}, {right.count(False)} are not; "
            f"accepted with corners over 8 px off: {accepted_wrong}"
        )
    return "\n".join([*lines, *_time_table(rows)])


def _iou_table(rows: dict[str, list[Row]]) -> Iterator[str]:
    yield "\nIoU of local edits     " + "".join(f"{name:>10}" for name in rows) + "   pairs"
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: {name: [] for name in rows})
    for name, results in rows.items():
        for row in results:
            if row.pair.verdict == "local":
                for group in ("all", f"strength {row.pair.strength:g}", row.pair.family):
                    groups[group][name].append(row.scores.iou)
    for group in sorted(groups, key=lambda group: (group != "all", not group.startswith("strength"), group)):
        ious = groups[group]
        count = len(next(iter(ious.values())))
        yield f"{group:23}" + "".join(f"{_mean(ious[name]):>10}" for name in rows) + f"{count:8}"


def _verdict_table(rows: dict[str, list[Row]]) -> Iterator[str]:
    yield "\nmethod   global as global   local as global   nothing: false area   corners median, p95 (px)"
    for name, results in rows.items():
        global_edits = [float(row.outcome.is_global) for row in results if row.pair.verdict == "global"]
        local_edits = [float(row.outcome.is_global) for row in results if row.pair.verdict == "local"]
        untouched = [row.scores.false_area for row in results if row.pair.verdict == "nothing"]
        errors = [
            row.corner_px
            for row in results
            if row.pair.strength > 0 and row.pair.verdict != "global" and np.isfinite(row.corner_px)
        ]
        median, p95 = np.percentile(errors, (50, 95)) if errors else (np.nan, np.nan)
        yield (
            f"{name:8} {_mean(global_edits):>16} {_mean(local_edits):>17} {_mean(untouched, 5):>21} "
            f"{median:17.2f}, {p95:.2f}"
        )


def _time_table(rows: dict[str, list[Row]]) -> Iterator[str]:
    yield "\nmethod   pairs/s   ms per pair (by step)"
    totals = {}
    for name, results in rows.items():
        steps: dict[str, float] = defaultdict(float)
        for row in results:
            for step, seconds in row.outcome.seconds.items():
                steps[step] += 1000 * seconds / len(results)
        totals[name] = sum(steps.values())
        detail = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in steps.items())
        yield f"{name:8} {1000 / totals[name]:7.2f}   {totals[name]:.1f} ({detail})"
    for name in ("plain", "peer"):
        if name in totals and "ours" in totals:
            yield f"ours / {name}: {totals[name] / totals['ours']:.2f} times the pairs/s"
    if "floor" in totals and "ours" in totals:
        yield f"ours takes {totals['ours'] / totals['floor']:.2f} times the floor's time"


def _work(pairs: list[tuple[bytes, bytes, str]], seconds: float, start: Any, results: Any) -> None:
    """Process pairs repeatedly for some seconds of wall time, in a process of its own."""
    cv2.setNumThreads(1)
    ours(*pairs[0])
    start.wait()
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        ours(*pairs[count % len(pairs)])
        count += 1
    results.put((count / (time.perf_counter() - began), (time.process_time() - cpu) / count))


def rate(pairs: list[Pair], processes: int, seconds: float) -> tuple[float, float]:
    """Return the pairs per second of all processes together, by wall time, and CPU seconds per pair."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    inputs = [(pair.before, pair.after, pair.scope) for pair in pairs]
    workers = [
        context.Process(target=_work, args=(inputs, seconds, start, results)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates, cpu_seconds = zip(*(results.get() for _ in workers), strict=True)
    for worker in workers:
        worker.join()
    return sum(rates), float(np.mean(cpu_seconds))


def peak_memory(side_px: int) -> float:
    """Return the peak memory in MB of one pair of `side_px` squared, decode to mask, in its own process."""
    rng = np.random.default_rng(0)
    layers = [
        cv2.resize(
            rng.random((cells, cells, 3), np.float32), (side_px, side_px), interpolation=cv2.INTER_CUBIC
        )
        for cells in (12, 80, 500)
    ]
    before = np.clip(255 * sum(layers) / len(layers), 0, 255).astype(np.uint8)
    after = before.copy()
    after[side_px // 4 : side_px // 2, side_px // 3 : side_px // 2] = (200, 40, 90)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(before).save(Path(folder) / "before.jpg", quality=JPEG_QUALITY)
        Image.fromarray(after).save(Path(folder) / "after.png", compress_level=1)
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "--one-pair", folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return float(done.stdout)


def _one_pair(folder: Path) -> None:
    cv2.setNumThreads(1)
    outcome = ours((folder / "before.jpg").read_bytes(), (folder / "after.png").read_bytes(), "local")
    assert outcome.mask is not None, "the pair could not be aligned"
    # VmHWM covers only this program; getrusage would also count the process before exec.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=87, help="made pairs to measure")
    parser.add_argument("--side", type=int, default=640, help="longest side of a photo, in px")
    parser.add_argument(
        "--strength", type=float, action="append", help="0 to 2, repeated; default 0, 1 and 2"
    )
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the packaged ones")
    parser.add_argument("--held-out", action="store_true", help="only photos on which nothing was tuned")
    parser.add_argument(
        "--family", action="append", default=[], choices=PHOTO_COUNTS, help="only these edits"
    )
    parser.add_argument("--method", action="append", choices=RECIPES, help="only these methods; default: all")
    parser.add_argument("--processes", action="store_true", help="compare two processes with one")
    parser.add_argument("--memory", action="store_true", help="peak memory of a 4096 x 4096 px pair")
    parser.add_argument("--one-pair", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if any(os.environ.get(variable) != "1" for variable in ONE_THREAD):
        # numpy reads these variables on import, so restart with them.
        os.execve(
            sys.executable,
            [sys.executable, "-m", MODULE, *sys.argv[1:]],
            {**os.environ, **dict.fromkeys(ONE_THREAD, "1")},
        )
    if arguments.one_pair:
        _one_pair(arguments.one_pair)
        return
    cv2.setNumThreads(1)
    if arguments.memory:
        print(f"peak memory of one 4096 x 4096 px pair: {peak_memory(4096):.0f} MB")
        return
    strengths = arguments.strength or [0.0, 1.0, 2.0]
    pairs = make_pairs(
        arguments.photos, arguments.held_out, arguments.pairs, arguments.side, strengths, arguments.family
    )
    print(f"{len(pairs)} made pairs, longest side {arguments.side} px, strengths {strengths}, one core")
    if arguments.processes:
        # Alternate, so that other load affects both equally.
        rates = [[rate(pairs, processes, 6.0) for processes in (1, 2)] for _ in range(3)]
        (one, cpu_one), (two, cpu_two) = np.median(np.array(rates), axis=0)
        print(f"one process {one:.2f} pairs/s, two {two:.2f} pairs/s: {two / one:.2f} times")
        # This ratio is meaningful on a busy machine too: the CPU cost of a pair beside another process.
        print(f"CPU time per pair {cpu_one:.3f} and {cpu_two:.3f} s: {2 * cpu_one / cpu_two:.2f} times")
        return
    methods = arguments.method or list(RECIPES)
    measure(pairs[:2], methods)  # one-time loading and allocation is not part of a pair's time
    rows = measure(pairs, methods)
    assert "torch" not in sys.modules, "the masks of a build must not need torch"
    print(report(rows))


if __name__ == "__main__":
    main()
