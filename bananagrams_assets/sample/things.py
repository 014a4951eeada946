"""Drawn objects and words at named places of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bananagrams_assets.sample import draw, words
from bananagrams_assets.sample.photos import RGB

Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """An object to draw, its place by name and its side as a share of the picture's shorter side."""

    kind: str
    color: str
    place: str
    share: float
    seed: int
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    def box(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """Left, top and side in px in a picture of `shape` (H, W), moved inside where it would stick out."""
        height, width = shape
        side = round(self.share * min(shape))
        column, row = words.PLACES[self.place]
        x = round((words.COLUMNS[column] + self.shift[0]) * width - side / 2)
        y = round((words.ROWS[row] + self.shift[1]) * height - side / 2)
        return min(max(x, 1), width - side - 1), min(max(y, 1), height - side - 1), side


def pick(rng: Rng, options: Iterable[str], *but: str) -> str:
    """One of `options` other than `but`."""
    left = [option for option in options if option not in but]
    return left[int(rng.integers(len(left)))]


def any_thing(rng: Rng, place: str | None = None, low: float = 0.32, high: float = 0.44) -> Thing:
    """A random object, at `place` or anywhere, its side `low` to `high` of the picture's shorter side."""
    return Thing(
        kind=pick(rng, draw.KINDS),
        color=pick(rng, draw.COLORS),
        place=place or pick(rng, words.PLACES),
        share=float(rng.uniform(low, high)),
        seed=int(rng.integers(2**31)),
        shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
    )


def render(image: RGB, things: list[Thing]) -> RGB:
    """`picture` with the objects drawn over it, in order."""
    for thing in things:
        x, y, side = thing.box(size_of(image))
        image = draw.paste(image, draw.draw_thing(thing.kind, thing.color, side, thing.seed), x, y)
    return image


def coverage(things: list[Thing], shape: tuple[int, int]) -> Mask:
    """What the objects cover of a picture of `shape` (H, W)."""
    covered = np.zeros(shape, bool)
    for thing in things:
        x, y, side = thing.box(shape)
        alpha = draw.draw_thing(thing.kind, thing.color, side, thing.seed)[..., 3]
        covered[y : y + side, x : x + side] |= alpha > 0.5
    return covered


def size_of(image: RGB) -> tuple[int, int]:
    """(H, W)."""
    return int(image.shape[0]), int(image.shape[1])


def apart(one: Thing, other: Thing, shape: tuple[int, int]) -> bool:
    """Whether two objects' squares do not overlap in a picture of `shape` (H, W)."""
    (x, y, side), (u, v, size) = one.box(shape), other.box(shape)
    return x + side <= u or u + size <= x or y + side <= v or v + size <= y


def word_layer(word: str, color: str, width: int) -> draw.Layer:
    """A word in one colour, `width` px wide, as an RGBA layer."""
    alpha = draw.draw_word(word, width)
    rgb = np.broadcast_to(np.array(draw.COLORS[color], np.float32), (*alpha.shape, 3))
    return np.dstack([rgb, alpha]).astype(np.float32)


def corner_at(place: str, layer: draw.Layer, image: RGB) -> tuple[int, int]:
    """Where the top left corner of a layer stands that is centred on a place, kept inside the picture."""
    height, width = size_of(image)
    column, row = words.PLACES[place]
    x = round(words.COLUMNS[column] * width - layer.shape[1] / 2)
    y = round(words.ROWS[row] * height - layer.shape[0] / 2)
    margin = round(0.03 * min(height, width))
    return (
        min(max(x, margin), width - layer.shape[1] - margin),
        min(max(y, margin), height - layer.shape[0] - margin),
    )


def layer_cover(layer: draw.Layer, x: int, y: int, image: RGB) -> Mask:
    """What a layer pasted at (x, y) covers of `picture`."""
    mask = np.zeros(image.shape[:2], bool)
    mask[y : y + layer.shape[0], x : x + layer.shape[1]] = layer[..., 3] > 0.5
    return mask


def text_width(place: str, image: RGB, rng: Rng) -> int:
    """A width in px for a word at a place: wider in the middle column than at the sides."""
    wide = rng.uniform(0.5, 0.62) if words.PLACES[place][0] == 1 else rng.uniform(0.4, 0.48)
    return round(float(wide) * size_of(image)[1])
