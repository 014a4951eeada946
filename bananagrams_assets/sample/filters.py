"""Classical filters of whole images: tone, film, light, season, weather and drawing styles.

Each filter takes and returns uint8 RGB (H, W, 3) of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from .draw import Layer, noise, shape_of, to_bytes
from .photos import RGB, Rng

Filter = Callable[[RGB, Rng], RGB]


def _gray(image: RGB) -> Layer:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def tint(image: RGB, color: tuple[int, int, int]) -> RGB:
    """Return the image's lightness in one colour; shadows are lifted so that black is tinted too."""
    light = 0.28 + 0.9 * _gray(image)[..., None] / 255
    return to_bytes(0.12 * image.astype(np.float32) + 0.88 * np.array(color, np.float32) * light)


def _scaled(gains: tuple[float, float, float], lift: tuple[float, float, float]) -> Filter:
    def apply(image: RGB, rng: Rng) -> RGB:
        amount = rng.uniform(0.85, 1.15)
        gain = 1 + (np.array(gains, np.float32) - 1) * amount
        return to_bytes(image * gain + np.array(lift, np.float32) * amount)

    return apply


def _film(image: RGB, rng: Rng) -> RGB:
    shape = shape_of(image)
    sepia = _gray(image)[..., None] * np.array([0.92, 0.78, 0.56], np.float32)
    faded = 34 + 0.8 * (0.25 * image + 0.75 * sepia)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    vignette = (1 - 0.3 * (x * x + y * y) / 2)[..., None]
    grain = rng.standard_normal(shape).astype(np.float32)[..., None] * rng.uniform(9, 13)
    return to_bytes(faded * vignette + grain)


def _night(image: RGB, rng: Rng) -> RGB:
    light = _gray(image)[..., None]
    dark = (0.5 * image + 0.5 * light) * np.array([0.28, 0.34, 0.55], np.float32)
    return to_bytes(dark + np.array([8, 12, 34], np.float32) * rng.uniform(0.9, 1.2))


def _autumn(image: RGB, rng: Rng) -> RGB:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    green = np.clip(1 - np.abs(hsv[..., 0] - 55) / 40, 0, 1)
    hsv[..., 0] = hsv[..., 0] * (1 - green) + 14 * green
    turned = cv2.cvtColor(to_bytes(hsv), cv2.COLOR_HSV2RGB).astype(np.float32)
    return to_bytes(turned * np.array([1.08, 0.9, 0.62], np.float32) + np.array([30, 8, -6], np.float32))


def _winter(image: RGB, rng: Rng) -> RGB:
    light = _gray(image)[..., None]
    cold = (0.25 * image + 0.75 * light) * np.array([0.8, 0.88, 1.0], np.float32) + 44
    cover = np.clip(noise(shape_of(image), rng, 10, 3), 0, 1)[..., None] * (light / 255) * 70
    return to_bytes(cold + cover)


def _fog(image: RGB, rng: Rng) -> RGB:
    thick = np.clip(0.52 + 0.1 * noise(shape_of(image), rng, 3), 0.36, 0.68)[..., None]
    return to_bytes(image * (1 - thick) + np.array([206, 210, 214], np.float32) * thick)


def _rain(image: RGB, rng: Rng) -> RGB:
    shape = shape_of(image)
    drops = (rng.random(shape) > 0.985).astype(np.float32)
    length = max(shape) // 16
    kernel = np.zeros((length, length), np.float32)
    cv2.line(kernel, (length // 3, 0), (2 * length // 3, length - 1), (1.0,))
    streaks = np.clip(cv2.filter2D(drops, -1, kernel), 0, 1)[..., None]
    light = _gray(image)[..., None]
    dull = (0.45 * image + 0.55 * light) * np.array([0.6, 0.66, 0.74], np.float32) + 14
    return to_bytes(dull * (1 - 0.45 * streaks) + 200 * 0.45 * streaks)


def _snowfall(image: RGB, rng: Rng) -> RGB:
    flakes = cv2.GaussianBlur((rng.random(shape_of(image)) > 0.994).astype(np.float32), (0, 0), 1.3) * 9
    light = _gray(image)[..., None]
    pale = (0.4 * image + 0.6 * light) * 0.72 + np.array([52, 58, 66], np.float32)
    return to_bytes(pale + 255 * np.clip(flakes, 0, 1)[..., None])


def _pencil(image: RGB, rng: Rng) -> RGB:
    gray = _gray(image)
    smooth = cv2.GaussianBlur(255 - gray, (0, 0), 5)
    lines = np.minimum(gray / np.maximum(255 - smooth, 1) * 255, 255)
    paper = 4 * noise(shape_of(image), rng, 80)
    tone = 0.82 * lines + 0.18 * gray + paper
    return np.repeat(to_bytes(tone)[..., None], 3, axis=2)


def _cartoon(image: RGB, rng: Rng) -> RGB:
    smooth = image
    for _ in range(2):
        smooth = cv2.bilateralFilter(smooth, 7, 50, 7).astype(np.uint8)
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 1] = hsv[..., 1] * 1.5 + 24
    hsv[..., 2] = np.floor(hsv[..., 2] / 48) * 48 + 40
    flat = cv2.cvtColor(to_bytes(hsv), cv2.COLOR_HSV2RGB)
    gray = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)
    ink = cv2.adaptiveThreshold(gray, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, 9, 6)
    return np.where(ink[..., None] > 0, flat, np.uint8(20)).astype(np.uint8)


