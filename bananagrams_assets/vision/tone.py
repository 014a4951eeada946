"""Match the tone of an edited image to its input, independently of the edit.

A generative editor redraws every pixel with small changes of tone, light and noise over the whole image.
These must be removed before the remaining difference counts as an edit, and the edit must not bias the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from .images import RGB, Mask, fitted_size

FloatImage: TypeAlias = NDArray[np.float32]
"""(H, W, 3), RGB levels 0..255"""

FIT_SIDE_PX = 96
"""Size of the copy for the fit: 7000 pixels suffice for four coefficients per channel and a smooth field."""

FIELD_SIGMA = 0.06
"""Smoothing of the light field as a share of the longest side. A wider field leaves a light gradient
unexplained; a narrower one explains large edits away."""

SCALES = (40.0, 24.0, 14.0, 10.0)
"""Scale of the robust weight in grey levels, one for each step of the fit (annealing)."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a pixel's grey level (ITU-R BT.601)."""

MIN_SLOPE = 0.15
"""A flatter curve would erase the image instead of matching its tone."""

UNCHANGED_LEVELS = 12.0
"""Largest residual of an unchanged pixel, in levels, on the small copy."""

DETAIL_PX = 9
SIMILARITY_PX = 15
"""Windows for extracting detail and for correlating it, at twice the size of the fit."""
DETAIL_NOISE = 3.0
"""Detail below this many levels is noise."""
MIN_CORRELATION, FULL_CORRELATION = 0.3, 0.7
"""Correlations of detail at which a pixel's weight in the fit is 0 and 1."""
MIN_SIMILAR_SHARE = 0.03
"""If a smaller share of the image is similar, the fit uses all pixels: that share alone is too little."""


@dataclass(frozen=True, eq=False)
class Tone:
    """Result of `match_tone`.

    `image`: the edited image with the input's tone, uint8 (H, W, 3). `unchanged`: bool (H, W), pixels that
    the fit considers the same in both images. `shift`: mean CIE Lab dE by which the fit changed them.
    `lookup`: uint8 (1, 256, 3), the tone curve. `channel_mix`: float32 (3, 3), contributions of the channels
    to each other. `light_field`: int16 (H, W, 3), levels to add at each pixel.
    """

    image: RGB
    unchanged: Mask
    shift: float
    lookup: RGB
    channel_mix: NDArray[np.float32]
    light_field: NDArray[np.int16]


