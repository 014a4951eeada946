"""What an editor does to the whole picture: tone, light and noise, measured apart from the edit.

A generative editor draws every pixel anew, a little lighter here, a little warmer there. That must be
explained away before what is left can be called an edit, and the edit must not take part in explaining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.vision.images import RGB, Mask

FloatImage: TypeAlias = NDArray[np.float32]
"""(H, W, 3), RGB levels 0..255"""

FIT_SIDE_PX = 96
"""The fit runs on a small copy: some seven thousand pixels are plenty for nine numbers and a smooth field."""

FIELD_SIGMA = 0.06
"""Of the longest side. Wider leaves light falling off unexplained, narrower explains large edits away."""

SCALES = (40.0, 24.0, 14.0, 10.0)
"""Levels at which a pixel's difference counts half, one for each step of the fit (annealing)."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in a pixel's grey (ITU-R BT.601)."""

LEAST_SLOPE = 0.15
"""A curve flatter than this does not explain a picture, it erases it."""

UNCHANGED = 12.0
"""Levels within which the fit calls a pixel unchanged, at the small copy."""

DETAIL_PX = 9
LIKENESS_PX = 15
"""Windows in which detail is taken from its surroundings, and compared; at twice the fit's size."""
DETAIL_NOISE = 3.0
"""Levels of detail that mean nothing."""
UNLIKE, LIKE = 0.3, 0.7
"""Correlations of detail from which a pixel takes no part in the fit, and takes part in full."""
LEAST_LIKE = 0.03
"""Of the picture: with less of it alike, a fit to that alone would be a guess."""


@dataclass(frozen=True, eq=False)
class Tone:
    """`picture`: the edited picture with the input's tone, uint8 (H, W, 3); `unchanged`: bool (H, W),
    the pixels that the fit takes for the same in both; `shift`: how far it moved those, in mean
    CIE Lab dE. `curve`: uint8 (1, 256, 3), what each level becomes; `mix`: float32 (3, 3), what the
    channels add to each other; `light`: int16 (H, W, 3), levels to add then."""

    image: RGB
    unchanged: Mask
    shift: float
    curve: RGB
    mix: NDArray[np.float32]
    light: NDArray[np.int16]