def _comic(image: RGB, rng: Rng) -> RGB:
    gray = cv2.GaussianBlur(_gray(image), (0, 0), 0.8)
    levels = np.floor(gray / 64) * 72 + 20
    ink = gray < cv2.GaussianBlur(gray, (0, 0), 6) - 14
    paper = np.array([1.0, 0.93, 0.72], np.float32)
    return to_bytes(np.where(ink[..., None], np.float32(16), levels[..., None] * paper))


def _watercolor(image: RGB, rng: Rng) -> RGB:
    painted = cv2.stylization(image, sigma_s=float(rng.uniform(20, 40)), sigma_r=0.45).astype(np.float32)
    shape = shape_of(image)
    paper = 6 * noise(shape, rng, 120)[..., None] + 8 * noise(shape, rng, 6)[..., None]
    return to_bytes(painted * 0.82 + 46 + paper)


def _oil(image: RGB, rng: Rng) -> RGB:
    """Set each pixel to the mean colour of the most frequent brightness around it."""
    radius = max(3, max(image.shape) // 110)
    size = (2 * radius + 1, 2 * radius + 1)
    level = _gray(image) // 32
    most = np.full(image.shape[:2], -1, np.float32)
    result = image.astype(np.float32)
    for value in range(8):
        inside = (level == value).astype(np.float32)
        count = cv2.boxFilter(inside, -1, size)
        color = cv2.boxFilter(image * inside[..., None], -1, size) / np.maximum(count, 1e-6)[..., None]
        better = count > most
        most, result = np.where(better, count, most), np.where(better[..., None], color, result)
    gray = result.mean(axis=2, keepdims=True)
    relief = cv2.Laplacian(cv2.GaussianBlur(_gray(image), (0, 0), 1.5), cv2.CV_32F)[..., None]
    return to_bytes(gray + (result - gray) * rng.uniform(1.3, 1.7) + 1.5 * relief + rng.uniform(4, 14))


def _poster(image: RGB, rng: Rng) -> RGB:
    """Map brightness to four flat inks."""
    gray = cv2.GaussianBlur(_gray(image), (0, 0), max(image.shape) / 320)
    inks = np.array(
        [[(24, 20, 60), (200, 40, 90), (250, 170, 40), (250, 240, 210)],
         [(10, 40, 60), (20, 120, 130), (240, 110, 80), (250, 230, 190)]][int(rng.integers(2))], np.float32
    )  # fmt: skip
    limits = np.percentile(gray, (25, 55, 80))
    return to_bytes(inks[np.digitize(gray, limits)])


def _daguerreotype(image: RGB, rng: Rng) -> RGB:
    shape = shape_of(image)
    gray = cv2.GaussianBlur(_gray(image), (0, 0), max(shape) / 500)
    marks = noise(shape, rng, 70) > 2.6
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    light = (30 + 0.78 * gray) * (1.05 - 0.45 * (x * x + y * y) / 2) + 50 * marks
    return to_bytes(light[..., None] * np.array([1.0, 0.86, 0.66], np.float32))


def _newsreel(image: RGB, rng: Rng) -> RGB:
    gray = _gray(image)
    contrast = 255 / (1 + np.exp(-(gray - rng.uniform(105, 130)) / 38))
    grain = rng.standard_normal(gray.shape).astype(np.float32) * rng.uniform(6, 10)
    return np.repeat(to_bytes(contrast + grain)[..., None], 3, axis=2)


def _anime(image: RGB, rng: Rng) -> RGB:
    smooth = cv2.edgePreservingFilter(image, flags=1, sigma_s=40, sigma_r=0.4)
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 1] = hsv[..., 1] * rng.uniform(1.3, 1.6) + 14
    hsv[..., 2] = 255 * (np.floor(hsv[..., 2] / 36) * 36 / 255) ** 0.75 + 12
    return cv2.cvtColor(to_bytes(hsv), cv2.COLOR_HSV2RGB).astype(np.uint8)


def _ink(image: RGB, rng: Rng) -> RGB:
    gray = _gray(image)
    sigma = max(image.shape) / 640
    near = cv2.GaussianBlur(gray, (0, 0), sigma)
    far = cv2.GaussianBlur(gray, (0, 0), 1.6 * sigma)
    # Differences of Gaussians with a soft step (Winnemöller, NPAR 2011).
    edge = near + 16 * (near - far)
    limit = float(rng.uniform(70, 100))
    lines = np.where(edge >= limit, 1.0, 1 + np.tanh(0.05 * (edge - limit)))
    return np.repeat(to_bytes(18 + 232 * lines)[..., None], 3, axis=2)


GLOBAL_FILTERS: Mapping[str, Mapping[str, Filter]] = {
    "tone": {
        "warm": _scaled((1.16, 1.0, 0.62), (16, 4, -8)),
        "cool": _scaled((0.68, 0.96, 1.16), (-6, 2, 22)),
    },
    "vintage": {"film": _film},
    "lighting": {
        "golden hour": _scaled((1.2, 0.92, 0.5), (26, 8, -6)),
        "moonlight": _night,
        "green fluorescent light": _scaled((0.78, 1.12, 0.8), (4, 22, 6)),
    },
    "season": {"autumn": _autumn, "winter": _winter},
    "weather": {"foggy": _fog, "rainy": _rain, "snowy": _snowfall},
    "sketch": {"pencil sketch": _pencil, "cartoon": _cartoon, "comic drawing": _comic},
    "art": {"a watercolor painting": _watercolor, "an oil painting": _oil, "a pop art poster": _poster},
    "historical": {
        "a 19th-century photograph": _daguerreotype,
        "a black-and-white newsreel frame": _newsreel,
        "a faded print of the 1970s": _film,
    },
    "anime": {"anime": _anime},
    "cel": {"cel-shaded comic": _cartoon},
    "ink": {"ink sketch": _ink},
}
"""Family of global edits → style → filter."""
