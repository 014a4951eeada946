"""Reports of a training: an image of dev predictions, its curves and the model card."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..config import Profile
from ..vision.images import RGB, fit, resize
from .dataset import DecodedSample, Split
from .metrics import ious, pixel_counts
from .predict import Predictor, Probability, predict_masks

TILE_PX = 240
SAMPLES = 12
_TRUTH, _PREDICTED, _INVALID = (40, 200, 80), (240, 60, 60), (90, 90, 90)


def overlay_sheet(predictor: Predictor, split: Split, max_samples: int = SAMPLES) -> RGB:
    """Return an image (H, W, 3) of samples spread over the split, one row each: photo, truth, prediction."""
    indices = np.linspace(0, len(split) - 1, min(max_samples, len(split))).astype(int)
    samples = [split[int(index)] for index in indices]
    images = [sample.image for sample in samples]
    masks = predict_masks(predictor, images, [sample.text for sample in samples])
    threshold = predictor.threshold
    return np.concatenate(
        [_row(sample, mask, threshold) for sample, mask in zip(samples, masks, strict=True)]
    )


def encode_png(rgb: RGB) -> bytes:
    """Encode an RGB image (H, W, 3) as PNG."""
    ok, png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert ok  # encoding a uint8 array cannot fail
    return png.tobytes()


def curves(losses: Sequence[tuple[int, float]], dev: Sequence[tuple[int, float]], baseline: float) -> bytes:
    """Return a PNG of training loss and dev mean IoU by step.

    `baseline` is the mean IoU of the best trivial mask.
    """
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


def model_card(profile: Profile, content: Mapping[str, Any], indexes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the model card in Markdown (Mitchell et al. 2019): purpose, data, scores, limits, licence.

    `content` is the content of model.json, `indexes` the index of each split by its name.
    """
    from jinja2 import Environment, StrictUndefined

    rows = []
    for split, scores in content["metrics"].items():
        name, best = max(scores["baselines"].items(), key=lambda item: item[1])
        rows.append(
            [
                split,
                _with_interval(scores, "mean_iou", scores["model"]["mean_iou"]),
                _with_interval(scores, "overall_iou", scores["model"]["overall_iou"]),
                f"{_with_interval(scores, name, best)} ({name})",
                _with_interval(scores, "shuffled", scores["shuffled"]),
                _with_interval(scores, "blind", scores["blind"]),
            ]
        )
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    )
    return template.render(
        name=profile.mlflow.registered_model,
        model=profile.model,
        train=profile.train,
        threshold=content["threshold"],
        summary=content["summary"],
        dataset=content["dataset"],
        indexes=indexes,
        rows=rows,
        license="; ".join(sorted({index.get("license") or "not stated" for index in indexes.values()})),
    )


def _with_interval(scores: Mapping[str, Any], name: str, value: float) -> str:
    low, high = scores["intervals"][name]
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _row(sample: DecodedSample, probability: Probability, threshold: float) -> RGB:
    predicted, truth, valid = probability >= threshold, sample.mask.astype(bool), sample.valid.astype(bool)
    iou = float(ious(np.array([pixel_counts(predicted, truth, valid)]))[0])
    tiles = [
        _tile(sample.image),
        _tile(_tint(_tint(sample.image, ~valid, _INVALID), truth, _TRUTH)),
        _tile(_tint(sample.image, predicted, _PREDICTED)),
    ]
    strip = np.concatenate(tiles, 1)
    caption = np.full((22, strip.shape[1], 3), 255, np.uint8)
    # OpenCV's font is ASCII only; other characters become question marks.
    text = f"IoU {iou:.2f}  {sample.text}".encode("ascii", "replace").decode()
    cv2.putText(caption, text[:110], (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, strip])


def _tint(image: RGB, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], color: Sequence[int]) -> RGB:
    tinted = image.copy()
    tinted[mask] = (image[mask] * 0.45 + np.array(color) * 0.55).astype(np.uint8)
    return tinted


def _tile(image: RGB) -> RGB:
    """Fit the image into the center of a white square of TILE_PX."""
    small = fit(image, TILE_PX)
    if max(small.shape[:2]) < TILE_PX:
        scale = TILE_PX / max(small.shape[:2])
        small = resize(small, (round(small.shape[1] * scale), round(small.shape[0] * scale)))
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    y, x = (TILE_PX - small.shape[0]) // 2, (TILE_PX - small.shape[1]) // 2
    tile[y : y + small.shape[0], x : x + small.shape[1]] = small
    return tile
