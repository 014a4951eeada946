"""Masks of made pairs, ours and the plain recipe, in turn, in one process on one core.

    python -m bananagrams_tests.benchmarks.mask_benchmark [--pairs N] [--side PX] [--strength S]

The pairs are the embedded sample's, whose masks are known exactly. The plain recipe is what is usually
done: SIFT on the full-size pictures, brute-force matching with Lowe's ratio test at 0.75, a RANSAC
homography within 5 px, the grey absolute difference, a Gaussian blur, a threshold of 30, opening and
closing. Times are of this process alone; the IoU is the mean over local edits, on known pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from bananagrams_assets.config import AlignSettings, MaskSettings, SampleSettings
from bananagrams_assets.data.edit_types import edit_type
from bananagrams_assets.sample.make import make_sample
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.geometry import Floats, frame, polygon_mask, project
from bananagrams_assets.vision.images import RGB, Mask, decode, decode_mask
from bananagrams_assets.vision.mask import edit_mask

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Pair:
    before: RGB
    after: RGB
    truth: Mask
    homography: Floats
    is_global: bool
    scope: str


class Outcome(NamedTuple):
    """The mask and the homography found, None where there is none, and the seconds of each step."""

    mask: Mask | None
    homography: Floats | None
    seconds: dict[str, float]


class Clock:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, step: str) -> None:
        now = time.process_time()
        self.seconds[step] = now - self._last
        self._last = now


def ours(pair: Pair) -> Outcome:
    clock = Clock()
    alignment = align(pair.before, pair.after, AlignSettings())
    clock.lap("align")
    if not alignment.accepted:
        return Outcome(None, None, clock.seconds)
    found = edit_mask(
        pair.before, pair.after, alignment.homography, alignment.overlap, MaskSettings(), pair.scope
    )
    clock.lap("mask")
    return Outcome(found.mask, alignment.homography, clock.seconds)


def plain(pair: Pair) -> Outcome:
    clock = Clock()
    one, other = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (pair.before, pair.after))
    sift = cv2.SIFT.create()
    points, descriptors = sift.detectAndCompute(one, None)
    moved, moved_descriptors = sift.detectAndCompute(other, None)
    clock.lap("features")
    if descriptors is None or moved_descriptors is None or len(points) < 2:
        return Outcome(None, None, clock.seconds)
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(moved_descriptors, descriptors, k=2)
    matches = [first for first, second in candidates if first.distance < 0.75 * second.distance]
    clock.lap("match")
    if len(matches) < 4:
        return Outcome(None, None, clock.seconds)
    source = np.array([moved[match.queryIdx].pt for match in matches])
    target = np.array([points[match.trainIdx].pt for match in matches])
    cv2.setRNGSeed(0)
    homography, _ = cv2.findHomography(source, target, cv2.RANSAC, 5.0)
    clock.lap("homography")
    if homography is None:
        return Outcome(None, None, clock.seconds)
    size = pair.before.shape[1], pair.before.shape[0]
    difference = cv2.cvtColor(
        cv2.absdiff(pair.before, cv2.warpPerspective(pair.after, homography, size)), cv2.COLOR_RGB2GRAY
    )
    _, mask = cv2.threshold(cv2.GaussianBlur(difference, (5, 5), 0), 30, 255, cv2.THRESH_BINARY)
    kernel = np.ones((5, 5), np.uint8)
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
    clock.lap("mask")
    return Outcome(np.asarray(mask > 0), np.asarray(homography, np.float64), clock.seconds)


def load_pairs(folder: Path) -> list[Pair]:
    """The pairs of a made sample."""
    pairs = []
    for line, truth_line in zip(
        (folder / "sft.jsonl").read_text(encoding="utf-8").splitlines(),
        (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines(),
        strict=True,
    ):
        record, truth = json.loads(line), json.loads(truth_line)
        before = decode((folder / record["local_input_image"]).read_bytes(), MAX_PIXELS)
        after = decode((folder / record["output_image"]).read_bytes(), MAX_PIXELS)
        mask = decode_mask((folder / truth["mask"]).read_bytes())
        homography = np.array(truth["homography"], np.float64).reshape(3, 3)
        pairs.append(
            Pair(before, after, mask, homography, truth["is_global"], edit_type(record["edit_type"]).scope)
        )
    return pairs


def measure(pairs: list[Pair]) -> dict[str, dict[str, Any]]:
    """For each method: seconds by step, IoU of local edits, corner errors in px, and pairs without a mask."""
    methods: dict[str, Callable[[Pair], Outcome]] = {"ours": ours, "plain": plain}
    totals: dict[str, dict[str, Any]] = {
        name: {"seconds": {}, "iou": [], "corners": [], "failed": 0} for name in methods
    }
    for pair in pairs:
        size = pair.after.shape[1], pair.after.shape[0]
        corners = project(pair.homography, frame(size))
        known = polygon_mask(corners, (pair.before.shape[1], pair.before.shape[0]))
        for name, method in methods.items():
            outcome, total = method(pair), totals[name]
            for step, seconds in outcome.seconds.items():
                total["seconds"][step] = total["seconds"].get(step, 0.0) + seconds
            if outcome.mask is None or outcome.homography is None:
                total["failed"] += 1
            else:
                errors = np.linalg.norm(project(outcome.homography, frame(size)) - corners, axis=1)
                total["corners"].append(float(errors.max()))
            if not pair.is_global:
                mask = np.zeros_like(pair.truth) if outcome.mask is None else outcome.mask
                union = ((mask | pair.truth) & known).sum()
                total["iou"].append(float((mask & pair.truth & known).sum() / union) if union else 1.0)
    return totals


def report(totals: dict[str, dict[str, Any]], count: int) -> str:
    lines = []
    for name, total in totals.items():
        seconds = sum(total["seconds"].values())
        steps = ", ".join(f"{step} {1000 * value / count:.1f}" for step, value in total["seconds"].items())
        middle, high = np.percentile(total["corners"], [50, 95]) if total["corners"] else (np.nan, np.nan)
        lines.append(
            f"{name:6} {count / seconds:6.1f} pairs/s  {1000 * seconds / count:6.1f} ms a pair ({steps})  "
            f"IoU {np.mean(total['iou']):.3f}  corner error median {middle:.2f} px, p95 {high:.2f} px  "
            f"no mask {total['failed']}"
        )
    ratio = sum(totals["plain"]["seconds"].values()) / sum(totals["ours"]["seconds"].values())
    lines.append(f"ours / plain: {ratio:.2f} times the speed")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=60, help="made pairs to measure")
    parser.add_argument("--side", type=int, default=320, help="longest side of a made photograph, in px")
    parser.add_argument("--strength", type=float, default=1.0, help="of the made editor, 0 to 2")
    chosen = parser.parse_args()
    if any(os.environ.get(variable) != "1" for variable in ONE_THREAD):
        # numpy reads these when it is imported: start again with them.
        command = [sys.executable, "-m", "bananagrams_tests.benchmarks.mask_benchmark", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **dict.fromkeys(ONE_THREAD, "1")})
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = SampleSettings(pairs=chosen.pairs, side_px=chosen.side, strength=chosen.strength)
        make_sample(Path(folder), settings)
        pairs = load_pairs(Path(folder))
    measure(pairs[:2])  # what is loaded and allocated once is not part of a pair's time
    print(f"{len(pairs)} made pairs of {chosen.side} px, strength {chosen.strength:g}, one core")
    print(report(measure(pairs), len(pairs)))


if __name__ == "__main__":
    main()
