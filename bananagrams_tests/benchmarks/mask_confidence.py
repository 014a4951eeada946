"""Fit a local mask's confidence to made pairs: the coefficients of `vision.mask`, and how well they rank.

    python -m bananagrams_tests.benchmarks.mask_confidence [--pairs N] [--photos DIR] [--side PX]

A logistic model of `mask_evidence`, fitted to the IoU of local masks (0 where nothing was edited) by
Newton's method with a small ridge, on half of the photographs; the figures are of the other half.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import AlignSettings, MaskSettings, SampleSettings
from bananagrams_assets.sample.make import make_pair
from bananagrams_assets.sample.photos import folder_photos, packaged_photos
from bananagrams_assets.vision import mask as masks
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.geometry import polygon_mask
from bananagrams_assets.vision.images import Mask

Floats = NDArray[np.float64]


def fit(evidence: Floats, iou: Floats, ridge: float = 1.0) -> tuple[Floats, float]:
    """Weights (7,) and bias of the logistic model of IoU, 0..1, by evidence (N, 7)."""
    middle, spread = evidence.mean(axis=0), evidence.std(axis=0) + 1e-6
    terms = np.column_stack([np.ones(len(iou)), (evidence - middle) / spread])
    held = ridge * np.diag([0.0] + [1.0] * evidence.shape[1])
    weights = np.zeros(terms.shape[1])
    for _ in range(50):
        guess = 1 / (1 + np.exp(-terms @ weights))
        curvature = (terms.T * (guess * (1 - guess))) @ terms + held
        weights -= np.linalg.solve(curvature, terms.T @ (guess - iou) + held @ weights)
    return weights[1:] / spread, float(weights[0] - (weights[1:] / spread) @ middle)


def auroc(scores: Floats, good: NDArray[np.bool_]) -> float:
    """How often a good one has the higher score; nan where all are alike."""
    if good.all() or not good.any():
        return float("nan")
    above = scores[good][:, None] - scores[~good]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=300, help="made pairs of each strength 0, 1 and 2")
    parser.add_argument("--side", type=int, default=640, help="longest side of a made photograph, in px")
    parser.add_argument("--photos", type=Path, help="folder of photographs; default: the packaged ones")
    chosen = parser.parse_args()
    photos = packaged_photos() if chosen.photos is None else folder_photos(chosen.photos, print)
    seen: list[Floats] = []
    original = masks.mask_evidence

    def keep(
        mask: Mask, known: Mask, difference: masks.Difference, low: float, noise: float, components: int
    ) -> Floats:
        seen.append(original(mask, known, difference, low, noise, components))
        return seen[-1]

    masks.mask_evidence = keep
    rows, held = [], []
    for strength in (0.0, 1.0, 2.0):
        settings = SampleSettings(pairs=chosen.pairs, side_px=chosen.side, strength=strength)
        for number in range(chosen.pairs):
            pair = make_pair(number, photos, settings)
            if pair.edit.is_global:
                continue
            before = pair.edit.before
            found = align(before, pair.edited, AlignSettings())
            if not found.accepted:
                continue
            result = masks.edit_mask(
                before, pair.edited, found.homography, found.overlap, MaskSettings(), "local"
            )
            if result.verdict != "local":
                continue
            known = polygon_mask(found.overlap, (before.shape[1], before.shape[0]))
            union = ((result.mask | pair.edit.mask) & known).sum()
            rows.append((seen[-1], float((result.mask & pair.edit.mask & known).sum() / max(1, union))))
            held.append(zlib.crc32(pair.photo.encode()) % 2 == 1)
    evidence, iou = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    test = np.array(held)
    weights, bias = fit(evidence[~test], iou[~test])
    print(f"fitted to {(~test).sum()} masks: weights {np.round(weights, 2).tolist()}, bias {bias:.2f}")
    current = np.array([masks.local_confidence(row) for row in evidence[test]])
    fitted = 1 / (1 + np.exp(-(bias + evidence[test] @ weights)))
    for name, scores in (("in the code", current), ("fitted", fitted)):
        for limit in (0.5, 0.8):
            print(
                f"{name}: AUROC for IoU of at least {limit}: {auroc(scores, iou[test] >= limit):.3f}, "
                f"{(iou[test] < limit).sum()} of {test.sum()} masks under it"
            )
        for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.01)):
            chunk = (scores >= low) & (scores < high)
            if chunk.any():
                said, was = scores[chunk].mean(), iou[test][chunk].mean()
                print(f"  {low:.2f}..{high:.2f}: {chunk.sum():4} masks, said {said:.3f}, IoU {was:.3f}")


if __name__ == "__main__":
    main()
