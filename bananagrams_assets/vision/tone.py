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

Picture: TypeAlias = NDArray[np.float32]
"""(H, W, 3), RGB levels 0..255"""

FIT_SIDE_PX = 96
"""The fit runs on a small copy: some seven thousand pixels are plenty for nine numbers and a smooth field."""

FIELD_SIGMA = 0.06
"""Of the longest side. Wider leaves light falling off unexplained, narrower explains large edits away."""

SCALES = (40.0, 24.0, 14.0, 10.0)
"""Levels at which a pixel's difference counts half, one for each step of the fit (annealing)."""

LEAST_SLOPE = 0.15
"""A curve flatter than this does not explain a picture, it erases it."""

UNCHANGED = 12.0
"""Levels within which the fit calls a pixel unchanged, at the small copy."""


@dataclass(frozen=True, eq=False)
class Tone:
    """`picture`: the edited picture with the input's tone, uint8 (H, W, 3); `unchanged`: bool (H, W),
    the pixels that the fit takes for the same in both; `shift`: how far it moved those, in mean
    CIE Lab dE."""

    picture: RGB
    unchanged: Mask
    shift: float


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
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        for picture in (before, after)
    )
    inside = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
    if not inside.any():
        return Tone(after, known & False, 0.0)

    curve = _fit_curve(goal[inside], drawn[inside])
    left = goal - _apply_curve(drawn, curve)
    field = _fit_field(left, inside)
    rest = np.sqrt(np.mean((left - field) ** 2, axis=2))
    unchanged = inside & (rest <= UNCHANGED)

    table = _apply_curve(np.repeat(np.arange(256, dtype=np.float32)[:, None, None], 3, axis=2), curve)
    # The curve in whole levels, then the field on top: rounding costs half a level, floats twice the time.
    toned = cv2.LUT(after, np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(1, 256, 3))
    light = cv2.resize(np.rint(field).astype(np.int16), (width, height), interpolation=cv2.INTER_LINEAR)
    toned = cv2.add(toned, light, dtype=cv2.CV_8U)
    moved = np.linalg.norm(lab(_apply_curve(drawn, curve) + field) - lab(drawn), axis=2)
    grown = cv2.resize(unchanged.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return Tone(
        np.asarray(toned, np.uint8),
        grown & known,
        float(moved[unchanged].mean()) if unchanged.any() else 0.0,
    )


def lab(picture: NDArray[Any]) -> NDArray[np.float32]:
    """CIE Lab, D65, float32 (H, W, 3), L 0..100, of RGB levels 0..255."""
    return np.asarray(cv2.cvtColor(np.multiply(picture, 1 / 255, dtype=np.float32), cv2.COLOR_RGB2LAB))


def _fit_curve(goal: Picture, drawn: Picture) -> NDArray[np.float32]:
    """(3, 3): constant, linear and quadratic coefficient (rows) of each channel (columns)."""
    curve = np.zeros((3, 3), np.float32)
    curve[1] = 255.0
    curve[0] = [_mode(goal[:, c] - drawn[:, c]) for c in range(3)]
    x = drawn / 255.0
    terms = np.ascontiguousarray(np.stack([np.ones_like(x), x, x * x], axis=2).transpose(1, 0, 2))
    targets = goal.T[..., None]  # terms: (3 channels, N, 3 terms), targets: (3 channels, N, 1)
    # A picture of one colour tells nothing of slope or bend: those stay where they are.
    prior = np.diag([1e-3, 3e-3, 1e-2]).astype(np.float32) * len(x)
    start = curve.copy()
    start[0] = np.clip(start[0], -64, 64)
    for scale in SCALES:
        rest = goal - _apply_curve(drawn, curve)
        weight = 1 / (1 + np.mean(rest * rest, axis=1) / scale**2) ** 2
        held = prior * float(weight.mean())
        weighted = (terms * weight[:, None]).transpose(0, 2, 1)
        right = weighted @ targets + (held @ start).T[..., None]
        curve = np.linalg.solve(weighted @ terms + held, right)[..., 0].T
    slope = (curve[1] + curve[2]) / 255.0  # from black to white
    return curve if slope.min() >= LEAST_SLOPE else start


def _apply_curve(picture: NDArray[Any], curve: NDArray[np.float32]) -> Picture:
    x = picture / np.float32(255.0)
    return np.asarray(curve[0] + x * (curve[1] + x * curve[2]), np.float32)


def _mode(difference: NDArray[np.float32]) -> float:
    """The most frequent difference, in levels, of a lightly smoothed histogram."""
    counts = np.bincount(np.rint(difference).astype(np.int64) + 255, minlength=511).astype(np.float32)
    smooth = cv2.GaussianBlur(counts.reshape(1, -1), (0, 0), 2.0, borderType=cv2.BORDER_CONSTANT)
    return float(np.argmax(smooth)) - 255.0


def _fit_field(left: Picture, inside: Mask) -> Picture:
    """What is left of the difference, smoothed over the pixels that look unchanged; 0 far from any."""
    sigma = FIELD_SIGMA * max(inside.shape)
    field = np.zeros_like(left)
    for scale in (SCALES[-1], SCALES[-1] * 0.7):
        rest = left - field
        weight = (inside / (1 + np.mean(rest * rest, axis=2) / scale**2) ** 2).astype(np.float32)
        total = cv2.GaussianBlur(weight, (0, 0), sigma)
        field = np.asarray(
            cv2.GaussianBlur(left * weight[..., None], (0, 0), sigma) / (total + 0.05)[..., None]
        )
    return field
