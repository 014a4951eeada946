"""Drawing of shaded, antialiased objects, procedural materials, scenes, text, signs and accessories.

No drawing contains pixels of a photo, so that no photo's pixels can reach another split. A drawn layer is
float32 RGBA (H, W, 4): colours 0..255, alpha 0..1.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .photos import RGB, Rng, package_folder

Layer = npt.NDArray[np.floating[Any]]
Points = npt.NDArray[np.float64]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (205, 38, 34),
    "green": (36, 150, 62),
    "blue": (36, 84, 205),
    "yellow": (245, 208, 38),
    "orange": (242, 128, 24),
    "purple": (134, 58, 176),
    "pink": (244, 122, 178),
    "white": (240, 240, 238),
    "black": (34, 34, 38),
}
MATERIALS = ("brick", "wood", "grass", "checkerboard", "stone")
SCENES = ("beach", "sunset", "snowy field", "night sky")

_OVERSAMPLE = 3


def to_bytes(image: Layer) -> RGB:
    """Round and clip float values 0..255 to uint8."""
    rounded: RGB = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return rounded


def shape_of(image: RGB) -> tuple[int, int]:
    """Return (H, W)."""
    return int(image.shape[0]), int(image.shape[1])


@lru_cache(maxsize=64)
def draw_object(kind: str, color: str, size_px: int, seed: int) -> Layer:
    """Draw one of KINDS in a square of `size_px`, lit from the upper left; `seed` varies its finish."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    side = size_px * _OVERSAMPLE
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    alpha, shade = _SHAPES[kind](x, y)
    finish = rng.integers(3)
    if finish and kind not in ("cone", "umbrella"):
        angle = rng.uniform(0, math.pi)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        wave = np.sin(along * 11) if finish == 1 else np.sin(along * 9) * np.sin(across * 9) * 1.6
        shade = shade * (1 + 0.22 * np.tanh(wave * 4))
    shade = shade * (1 + 0.03 * noise((side, side), rng, 24))
    base = np.array(COLORS[color], np.float32) + rng.uniform(-6, 6, 3).astype(np.float32)
    # A dark colour looks flat if it is shaded by multiplication only; part of the light is added.
    rgb = base * np.minimum(shade, 1.0)[..., None] + 150 * np.maximum(shade - 1.0, 0)[..., None]
    rgb = rgb + 14 * (shade - 0.8)[..., None]
    layer = np.dstack([np.clip(rgb, 0, 255) * alpha[..., None], alpha]).astype(np.float32)
    small: Layer = cv2.resize(layer, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    small.setflags(write=False)
    return small


def _polygon(shape: tuple[int, ...], points: Points | list[tuple[float, float]]) -> Layer:
    canvas = np.zeros(shape, np.float32)
    pixels = np.round((np.asarray(points) + 1) / 2 * shape[0]).astype(np.int32)
    cv2.fillPoly(canvas, [pixels], (1.0,))
    return canvas


def _sphere(x: Layer, y: Layer, rx: float = 0.96, ry: float = 0.96, cy: float = 0.0) -> tuple[Layer, Layer]:
    u, v = x / rx, (y - cy) / ry
    height = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    light = np.clip(-0.45 * u - 0.55 * v + 0.7 * height, 0, 1)
    gloss = np.exp(-((u + 0.38) ** 2 + (v + 0.42) ** 2) / 0.025)
    return (u * u + v * v <= 1).astype(np.float32), 0.45 + 0.65 * light + 0.6 * gloss


def _balloon(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    alpha, shade = _sphere(x, y, 0.7, 0.76, -0.22)
    knot = _polygon(alpha.shape, [(0, 0.48), (-0.12, 0.66), (0.12, 0.66)])
    string = (np.abs(x - 0.06 * np.sin(y * 9)) < 0.035) & (y > 0.6) & (y < 0.98)
    shade = np.where(alpha > 0, shade, 0.6)
    return np.maximum(np.maximum(alpha, knot), string), shade.astype(np.float32)


def _star(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    angle = np.arange(10) * math.pi / 5 - math.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 0.98, 0.45)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.06], axis=1)
    alpha, shade = _polygon(x.shape, points), np.full(x.shape, 0.8, np.float32)
    for index in range(10):
        facet = _polygon(x.shape, [(0, 0.06), tuple(points[index]), tuple(points[(index + 1) % 10])])
        shade = np.where(facet > 0, 1.05 if index % 2 else 0.68, shade)
    return alpha, shade.astype(np.float32)


