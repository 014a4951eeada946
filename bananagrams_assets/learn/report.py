"""A training for people: dev predictions beside the truth, the curves, the model's card."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..config import Profile
from ..vision.images import RGB, fit, resize
from .dataset import Sample, Split
from .metrics import count, ious
from .predict import THRESHOLD, Predictor, predict

TILE_PX = 240
SAMPLES = 12
_TRUTH, _PREDICTED, _UNKNOWN = (40, 200, 80), (240, 60, 60), (90, 90, 90)


def overlay_sheet(predictor: Predictor, split: Split, most: int = SAMPLES) -> RGB:
    """Up to `most` samples spread over the split, a row each: photograph, truth, prediction; (H, W, 3)."""
    chosen = np.linspace(0, len(split) - 1, min(most, len(split))).astype(int)
    samples: list[Sample] = [split[int(index)] for index in chosen]
    masks = predict(predictor, [sample.image for sample in samples], [sample.text for sample in samples])
    threshold = predictor.threshold
    return np.concatenate(
        [_row(sample, mask, threshold) for sample, mask in zip(samples, masks, strict=True)]
    )


def encode_png(rgb: RGB) -> bytes:
    """PNG bytes of a picture (H, W, 3)."""
    ok, png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert ok  # a uint8 array always encodes
    return png.tobytes()


def curves(losses: Sequence[tuple[int, float]], dev: Sequence[tuple[int, float]], baseline: float) -> bytes:
    """PNG of training loss and dev mean IoU by step; `baseline` is the best trivial prediction's IoU."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True))
    left.set(title="training loss", xlabel="step")
    if dev:
        right.plot(*zip(*dev, strict=True), marker=".", label="model")
    right.axhline(baseline, color="grey", linestyle="--", label="best trivial")
    right.set(title="dev mean IoU", xlabel="step", ylim=(0, 1))
    right.legend(loc="lower right")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def card(profile: Profile, content: Mapping[str, Any], counts: Mapping[str, Mapping[str, Any]]) -> str:
    """The model's card in Markdown, after Mitchell et al. 2019: what it does, data, figures, limits, licence.

    `content` is model.json's, `counts` a split's index by its name.
    """
    from jinja2 import Environment, StrictUndefined

    rows = []
    for split, scores in content["metrics"].items():
        name, best = max(scores["baselines"].items(), key=lambda item: item[1])
        rows.append(
            [
                split,
                _figure(scores, "mean_iou", scores["model"]["mean_iou"]),
                _figure(scores, "overall_iou", scores["model"]["overall_iou"]),
                f"{_figure(scores, name, best)} ({name})",
                _figure(scores, "shuffled", scores["shuffled"]),
                _figure(scores, "blind", scores["blind"]),
            ]
        )
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    )
    return template.render(
        name=profile.mlflow.registered_model,
        model=profile.model,
        train=profile.train,
        threshold=content.get("threshold", THRESHOLD),
        summary=content["summary"],
        dataset=content["dataset"],
        counts=counts,
        rows=rows,
        intervals=any("intervals" in scores for scores in content["metrics"].values()),
        license=profile.source.license,
    )


def _figure(scores: Mapping[str, Any], name: str, value: float) -> str:
    interval = scores.get("intervals", {}).get(name)
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _row(
    sample: Sample, probability: np.ndarray[tuple[int, ...], np.dtype[np.float32]], threshold: float
) -> RGB:
    predicted, truth, known = probability >= threshold, sample.mask.astype(bool), sample.known.astype(bool)
    iou = float(ious(np.array([count(predicted, truth, known)]))[0])
    tiles = [
        _tile(sample.image),
        _tile(_tint(_tint(sample.image, ~known, _UNKNOWN), truth, _TRUTH)),
        _tile(_tint(sample.image, predicted, _PREDICTED)),
    ]
    strip = np.concatenate(tiles, 1)
    caption = np.full((22, strip.shape[1], 3), 255, np.uint8)
    # OpenCV's font is ASCII; what it lacks is shown as a question mark.
    text = f"IoU {iou:.2f}  {sample.text}".encode("ascii", "replace").decode()
    cv2.putText(caption, text[:110], (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, strip])


def _tint(image: RGB, where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], color: Sequence[int]) -> RGB:
    tinted = image.copy()
    tinted[where] = (image[where] * 0.45 + np.array(color) * 0.55).astype(np.uint8)
    return tinted


def _tile(image: RGB) -> RGB:
    """The picture in the middle of a white square."""
    small = fit(image, TILE_PX)
    if max(small.shape[:2]) < TILE_PX:
        scale = TILE_PX / max(small.shape[:2])
        small = resize(small, (round(small.shape[1] * scale), round(small.shape[0] * scale)))
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    y, x = (TILE_PX - small.shape[0]) // 2, (TILE_PX - small.shape[1]) // 2
    tile[y : y + small.shape[0], x : x + small.shape[1]] = small
    return tile
