"""Edits of a photograph with the exact mask of what visibly changes, before any re-encoding.

`make_edit` is a pure function of its arguments. Outside the mask the two pictures are identical; inside
it the change can be seen: an edit that would leave too little visible change is refused with `Invisible`,
and the caller draws again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from bananagrams_assets.sample import draw, filters, words
from bananagrams_assets.sample.photos import RGB
from bananagrams_assets.sample.things import (
    Mask,
    Rng,
    Thing,
    any_thing,
    apart,
    corner_at,
    coverage,
    layer_cover,
    pick,
    render,
    size_of,
    text_width,
    word_layer,
)
from bananagrams_assets.sample.visible import SUM, VISIBLE_DE, Invisible, colour_change, without_specks

LEAST_VISIBLE = 0.8
LEAST_AREA = 0.008


@dataclass(frozen=True)
class Edit:
    """A pair before re-encoding: uint8 RGB `before` and `after`, bool `mask` (H, W) of `before`, words.

    `homography` maps pixels of `after` to pixels of `before`; None: they are the same. Where the pair is
    the same picture, or one is a part of the other, the mask is empty.
    """

    family: str
    before: RGB
    after: RGB
    mask: Mask
    text: str
    summary: str
    is_global: bool
    homography: npt.NDArray[np.float64] | None = None

    @property
    def edit_type(self) -> str:
        """The manifest's name of this kind of edit."""
        return words.family(self.family)[0]

    @property
    def verdict(self) -> str:
        """What a mask should be called: `local`, `global` or `nothing`."""
        return "global" if self.is_global else "local" if self.mask.any() else "nothing"

    @property
    def visibility(self) -> float:
        """Mean CIE Lab dE of the change inside the mask; 0 where there is none."""
        if not self.mask.any():
            return 0.0
        return float(colour_change(self.before, self.after)[self.mask].mean())


def make_edit(family: str, tile: RGB, rng: Rng) -> Edit:
    """One edit of `family` (a key of FAMILIES) on `tile`; raises Invisible where it could not be seen."""
    return _MAKERS[family](family, tile, rng)


