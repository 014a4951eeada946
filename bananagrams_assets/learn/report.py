"""Pictures of a training for people: dev predictions beside the truth, and the curves."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np

from ..vision.images import RGB, fit, resize
from .dataset import Sample, Split
from .metrics import count, ious
from .predict import Predictor, predict

TILE_PX = 240
SAMPLES = 12
_TRUTH, _PREDICTED, _UNKNOWN = (40, 200, 80), (240, 60, 60), (90, 90, 90)


def overlay_sheet(predictor: Predictor, split: Split) -> bytes:
    """PNG of up to 12 samples spread over the split, a row each: photograph, truth, prediction."""
    chosen = np.linspace(0, len(split) - 1, min(SAMPLES, len(split))).astype(int)
    samples: list[Sample] = [split[int(index)] for index in chosen]
    masks = predict(predictor, [sample.picture for sample in samples], [sample.text for sample in samples])
    rows = [_row(sample, mask) for sample, mask in zip(samples, masks, strict=True)]
    ok, png = cv2.imencode(".png", cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    assert ok  # a uint8 array always encodes
    return png.tobytes()


def curves(losses: Sequence[tuple[int, float]], dev: Sequence[tuple[int, float]], baseline: float) -> bytes:
    """PNG of training loss and dev mean IoU by step; `baseline` is the best trivial prediction's IoU."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses, strict=True))
    left.set(title="training loss", xlabel="step")
    right.plot(*zip(*dev, strict=True), marker=".", label="model")
    right.axhline(baseline, color="grey", linestyle="--", label="best trivial")
    right.set(title="dev mean IoU", xlabel="step", ylim=(0, 1))
    right.legend(loc="lower right")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _row(sample: Sample, probability: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> RGB:
    predicted, truth, known = probability >= 0.5, sample.mask.astype(bool), sample.known.astype(bool)
    iou = float(ious(np.array([count(predicted, truth, known)]))[0])
    tiles = [
        _tile(sample.picture),
        _tile(_tint(_tint(sample.picture, ~known, _UNKNOWN), truth, _TRUTH)),
        _tile(_tint(sample.picture, predicted, _PREDICTED)),
    ]
    strip = np.concatenate(tiles, 1)
    caption = np.full((22, strip.shape[1], 3), 255, np.uint8)
    # OpenCV's font is ASCII; what it lacks is shown as a question mark.
    text = f"IoU {iou:.2f}  {sample.text}".encode("ascii", "replace").decode()
    cv2.putText(caption, text[:110], (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, strip])


def _tint(picture: RGB, where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], color: Sequence[int]) -> RGB:
    tinted = picture.copy()
    tinted[where] = (picture[where] * 0.45 + np.array(color) * 0.55).astype(np.uint8)
    return tinted


def _tile(picture: RGB) -> RGB:
    """The picture in the middle of a white square."""
    small = fit(picture, TILE_PX)
    if max(small.shape[:2]) < TILE_PX:
        scale = TILE_PX / max(small.shape[:2])
        small = resize(small, (round(small.shape[1] * scale), round(small.shape[0] * scale)))
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    y, x = (TILE_PX - small.shape[0]) // 2, (TILE_PX - small.shape[1]) // 2
    tile[y : y + small.shape[0], x : x + small.shape[1]] = small
    return tile
