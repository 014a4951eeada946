"""Drawn objects and texts at named places of an image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from . import draw
from .compositing import layer_mask
from .photos import RGB, Mask, Rng
from .vocabulary import COLUMNS, FONTS, PLACES, ROWS


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw: its kind and colour, the name of its place, and its size.

    `share`: side relative to the image's shorter side. `shift`: offset from the place, relative to width and
    height. `seed`: seed of its finish.
    """

    kind: str
    color: str
    place: str
    share: float
    seed: int
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    def box(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return left, top and side in px, inside an image of `shape` (H, W, ...)."""
        side = round(self.share * min(shape[:2]))
        return *place_corner(self.place, (side, side), shape, 1, self.shift), side


def place_corner(
    place: str,
    size: tuple[int, int],
    shape: tuple[int, ...],
    margin: int,
    shift: tuple[float, float] = (0, 0),
) -> tuple[int, int]:
    """Return the top left corner (x, y) of a box of `size` (W, H) centred on a place of an image (H, W, ...).

    The box is moved until it is `margin` px inside the image, if it fits. `shift`: offset from the place,
    relative to width and height.
    """
    (column, row), (w, h), (height, width) = PLACES[place], size, shape[:2]
    x = round((COLUMNS[column] + shift[0]) * width - w / 2)
    y = round((ROWS[row] + shift[1]) * height - h / 2)
    return min(max(x, margin), width - w - margin), min(max(y, margin), height - h - margin)


def pick(rng: Rng, options: Iterable[str], *excluded: str) -> str:
    """Return a random element of `options` that is not in `excluded`."""
    allowed = [option for option in options if option not in excluded]
    return allowed[int(rng.integers(len(allowed)))]


def random_object(rng: Rng, place: str | None = None, low: float = 0.32, high: float = 0.44) -> DrawnObject:
    """Return a random object at `place`, or at a random place, with a share from `low` to `high`."""
    return DrawnObject(
        kind=pick(rng, draw.KINDS),
        color=pick(rng, draw.COLORS),
        place=place or pick(rng, PLACES),
        share=float(rng.uniform(low, high)),
        seed=int(rng.integers(2**31)),
        shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
    )


def draw_objects(image: RGB, objects: list[DrawnObject]) -> RGB:
    """Return `image` with the objects drawn over it, in order."""
    for item in objects:
        x, y, side = item.box(image.shape)
        image = draw.paste(image, draw.draw_object(item.kind, item.color, side, item.seed), x, y)
    return image


def objects_mask(objects: list[DrawnObject], image: RGB) -> Mask:
    """Return the pixels of `image` that the objects cover."""
    covered = np.zeros(image.shape[:2], bool)
    for item in objects:
        x, y, side = item.box(image.shape)
        alpha = draw.draw_object(item.kind, item.color, side, item.seed)[..., 3]
        covered[y : y + side, x : x + side] |= alpha > 0.5
    return covered


def are_disjoint(one: DrawnObject, other: DrawnObject, image: RGB) -> bool:
    """Check that the squares of two objects do not overlap in `image`."""
    (x, y, side), (u, v, size) = one.box(image.shape), other.box(image.shape)
    return x + side <= u or u + size <= x or y + side <= v or v + size <= y


def text_layer(text: str, color: str, width: int, font: str = "bold sans") -> draw.Layer:
    """Return a text in one colour and a font of FONTS, `width` px wide, as an RGBA layer."""
    alpha = draw.draw_text(text, width, FONTS[font])
    rgb = np.broadcast_to(np.array(draw.COLORS[color], np.float32), (*alpha.shape, 3))
    return np.dstack([rgb, alpha]).astype(np.float32)


def layer_position(place: str, layer: draw.Layer, image: RGB) -> tuple[int, int]:
    """Return the top left corner (x, y) of a layer centred on a place, moved inside the image if it fits."""
    size = (layer.shape[1], layer.shape[0])
    return place_corner(place, size, image.shape, margin=round(0.03 * min(image.shape[:2])))


def letter_sign(image: RGB, sign: draw.Layer, place: str, words: list[draw.Layer]) -> tuple[list[RGB], Mask]:
    """Draw a sign at a place with each of the words in its middle.

    Returns an image for each word, and the pixels of letters that differ between them, of two words.
    """
    left, top = layer_position(place, sign, image)
    empty = draw.paste(image, sign, left, top)
    images, changed = [], np.zeros(image.shape[:2], bool)
    for word in words:
        x, y = left + (sign.shape[1] - word.shape[1]) // 2, top + (sign.shape[0] - word.shape[0]) // 2
        images.append(draw.paste(empty, word, x, y))
        changed ^= layer_mask(word, x, y, image)
    return images, changed


def text_width(place: str, image: RGB, rng: Rng) -> int:
    """Return a random width in px for a text at a place: wider in the middle column than at the sides."""
    wide = rng.uniform(0.5, 0.62) if PLACES[place][0] == 1 else rng.uniform(0.4, 0.48)
    return round(float(wide) * draw.shape_of(image)[1])