def visible_change(before: RGB, after: RGB) -> Mask:
    """Where two registered pictures differ by over VISIBLE_DE after light smoothing, specks dropped."""
    lab = [
        cv2.cvtColor(cv2.GaussianBlur(image, (3, 3), 0.7).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for image in (before, after)
    ]
    distance = np.sqrt(cv2.transform((lab[0] - lab[1]) ** 2, SUM))
    mask = (distance > VISIBLE_DE) & (cv2.transform(cv2.absdiff(before, after), SUM) > 0)
    smallest = max(round(mask.size * 1e-4), 4)
    return without_specks(~without_specks(~mask, smallest * 4), smallest)


def _finish(
    family: str,
    before: RGB,
    after: RGB,
    expected: Mask,
    rng: Rng,
    clean_after: bool = False,
    **names: str,
) -> Edit:
    """Reduce the pair to its visible change and word it; `expected` is what should have changed.

    Pixels that change, but not visibly, become those of `before`, or with `clean_after` those of `after`:
    the side that was not drawn into.
    """
    mask = visible_change(before, after)
    shown = float(mask[expected].mean())
    if shown < LEAST_VISIBLE or np.count_nonzero(mask) < LEAST_AREA * mask.size:
        raise Invisible(f"{family}: {shown:.0%} of the change can be seen")
    text, summary = words.phrase(family, rng, **names)
    if clean_after:
        before = np.where(mask[..., None], before, after)
    else:
        after = np.where(mask[..., None], after, before)
    return Edit(family, before, after, mask, text, summary, is_global=False)


def _others(rng: Rng, things: list[Thing], shape: tuple[int, int]) -> list[Thing]:
    """Up to two more objects beside the first of `things`, often of its kind or of its colour."""
    found: list[Thing] = []
    for _ in range(int(rng.choice([0, 1, 1, 2]))):
        other = any_thing(rng)
        likeness = rng.random()
        if likeness < 0.3:
            other = replace(other, kind=things[0].kind, color=pick(rng, draw.COLORS, things[0].color))
        elif likeness < 0.5:
            other = replace(other, color=things[0].color, kind=pick(rng, draw.KINDS, things[0].kind))
        if all(apart(other, thing, shape) for thing in things + found):
            found.append(other)
    return found


def refer_to(thing: Thing, others: list[Thing], rng: Rng) -> str:
    """How an instruction names an object: by place too where its colour and kind alone are not unique."""
    alone = all(other.name != thing.name for other in others)
    if alone and rng.random() < 0.4:
        return f"the {thing.name}"
    return f"the {thing.name} {words.IN_PLACE[thing.place]}"


def _add(family: str, tile: RGB, rng: Rng) -> Edit:
    thing = any_thing(rng)
    before = render(tile, _others(rng, [thing], size_of(tile)))
    return _finish(
        family,
        before,
        render(before, [thing]),
        coverage([thing], size_of(tile)),
        rng,
        a_thing=words.a(thing.name),
        thing=thing.name,
        in_place=words.IN_PLACE[thing.place],
    )


def _remove(family: str, tile: RGB, rng: Rng) -> Edit:
    thing = any_thing(rng)
    others = _others(rng, [thing], size_of(tile))
    after = render(tile, others)
    return _finish(
        family,
        render(after, [thing]),
        after,
        coverage([thing], size_of(tile)),
        rng,
        clean_after=True,
        the_thing=refer_to(thing, others, rng),
        thing=thing.name,
    )


def _replace(family: str, tile: RGB, rng: Rng) -> Edit:
    thing = any_thing(rng)
    new = replace(
        thing,
        kind=pick(rng, draw.KINDS, thing.kind),
        color=pick(rng, draw.COLORS, thing.color),
        seed=int(rng.integers(2**31)),
    )
    others = _others(rng, [thing], size_of(tile))
    scene = render(tile, others)
    return _finish(
        family,
        render(scene, [thing]),
        render(scene, [new]),
        coverage([thing, new], size_of(tile)),
        rng,
        the_thing=refer_to(thing, others, rng),
        thing=thing.name,
        a_new=words.a(new.name),
        new=new.name,
    )


def _recolor(family: str, tile: RGB, rng: Rng) -> Edit:
    thing = any_thing(rng)
    new = replace(thing, color=pick(rng, draw.COLORS, thing.color))
    others = _others(rng, [thing], size_of(tile))
    scene = render(tile, others)
    return _finish(
        family,
        render(scene, [thing]),
        render(scene, [new]),
        coverage([thing], size_of(tile)),
        rng,
        the_thing=refer_to(thing, others, rng),
        thing=thing.name,
        color=new.color,
    )


def _relocate(family: str, tile: RGB, rng: Rng) -> Edit:
    thing = any_thing(rng)
    new = replace(thing, place=pick(rng, words.PLACES, thing.place))
    if not apart(thing, new, size_of(tile)):
        raise Invisible("relocate: the old place and the new one overlap")
    others = _others(rng, [thing, new], size_of(tile))
    scene = render(tile, others)
    return _finish(
        family,
        render(scene, [thing]),
        render(scene, [new]),
        coverage([thing, new], size_of(tile)),
        rng,
        the_moved=f"the {thing.name}",
        thing=thing.name,
        place=thing.place,
        to_place=new.place,
    )


def _resize(family: str, tile: RGB, rng: Rng) -> Edit:
    small = any_thing(rng, low=0.2, high=0.26)
    large = replace(small, share=small.share * float(rng.uniform(1.8, 2.1)))
    grows = rng.random() < 0.5
    old, new = (small, large) if grows else (large, small)
    others = _others(rng, [large], size_of(tile))
    scene = render(tile, others)
    covered = [coverage([thing], size_of(tile)) for thing in (large, small)]
    return _finish(
        family,
        render(scene, [old]),
        render(scene, [new]),
        covered[0] & ~covered[1],
        rng,
        the_thing=refer_to(old, others, rng),
        thing=old.name,
        size="larger" if grows else "smaller",
    )


def _region(name: str, shape: tuple[int, int]) -> tuple[slice, slice]:
    left, top, right, bottom = words.REGIONS[name]
    height, width = shape
    return slice(round(top * height), round(bottom * height)), slice(
        round(left * width), round(right * width)
    )


def _region_color(family: str, tile: RGB, rng: Rng) -> Edit:
    color = pick(rng, [name for name in draw.COLORS if name not in ("black", "white")])
    name = pick(rng, words.REGIONS)
    place = _region(name, size_of(tile))
    after = tile.copy()
    after[place] = filters.tint(tile[place], draw.COLORS[color])
    return _finish(family, tile, after, _filled(place, tile), rng, region=name, color=color)


def _filled(place: tuple[slice, slice], image: RGB) -> Mask:
    mask = np.zeros(image.shape[:2], bool)
    mask[place] = True
    return mask


def _region_material(family: str, tile: RGB, rng: Rng) -> Edit:
    material = pick(rng, draw.MATERIALS)
    name = pick(rng, words.REGIONS)
    place = _region(name, size_of(tile))
    after = tile.copy()
    after[place] = draw.draw_material(material, size_of(tile), rng)[place]
    return _finish(family, tile, after, _filled(place, tile), rng, region=name, material=material)


def _region_scene(family: str, tile: RGB, rng: Rng) -> Edit:
    scene = pick(rng, draw.SCENES)
    name = pick(rng, words.REGIONS)
    place = _region(name, size_of(tile))
    after = tile.copy()
    after[place] = draw.draw_scene(scene, size_of(tile[place]), rng)
    return _finish(family, tile, after, _filled(place, tile), rng, region=name, scene=scene)


_CENTER_OF = {
    "left half": "left",
    "right half": "right",
    "top half": "top",
    "bottom half": "bottom",
    "top left quarter": "top left",
    "top right quarter": "top right",
    "bottom left quarter": "bottom left",
    "bottom right quarter": "bottom right",
}


def _keep_object(family: str, tile: RGB, rng: Rng) -> Edit:
    name = pick(rng, _CENTER_OF)
    thing = any_thing(rng, place=_CENTER_OF[name])
    scene = pick(rng, draw.SCENES)
    before = render(tile, [thing])
    place = _region(name, size_of(tile))
    behind = tile.copy()
    behind[place] = draw.draw_scene(scene, size_of(tile[place]), rng)
    expected = _filled(place, tile) & ~coverage([thing], size_of(tile))
    after = render(behind, [thing])
    return _finish(
        family,
        before,
        after,
        expected,
        rng,
        region=name,
        scene=scene,
        the_thing=f"the {thing.name}",
        thing=thing.name,
    )


def _add_text(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word, color = pick(rng, words.PLACES), pick(rng, words.WORDS), pick(rng, draw.COLORS)
    layer = word_layer(word, color, text_width(place, tile, rng))
    x, y = corner_at(place, layer, tile)
    return _finish(
        family,
        tile,
        draw.paste(tile, layer, x, y),
        layer_cover(layer, x, y, tile),
        rng,
        word=word,
        color=color,
        in_place=words.IN_PLACE[place],
    )


def _font_color(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word, color = pick(rng, words.PLACES), pick(rng, words.WORDS), pick(rng, draw.COLORS)
    new = pick(rng, draw.COLORS, color)
    width = text_width(place, tile, rng)
    old_layer, new_layer = word_layer(word, color, width), word_layer(word, new, width)
    x, y = corner_at(place, old_layer, tile)
    letters = layer_cover(old_layer, x, y, tile)
    before = draw.paste(tile, old_layer, x, y)
    if np.count_nonzero(visible_change(tile, before) & letters) < LEAST_VISIBLE * np.count_nonzero(letters):
        raise Invisible("font color: the word cannot be read before the edit")
    after = draw.paste(tile, new_layer, x, y)
    return _finish(
        family,
        before,
        after,
        letters,
        rng,
        word=word,
        color=new,
        in_place=words.IN_PLACE[place],
    )


def _replace_text(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word = pick(rng, words.PLACES), pick(rng, words.WORDS)
    new_word = pick(rng, words.WORDS, word)
    plate, ink = [("white", "black"), ("yellow", "black"), ("blue", "white"), ("wooden", "white")][
        rng.integers(4)
    ]
    width = text_width(place, tile, rng)
    layers = [word_layer(text, ink, round(width * 0.84)) for text in (word, new_word)]
    height = round(max(layer.shape[0] for layer in layers) * 1.5)
    if height > 0.9 * tile.shape[0]:
        raise Invisible("replace text: the sign is taller than the picture")
    board = draw.draw_plate(plate, (height, width), rng)
    left, top = corner_at(place, board, tile)
    signs, cover = [], np.zeros(tile.shape[:2], bool)
    scene = draw.paste(tile, board, left, top)
    for layer in layers:
        x, y = left + (width - layer.shape[1]) // 2, top + (height - layer.shape[0]) // 2
        signs.append(draw.paste(scene, layer, x, y))
        cover ^= layer_cover(layer, x, y, tile)
    return _finish(
        family,
        signs[0],
        signs[1],
        cover,
        rng,
        word=word,
        new_word=new_word,
        in_place=words.IN_PLACE[place],
    )


def _global(family: str, tile: RGB, rng: Rng) -> Edit:
    key, styles = {
        "tone": ("tone", filters.TONES),
        "vintage": ("style", filters.FILMS),
        "lighting": ("lighting", filters.LIGHTS),
        "season": ("season", filters.SEASONS),
        "weather": ("weather", filters.WEATHERS),
        "sketch": ("style", filters.STYLES),
    }[family]
    name = pick(rng, styles)
    before = render(tile, _others(rng, [any_thing(rng)], size_of(tile)))
    after = styles[name](before, rng)
    shown = np.count_nonzero(visible_change(before, after)) / (before.shape[0] * before.shape[1])
    if shown < LEAST_VISIBLE:
        raise Invisible(f"{family}: {shown:.0%} of the picture changes visibly")
    text, summary = words.phrase(family, rng, **{key: name})
    return Edit(family, before, after, np.ones(before.shape[:2], bool), text, summary, is_global=True)


_MAKERS: dict[str, Callable[[str, RGB, Rng], Edit]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "recolor": _recolor,
    "region color": _region_color,
    "region material": _region_material,
    "relocate": _relocate,
    "resize": _resize,
    "add text": _add_text,
    "replace text": _replace_text,
    "font color": _font_color,
    "region scene": _region_scene,
    "keep object": _keep_object,
    "tone": _global,
    "vintage": _global,
    "lighting": _global,
    "season": _global,
    "weather": _global,
    "sketch": _global,
}