def _box(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    top = [(0.0, -0.95), (0.9, -0.5), (0.0, -0.05), (-0.9, -0.5)]
    left = [(-0.9, -0.5), (0.0, -0.05), (0.0, 0.95), (-0.9, 0.5)]
    right = [(0.9, -0.5), (0.0, -0.05), (0.0, 0.95), (0.9, 0.5)]
    faces = [(_polygon(x.shape, face), light) for face, light in ((right, 0.55), (left, 0.82), (top, 1.1))]
    shade = np.full(x.shape, 0.8, np.float32)
    for face, light in faces:
        shade = np.where(face > 0, light * (1 - 0.08 * y), shade).astype(np.float32)
    return np.maximum.reduce([face for face, _ in faces]), shade


def _cone(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    body = _polygon(x.shape, [(-0.1, -0.95), (0.1, -0.95), (0.56, 0.72), (-0.56, 0.72)])
    base = _polygon(x.shape, [(-0.9, 0.7), (0.9, 0.7), (0.96, 0.95), (-0.96, 0.95)])
    half = np.maximum(0.1 + (y + 0.95) * 0.276, 0.05)
    shade = 1.05 - 0.4 * np.clip(x / half, -1, 1) ** 2 - 0.2 * np.clip(x / half, -1, 1)
    bands = ((y > -0.42) & (y < -0.16)) | ((y > 0.16) & (y < 0.42))
    shade = np.where(bands, shade + 0.75, shade)
    return np.maximum(body, base), np.where(base > 0, 0.72, shade).astype(np.float32)


def _umbrella(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    dome = (x / 0.97) ** 2 + ((y - 0.12) / 0.98) ** 2 <= 1
    scallop = 0.12 - 0.1 * np.abs(np.sin((x / 0.97 + 1) * math.pi * 2))
    canopy = dome & (y < scallop)
    rib = np.floor((np.arctan2(x, 0.3 - y) / math.pi + 0.5) * 6)
    shade = np.where(rib % 2 == 0, 1.05, 0.72) - 0.15 * x
    stick = (np.abs(x) < 0.05) & (y > -0.1) & (y < 0.82)
    ring = np.hypot(x - 0.17, y - 0.78)
    hook = (ring > 0.12) & (ring < 0.22) & (y > 0.78)
    return (canopy | stick | hook).astype(np.float32), np.where(canopy, shade, 0.6).astype(np.float32)


def _heart(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    u, v = x * 1.2, -(y - 0.08) * 1.2
    inside = (u * u + v * v - 1) ** 3 - u * u * v**3 <= 0
    gloss = np.exp(-((x + 0.4) ** 2 + (y + 0.45) ** 2) / 0.03)
    shade = 0.95 - 0.22 * x - 0.25 * y + 0.5 * gloss
    return inside.astype(np.float32), shade.astype(np.float32)


def _mug(x: Layer, y: Layer) -> tuple[Layer, Layer]:
    body = (np.abs(x + 0.2) < 0.68) & (y > -0.7) & (y < 0.72)
    foot = ((x + 0.2) / 0.68) ** 2 + ((y - 0.72) / 0.2) ** 2 <= 1
    rim = ((x + 0.2) / 0.68) ** 2 + ((y + 0.7) / 0.22) ** 2 <= 1
    hole = ((x + 0.2) / 0.56) ** 2 + ((y + 0.7) / 0.15) ** 2 <= 1
    ring = np.hypot(x - 0.5, (y - 0.02) * 0.9)
    handle = (ring > 0.26) & (ring < 0.44) & (x > 0.4)
    shade = 1.0 - 0.45 * np.clip((x + 0.4) / 0.68, -1, 1) ** 2
    shade = np.where(rim, 1.15, np.where(handle, 0.75, shade))
    return (body | foot | rim | handle).astype(np.float32), np.where(hole, 0.35, shade).astype(np.float32)


_SHAPES = {
    "ball": _sphere,
    "balloon": _balloon,
    "star": _star,
    "box": _box,
    "cone": _cone,
    "umbrella": _umbrella,
    "heart": _heart,
    "mug": _mug,
}
KINDS = tuple(_SHAPES)


def noise(shape: tuple[int, int], rng: Rng, cells: float, octaves: int = 2) -> Layer:
    """Return smooth value noise (H, W), standard deviation about 1, `cells` periods on the longest side."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        scale = cells * 2**octave / max(shape)
        grid = rng.standard_normal((max(round(height * scale), 1) + 1, max(round(width * scale), 1) + 1))
        field = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        total += field / 2**octave
    return total


def draw_material(name: str, shape: tuple[int, int], rng: Rng) -> RGB:
    """Draw a surface of MATERIALS, uint8 RGB (H, W, 3). Raises ValueError for another name."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    unit = max(shape) / 10
    grain = noise(shape, rng, 60)
    if name == "brick":
        row = np.floor(y / (unit * 0.6))
        column = np.floor(x / (unit * 1.3) + (row % 2) / 2)
        joint = (y % (unit * 0.6) < 2.4) | ((x + (row % 2) * unit * 0.65) % (unit * 1.3) < 2.4)
        tone = 12 * np.sin(row * 12.9 + column * 78.2) + 7 * grain
        rgb = np.dstack([168 + tone, 74 + tone * 0.8, 56 + tone * 0.7])
        rgb = np.where(joint[..., None], np.float32(196), rgb)
    elif name == "wood":
        plank = np.floor(y / (unit * 1.4))
        rings = np.sin((y + 6 * noise(shape, rng, 3)) * 0.55 + plank * 5)
        tone = 14 * rings + 12 * np.sin(plank * 7.7) + 6 * grain
        rgb = np.dstack([158 + tone, 106 + tone * 0.85, 58 + tone * 0.6])
        rgb = np.where((y % (unit * 1.4) < 2)[..., None], np.array([70, 42, 22]), rgb)
    elif name == "grass":
        blades = noise((height, width), rng, 90) + 0.6 * noise(shape, rng, 12)
        rgb = np.dstack([66 + 22 * blades, 136 + 30 * blades, 40 + 16 * blades])
    elif name == "checkerboard":
        square = (np.floor(x / unit) + np.floor(y / unit)) % 2
        rgb = np.repeat((36 + 196 * square + 5 * grain)[..., None], 3, axis=2)
    elif name == "stone":
        tone = 26 * noise(shape, rng, 9, 4) + 6 * grain
        rgb = np.dstack([134 + tone, 132 + tone, 128 + tone])
    else:
        raise ValueError(f"{name!r} is not a material; use one of {', '.join(MATERIALS)}")
    return to_bytes(rgb)


_SKIES = {
    "beach": ((70, 150, 225), (190, 225, 245)),
    "sunset": ((92, 50, 120), (255, 150, 60)),
    "snowy field": ((176, 196, 220), (228, 236, 244)),
    "night sky": ((6, 8, 30), (30, 40, 92)),
}


def draw_scene(name: str, shape: tuple[int, int], rng: Rng) -> RGB:
    """Draw a background of SCENES, uint8 RGB (H, W, 3), with the horizon at 60% of the height."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    v = y / max(height - 1, 1)
    high, low = (np.array(color, np.float32) for color in _SKIES[name])
    sky = high + (low - high) * np.clip(v / 0.6, 0, 1)[..., None]
    clouds = np.clip(noise(shape, rng, 5, 4) - 0.3, 0, 1.5)[..., None]
    grain = noise(shape, rng, 50)[..., None]
    sky = sky + clouds * (np.array([60, 40, 30]) if name == "sunset" else np.array([34, 34, 34]))
    if name == "night sky":
        stars = rng.random(shape) > 0.994
        glow = cv2.GaussianBlur(stars.astype(np.float32) * 900, (0, 0), 0.8)[..., None]
        return to_bytes(sky * 0.9 + glow)
    if name == "sunset":
        center = (rng.uniform(0.3, 0.7) * width, 0.5 * height)
        sun = np.exp(-((np.hypot(x - center[0], y - center[1]) / (0.13 * height)) ** 4))[..., None]
        sky = sky * (1 - sun) + np.array([255, 236, 150]) * sun
    waves = np.sin(y * 0.9 + 4 * noise(shape, rng, 8))[..., None]
    ground = {
        "beach": np.array([222, 196, 142]) + 9 * grain,
        "sunset": np.array([70, 40, 74]) + 26 * waves * np.array([1, 0.55, 0.4]),
        "snowy field": np.array([236, 240, 248]) + 12 * noise(shape, rng, 7)[..., None],
    }[name]
    rgb = np.where((v < 0.6)[..., None], sky, ground)
    if name == "beach":
        sea = (v >= 0.5) & (v < 0.68 + 0.015 * np.sin(x * 0.06))
        rgb = np.where(sea[..., None], np.array([30, 124, 168]) + 16 * waves, rgb)
    if name == "snowy field":
        hills = v > 0.5 + 0.06 * np.sin(x / width * 9 + rng.uniform(0, 6))
        rgb = np.where((hills & (v < 0.6))[..., None], np.array([196, 208, 226]) + 8 * grain, rgb)
    return to_bytes(rgb + 3 * grain)


@cache
def _font_file(name: str) -> str:
    return str(package_folder("matplotlib") / "mpl-data/fonts/ttf" / name)


def draw_text(text: str, width_px: int, font_name: str) -> Layer:
    """Draw a text about `width_px` wide. Returns its coverage, float32 (H, W), 0..1, cropped to the letters.

    `font_name` is a font file of the matplotlib package.
    """
    size = 64
    font = ImageFont.truetype(_font_file(font_name), size, layout_engine=ImageFont.Layout.BASIC)
    size = max(round(size * width_px / font.getlength(text)), 8)
    font = ImageFont.truetype(_font_file(font_name), size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    canvas = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font)
    coverage: Layer = np.asarray(canvas, np.float32) / np.float32(255)
    return coverage


ACCESSORIES = ("glasses", "necklace", "headband", "sunglasses", "party hat", "bow tie", "chain")


def draw_accessory(kind: str, color: str, size: tuple[int, int]) -> Layer:
    """Draw one of ACCESSORIES, `size` (W, H) px, in one shaded colour. Raises ValueError for another kind."""
    width, height = size[0] * _OVERSAMPLE, size[1] * _OVERSAMPLE
    alpha = np.zeros((height, width), np.uint8)
    line = max(round(0.035 * width), round(1.8 * _OVERSAMPLE))

    def pixel(x: float, y: float) -> tuple[int, int]:
        return round(x * width), round(y * height)

    if kind in ("glasses", "sunglasses"):
        for x in (0.27, 0.73):
            lens = -1 if kind == "sunglasses" else line
            cv2.ellipse(
                alpha, pixel(x, 0.5), (round(0.17 * width), round(0.36 * height)), 0, 0, 360, 255, lens
            )
        cv2.line(alpha, pixel(0.44, 0.45), pixel(0.56, 0.45), 255, line)
        cv2.line(alpha, pixel(0.1, 0.45), pixel(0.02, 0.4), 255, line)
        cv2.line(alpha, pixel(0.9, 0.45), pixel(0.98, 0.4), 255, line)
    elif kind in ("necklace", "chain"):
        axes = (round(0.46 * width), round(0.8 * height))
        cv2.ellipse(alpha, pixel(0.5, 0.05), axes, 0, 5, 175, 255, line)
        if kind == "necklace":
            cv2.circle(alpha, pixel(0.5, 0.87), round(0.1 * min(width, height)) + line // 2, 255, -1)
    elif kind == "headband":
        arc = round(0.28 * height)
        cv2.ellipse(
            alpha, pixel(0.5, 0.75), (round(0.47 * width), round(0.45 * height)), 0, 190, 350, 255, arc
        )
    elif kind == "party hat":
        cv2.fillPoly(alpha, [np.array([pixel(0.5, 0.02), pixel(0.9, 0.95), pixel(0.1, 0.95)])], 255)
    elif kind == "bow tie":
        for x, inner in ((0.05, 0.46), (0.95, 0.54)):
            cv2.fillPoly(alpha, [np.array([pixel(x, 0.1), pixel(inner, 0.5), pixel(x, 0.9)])], 255)
        cv2.circle(alpha, pixel(0.5, 0.5), round(0.16 * height), 255, -1)
    else:
        raise ValueError(f"{kind!r} is not an accessory; use one of {', '.join(ACCESSORIES)}")
    cover = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    light = np.linspace(1.12, 0.82, size[1], dtype=np.float32)[:, None, None]
    rgb = np.clip(np.broadcast_to(np.array(COLORS[color], np.float32) * light, (*cover.shape, 3)), 0, 255)
    return np.dstack([rgb, cover]).astype(np.float32)


def draw_sign(color: str, shape: tuple[int, int], rng: Rng) -> Layer:
    """Draw an empty sign of `shape` (H, W) with a border. `color` is one of COLORS or `wooden`."""
    height, width = shape
    if color == "wooden":
        rgb = draw_material("wood", (width, width), rng)[:height].astype(np.float32)
    else:
        shade = np.linspace(1.04, 0.9, height, dtype=np.float32)[:, None, None]
        rgb = np.broadcast_to(np.array(COLORS[color], np.float32) * shade, (height, width, 3)).copy()
    edge = max(round(height * 0.06), 2)
    frame = np.ones(shape, bool)
    frame[edge:-edge, edge:-edge] = False
    rgb[frame] *= 0.45
    return np.dstack([np.clip(rgb, 0, 255), np.ones(shape, np.float32)]).astype(np.float32)


def paste(image: RGB, layer: Layer, x: int, y: int) -> RGB:
    """Return `image` with `layer` over it, its top left corner at (x, y); the layer must lie inside."""
    height, width = layer.shape[:2]
    result = image.copy()
    under = result[y : y + height, x : x + width].astype(np.float32)
    alpha = layer[..., 3:]
    result[y : y + height, x : x + width] = to_bytes(under * (1 - alpha) + layer[..., :3] * alpha)
    return result