def explain_tone(before: RGB, after: RGB, known: Mask) -> Tone:
    """Give `after` the tone of `before` by their unchanged pixels; both aligned, uint8 (H, W, 3).

    From the mode of the difference (its mean would follow a large edit), a quadratic for each channel by
    iteratively reweighted least squares under a redescending weight (Geman and McClure 1987), then a
    smooth field of what is left.
    """
    height, width = known.shape
    scale = min(1.0, FIT_SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    goal, drawn = (
        cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32) for image in (before, after)
    )
    inside = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
    if not inside.any():
        same = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        return Tone(
            after, known & False, 0.0, same, np.zeros((3, 3), np.float32), np.zeros(after.shape, np.int16)
        )

    alike = alike_detail(before, after, size) * inside
    if alike.sum() < LEAST_LIKE * inside.sum():
        alike = inside.astype(np.float32)
    curve = _fit_curve(goal[inside], drawn[inside], alike[inside])
    left = goal - _apply_curve(drawn, curve)
    field = _fit_field(left, alike)
    rest = np.sqrt(np.mean((left - field) ** 2, axis=2))
    unchanged = inside & (rest <= UNCHANGED) & (alike > 0.5)

    table = _apply_curve(np.repeat(np.arange(256, dtype=np.float32)[:, None, None], 3, axis=2), curve)
    # The curve in whole levels, then the field on top: rounding costs half a level, floats twice the time.
    levels = np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(1, 256, 3)
    mix = np.asarray(curve[3][:, None] / 255 * (GREY[None] - np.eye(3)), np.float32)
    light = cv2.resize(np.rint(field).astype(np.int16), (width, height), interpolation=cv2.INTER_LINEAR)
    moved = np.linalg.norm(lab(_apply_curve(drawn, curve) + field) - lab(drawn), axis=2)
    grown = cv2.resize(unchanged.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return Tone(
        apply_tone(after, levels, mix, light),
        grown & known,
        float(moved[unchanged].mean()) if unchanged.any() else 0.0,
        levels,
        mix,
        np.asarray(light, np.int16),
    )


def apply_tone(image: RGB, curve: RGB, mix: NDArray[np.float32], light: NDArray[Any]) -> RGB:
    """A picture, uint8 (H, W, 3), through a Tone's curve and mix, with its light, int16 (H, W, 3), on top."""
    mixed = cv2.add(cv2.transform(image.astype(np.int16), mix), light)
    return np.asarray(cv2.add(cv2.LUT(image, curve), mixed, dtype=cv2.CV_8U), np.uint8)


def alike_detail(before: RGB, after: RGB, size: tuple[int, int]) -> NDArray[np.float32]:
    """How far two aligned pictures show the same detail, float32 0..1, at (width, height).

    Normalised correlation in a window; 1 where both are flat. New content of about the old colour, as sand
    in place of a wooden floor, would else pass for the old one in another light.
    """
    twice, window = (2 * size[0], 2 * size[1]), (LIKENESS_PX, LIKENESS_PX)
    detail = []
    for image in (before, after):
        grey = cv2.cvtColor(cv2.resize(image, twice, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        level = grey.astype(np.float32)
        detail.append(level - cv2.blur(level, (DETAIL_PX, DETAIL_PX)))
    one, other = detail
    floor = DETAIL_NOISE**2
    energy = (cv2.blur(one * one, window) + floor) * (cv2.blur(other * other, window) + floor)
    likeness = (cv2.blur(one * other, window) + floor) / np.sqrt(energy)
    share = np.clip((likeness - UNLIKE) / (LIKE - UNLIKE), 0, 1)
    return np.asarray(cv2.resize(share, size, interpolation=cv2.INTER_AREA), np.float32)


def lab(image: NDArray[Any]) -> NDArray[np.float32]:
    """CIE Lab, D65, float32 (H, W, 3), L 0..100, of RGB levels 0..255."""
    return np.asarray(cv2.cvtColor(np.multiply(image, 1 / 255, dtype=np.float32), cv2.COLOR_RGB2LAB))


def _fit_curve(goal: FloatImage, drawn: FloatImage, alike: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4, 3): constant, linear, quadratic and saturation coefficient (rows) of each channel (columns).

    The last is of a pixel's grey less the channel: what makes a picture paler or more colourful, and no
    curve of one channel can.

    `goal`, `drawn`: (N, 3) levels; `alike`: (N,), the weight of each, 0..1."""
    curve = np.zeros((4, 3), np.float32)
    curve[1] = 255.0
    same = alike > 0.5
    curve[0] = [_mode((goal[:, c] - drawn[:, c])[same]) for c in range(3)]
    x = drawn / 255.0
    terms = np.ascontiguousarray(
        np.stack([np.ones_like(x), x, x * x, (x @ GREY)[:, None] - x], axis=2).transpose(1, 0, 2)
    )
    targets = goal.T[..., None]  # terms: (3 channels, N, 4 terms), targets: (3 channels, N, 1)
    # A picture of one colour tells nothing of slope, bend or saturation: those stay where they are.
    prior = np.diag([1e-3, 3e-3, 1e-2, 3e-3]).astype(np.float32) * len(x)
    start = curve.copy()
    start[0] = np.clip(start[0], -64, 64)
    for scale in SCALES:
        rest = goal - _apply_curve(drawn, curve)
        weight = alike / (1 + np.mean(rest * rest, axis=1) / scale**2) ** 2
        held = prior * float(weight.mean())
        weighted = (terms * weight[:, None]).transpose(0, 2, 1)
        right = weighted @ targets + (held @ start).T[..., None]
        curve = np.linalg.solve(weighted @ terms + held, right)[..., 0].T
    slope = (curve[1] + curve[2]) / 255.0  # from black to white
    return curve if slope.min() >= LEAST_SLOPE else start


def _apply_curve(image: NDArray[Any], curve: NDArray[np.float32]) -> FloatImage:
    x = image / np.float32(255.0)
    toned = curve[0] + x * (curve[1] + x * curve[2]) + ((x @ GREY)[..., None] - x) * curve[3]
    return np.asarray(toned, np.float32)


def _mode(difference: NDArray[np.float32]) -> float:
    """The most frequent difference, in levels, of a lightly smoothed histogram."""
    counts = np.bincount(np.rint(difference).astype(np.int64) + 255, minlength=511).astype(np.float32)
    smooth = cv2.GaussianBlur(counts.reshape(1, -1), (0, 0), 2.0, borderType=cv2.BORDER_CONSTANT)
    return float(np.argmax(smooth)) - 255.0


def _fit_field(left: FloatImage, alike: NDArray[np.float32]) -> FloatImage:
    """What is left of the difference, smoothed over the pixels that look unchanged; 0 far from any."""
    sigma = FIELD_SIGMA * max(alike.shape)
    field = np.zeros_like(left)
    for scale in (SCALES[-1], SCALES[-1] * 0.7):
        rest = left - field
        weight = (alike / (1 + np.mean(rest * rest, axis=2) / scale**2) ** 2).astype(np.float32)
        total = cv2.GaussianBlur(weight, (0, 0), sigma)
        field = np.asarray(
            cv2.GaussianBlur(left * weight[..., None], (0, 0), sigma) / (total + 0.05)[..., None]
        )
    return field