def match_tone(before: RGB, after: RGB, valid: Mask) -> Tone:
    """Match the tone of `after` to `before` at their unchanged pixels; both aligned, uint8 (H, W, 3).

    The fit starts from the mode of the difference, since a large edit would bias the mean. Iteratively
    reweighted least squares with a redescending weight (Geman and McClure 1987) fits a quadratic curve per
    channel. A smooth field then models the residual.
    """
    height, width = valid.shape
    size = fitted_size((width, height), FIT_SIDE_PX)
    target, source = (
        cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) for image in (before, after)
    )
    inside = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
    if not inside.any():
        return _identity_tone(after, valid)

    similarity = detail_similarity(before, after, size) * inside
    if similarity.sum() < MIN_SIMILAR_SHARE * inside.sum():
        similarity = inside.astype(np.float32)
    curve = _fit_curve(target[inside], source[inside], similarity[inside])
    residual = target - _apply_curve(source, curve)
    field = _fit_field(residual, similarity)
    residual_levels = np.sqrt(np.mean((residual - field) ** 2, axis=2))
    unchanged = inside & (residual_levels <= UNCHANGED_LEVELS) & (similarity > 0.5)

    # An integer table and an integer field cost half a level of rounding; floats would take twice the time.
    ramp = np.repeat(np.arange(256, dtype=np.float32)[:, None, None], 3, axis=2)
    lookup = np.clip(np.rint(_apply_curve(ramp, curve)), 0, 255).astype(np.uint8).reshape(1, 256, 3)
    mix = np.asarray(curve[3][:, None] / 255 * (GREY[None] - np.eye(3)), np.float32)
    light = cv2.resize(np.rint(field).astype(np.int16), (width, height), interpolation=cv2.INTER_LINEAR)
    shift = np.linalg.norm(lab(_apply_curve(source, curve) + field) - lab(source), axis=2)
    enlarged = cv2.resize(unchanged.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return Tone(
        image=apply_tone(after, lookup, mix, light),
        unchanged=enlarged & valid,
        shift=float(shift[unchanged].mean()) if unchanged.any() else 0.0,
        lookup=lookup,
        channel_mix=mix,
        light_field=np.asarray(light, np.int16),
    )


def _identity_tone(after: RGB, valid: Mask) -> Tone:
    identity = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    mix, light = np.zeros((3, 3), np.float32), np.zeros(after.shape, np.int16)
    return Tone(after, np.zeros_like(valid), 0.0, identity, mix, light)


def apply_tone(image: RGB, lookup: RGB, channel_mix: NDArray[np.float32], light: NDArray[Any]) -> RGB:
    """Apply a Tone's curve, channel mix and light field, int16 (H, W, 3), to an image, uint8 (H, W, 3)."""
    mixed = cv2.add(cv2.transform(image.astype(np.int16), channel_mix), light)
    return np.asarray(cv2.add(cv2.LUT(image, lookup), mixed, dtype=cv2.CV_8U), np.uint8)


def detail_similarity(before: RGB, after: RGB, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return how similar the detail of two aligned images is, float32 0..1, at (width, height).

    This is the normalised correlation in a window, 1 where both images are flat. Without it, new content of
    about the old colour, such as sand in place of a wooden floor, would pass for the old content in another
    light.
    """
    double, window = (2 * size[0], 2 * size[1]), (SIMILARITY_PX, SIMILARITY_PX)
    details = []
    for image in (before, after):
        grey = cv2.cvtColor(cv2.resize(image, double, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        level = grey.astype(np.float32)
        details.append(level - cv2.blur(level, (DETAIL_PX, DETAIL_PX)))
    one, other = details
    floor = DETAIL_NOISE**2
    energy = (cv2.blur(one * one, window) + floor) * (cv2.blur(other * other, window) + floor)
    correlation = (cv2.blur(one * other, window) + floor) / np.sqrt(energy)
    similarity = np.clip((correlation - MIN_CORRELATION) / (FULL_CORRELATION - MIN_CORRELATION), 0, 1)
    return np.asarray(cv2.resize(similarity, size, interpolation=cv2.INTER_AREA), np.float32)


def lab(image: NDArray[Any]) -> NDArray[np.float32]:
    """Convert RGB levels 0..255 to CIE Lab (D65), float32 (H, W, 3), L 0..100."""
    return np.asarray(cv2.cvtColor(np.multiply(image, 1 / 255, dtype=np.float32), cv2.COLOR_RGB2LAB))


def _fit_curve(
    target: FloatImage, source: FloatImage, similarity: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Fit the tone curve that maps `source` to `target`, both (N, 3) levels; `similarity`: (N,) weights 0..1.

    Return (4, 3): the constant, linear, quadratic and saturation coefficient (rows) of each channel
    (columns). The saturation term is a pixel's grey level minus the channel: it models a paler or more
    colourful image, which no curve of one channel can.
    """
    curve = np.zeros((4, 3), np.float32)
    curve[1] = 255.0
    similar = similarity > 0.5
    curve[0] = [_mode((target[:, c] - source[:, c])[similar]) for c in range(3)]
    x = source / 255.0
    terms = np.ascontiguousarray(
        np.stack([np.ones_like(x), x, x * x, (x @ GREY)[:, None] - x], axis=2).transpose(1, 0, 2)
    )
    targets = target.T[..., None]  # terms: (3 channels, N, 4 terms), targets: (3 channels, N, 1)
    # An image of one colour does not determine slope, curvature or saturation: the prior keeps them.
    prior = np.diag([1e-3, 3e-3, 1e-2, 3e-3]).astype(np.float32) * len(x)
    start = curve.copy()
    start[0] = np.clip(start[0], -64, 64)
    for scale in SCALES:
        residual = target - _apply_curve(source, curve)
        weight = similarity / (1 + np.mean(residual * residual, axis=1) / scale**2) ** 2
        weighted_prior = prior * float(weight.mean())
        weighted = (terms * weight[:, None]).transpose(0, 2, 1)
        right = weighted @ targets + (weighted_prior @ start).T[..., None]
        curve = np.linalg.solve(weighted @ terms + weighted_prior, right)[..., 0].T
    slope = (curve[1] + curve[2]) / 255.0  # from black to white
    return curve if slope.min() >= MIN_SLOPE else start


def _apply_curve(image: NDArray[Any], curve: NDArray[np.float32]) -> FloatImage:
    x = image / np.float32(255.0)
    toned = curve[0] + x * (curve[1] + x * curve[2]) + ((x @ GREY)[..., None] - x) * curve[3]
    return np.asarray(toned, np.float32)


def _mode(difference: NDArray[np.float32]) -> float:
    """Return the most frequent difference, in levels, of a lightly smoothed histogram."""
    counts = np.bincount(np.rint(difference).astype(np.int64) + 255, minlength=511).astype(np.float32)
    smooth = cv2.GaussianBlur(counts.reshape(1, -1), (0, 0), 2.0, borderType=cv2.BORDER_CONSTANT)
    return float(np.argmax(smooth)) - 255.0


def _fit_field(residual: FloatImage, similarity: NDArray[np.float32]) -> FloatImage:
    """Smooth the residual over pixels that look unchanged; the field is 0 far from any of them."""
    sigma = FIELD_SIGMA * max(similarity.shape)
    field = np.zeros_like(residual)
    for scale in (SCALES[-1], SCALES[-1] * 0.7):
        remainder = residual - field
        weight = (similarity / (1 + np.mean(remainder * remainder, axis=2) / scale**2) ** 2).astype(
            np.float32
        )
        total = cv2.GaussianBlur(weight, (0, 0), sigma)
        field = np.asarray(
            cv2.GaussianBlur(residual * weight[..., None], (0, 0), sigma) / (total + 0.05)[..., None]
        )
    return field
