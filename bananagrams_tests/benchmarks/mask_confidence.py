"""Fit the confidence of local masks (coefficients in vision/mask.py) to made pairs, and evaluate it.

    python -m bananagrams_tests.benchmarks.mask_confidence [--pairs N] [--photos DIR] [--side PX]

A logistic model of `mask_evidence` is fitted to the IoU of local masks (0 if nothing was edited) by Newton's
method with a small ridge, on half of the photos. The figures are of the other half.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import AlignSettings, MaskSettings, SampleSettings
from bananagrams_assets.evaluation.mask_scores import auroc
from bananagrams_assets.sample.pairs import make_pair
from bananagrams_assets.sample.photos import Photo, folder_photos, packaged_photos
from bananagrams_assets.vision import mask as mask_module
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.difference import Difference
from bananagrams_assets.vision.geometry import image_size, polygon_mask
from bananagrams_assets.vision.images import Mask

Floats = NDArray[np.float64]


def fit(evidence: Floats, iou: Floats, ridge: float = 1.0) -> tuple[Floats, float]:
    """Return weights (7,) and bias of the logistic model of IoU, 0..1, from evidence (N, 7)."""
    mean, spread = evidence.mean(axis=0), evidence.std(axis=0) + 1e-6
    terms = np.column_stack([np.ones(len(iou)), (evidence - mean) / spread])
    prior = ridge * np.diag([0.0] + [1.0] * evidence.shape[1])
    weights = np.zeros(terms.shape[1])
    for _ in range(50):
        prediction = 1 / (1 + np.exp(-terms @ weights))
        curvature = (terms.T * (prediction * (1 - prediction))) @ terms + prior
        weights -= np.linalg.solve(curvature, terms.T @ (prediction - iou) + prior @ weights)
    return weights[1:] / spread, float(weights[0] - (weights[1:] / spread) @ mean)


class EvidenceRecorder:
    """Replaces `mask_evidence` and keeps its last result."""

    def __init__(self) -> None:
        self._mask_evidence = mask_module.mask_evidence
        self.last: Floats = np.empty(0)

    def __call__(
        self,
        mask: Mask,
        valid: Mask,
        difference: Difference,
        low: float,
        noise: float,
        components: int,
    ) -> Floats:
        self.last = self._mask_evidence(mask, valid, difference, low, noise, components)
        return self.last


def measure_pairs(photos: list[Photo], count: int, side_px: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return evidence (N, 7), IoU (N,) and whether the pair is for testing (N,) of local masks."""
    recorder = EvidenceRecorder()
    mask_module.mask_evidence = recorder
    evidence, ious, is_test = [], [], []
    for strength in (0.0, 1.0, 2.0):
        settings = SampleSettings(pairs=count, side_px=side_px, strength=strength)
        for number in range(count):
            pair = make_pair(number, photos, settings)
            if pair.edit.is_global:
                continue
            before, truth = pair.edit.before, pair.edit.mask
            alignment = align(before, pair.edited, AlignSettings())
            if not alignment.accepted:
                continue
            result = mask_module.edit_mask(
                before, pair.edited, alignment.homography, alignment.overlap, MaskSettings(), "local"
            )
            if result.verdict != "local":
                continue
            valid = polygon_mask(alignment.overlap, image_size(before))
            union = ((result.mask | truth) & valid).sum()
            evidence.append(recorder.last)
            ious.append(float((result.mask & truth & valid).sum() / max(1, union)))
            is_test.append(zlib.crc32(pair.photo.encode()) % 2 == 1)
    return np.array(evidence), np.array(ious), np.array(is_test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=300, help="made pairs of each strength 0, 1 and 2")
    parser.add_argument("--side", type=int, default=640, help="longest side of a made photo, in px")
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the packaged ones")
    arguments = parser.parse_args()
    photos = packaged_photos() if arguments.photos is None else folder_photos(arguments.photos, print)
    evidence, iou, is_test = measure_pairs(photos, arguments.pairs, arguments.side)
    weights, bias = fit(evidence[~is_test], iou[~is_test])
    print(f"fitted to {(~is_test).sum()} masks: weights {np.round(weights, 2).tolist()}, bias {bias:.2f}")
    test_evidence, test_iou = evidence[is_test], iou[is_test]
    current = np.array([mask_module.local_confidence(row) for row in test_evidence])
    fitted = 1 / (1 + np.exp(-(bias + test_evidence @ weights)))
    for name, confidence in (("in the code", current), ("fitted", fitted)):
        for limit in (0.5, 0.8):
            area = auroc(confidence.tolist(), (test_iou >= limit).tolist())
            print(
                f"{name}: AUROC for IoU of at least {limit}: {'-' if area is None else f'{area:.3f}'}, "
                f"{(test_iou < limit).sum()} of {is_test.sum()} masks below it"
            )
        for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.01)):
            in_bin = (confidence >= low) & (confidence < high)
            if in_bin.any():
                print(
                    f"  {low:.2f}..{high:.2f}: {in_bin.sum():4} masks, "
                    f"confidence {confidence[in_bin].mean():.3f}, IoU {test_iou[in_bin].mean():.3f}"
                )


if __name__ == "__main__":
    main()
