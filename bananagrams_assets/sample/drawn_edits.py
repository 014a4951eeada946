"""Edits with drawn objects, texts and regions, with the exact mask of the visible change.

`make_drawn_edit` is a pure function of its arguments. The two images are identical outside the mask, and
differ visibly inside it. An edit that is not visible enough raises `Invisible`, and the caller draws again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from . import draw
from .compositing import layer_mask
from .drawn_objects import (
    DrawnObject,
    are_disjoint,
    draw_objects,
    layer_position,
    letter_sign,
    objects_mask,
    pick,
    random_object,
    text_layer,
    text_width,
)
from .edit import Edit
from .filters import GLOBAL_FILTERS, tint
from .photos import RGB, Mask, Rng
from .visibility import SUM, VISIBLE_DE, Invisible, without_specks
from .vocabulary import IN_PLACE, PLACES, REGIONS, WORDS, with_article, word_edit, word_global_edit

MIN_VISIBLE_SHARE = 0.8
"""Smallest share of the intended pixels that must change visibly."""
MIN_AREA = 0.008
"""Smallest mask, as a share of the image."""


def make_drawn_edit(family: str, tile: RGB, rng: Rng) -> Edit:
    """Make one edit of `family`, a key of FAMILIES, on `tile`. Raises Invisible."""
    return _MAKERS[family](family, tile, rng)


def visible_change(before: RGB, after: RGB) -> Mask:
    """Return where two registered images differ by over VISIBLE_DE after a light blur, without specks."""
    lab = [
        cv2.cvtColor(cv2.GaussianBlur(image, (3, 3), 0.7).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for image in (before, after)
    ]
    distance = np.sqrt(cv2.transform((lab[0] - lab[1]) ** 2, SUM))
    mask = (distance > VISIBLE_DE) & (cv2.transform(cv2.absdiff(before, after), SUM) > 0)
    smallest = max(round(mask.size * 1e-4), 4)
    return without_specks(~without_specks(~mask, smallest * 4), smallest)


def _visible_edit(
    family: str, before: RGB, after: RGB, intended: Mask, rng: Rng, clean_after: bool = False, **values: str
) -> Edit:
    """Reduce a pair to its visible change and word the instruction with `values`.

    `intended` are the pixels that should change. Pixels that change invisibly are copied from `before` to
    `after`, or with `clean_after` from `after` to `before`: from the image without the drawn object. Raises
    Invisible.
    """
    mask = visible_change(before, after)
    share = float(mask[intended].mean())
    if share < MIN_VISIBLE_SHARE or np.count_nonzero(mask) < MIN_AREA * mask.size:
        raise Invisible(f"{family}: only {share:.0%} of the change is visible")
    text, summary = word_edit(family, rng, **values)
    if clean_after:
        before = np.where(mask[..., None], before, after)
    else:
        after = np.where(mask[..., None], after, before)
    return Edit(family, before, after, mask, text, summary, is_global=False)


def _distractors(rng: Rng, targets: list[DrawnObject], tile: RGB) -> list[DrawnObject]:
    """Return up to two more objects apart from `targets`, often with the first one's kind or colour."""
    distractors: list[DrawnObject] = []
    for _ in range(int(rng.choice([0, 1, 1, 2]))):
        other = random_object(rng)
        likeness = rng.random()
        if likeness < 0.3:
            other = replace(other, kind=targets[0].kind, color=pick(rng, draw.COLORS, targets[0].color))
        elif likeness < 0.5:
            other = replace(other, color=targets[0].color, kind=pick(rng, draw.KINDS, targets[0].kind))
        if all(are_disjoint(other, item, tile) for item in targets + distractors):
            distractors.append(other)
    return distractors


def refer_to(target: DrawnObject, others: list[DrawnObject], rng: Rng) -> str:
    """Name an object for an instruction, with its place unless its colour and kind are unique."""
    unique = all(other.name != target.name for other in others)
    if unique and rng.random() < 0.4:
        return f"the {target.name}"
    return f"the {target.name} {IN_PLACE[target.place]}"


def _add(family: str, tile: RGB, rng: Rng) -> Edit:
    added = random_object(rng)
    before = draw_objects(tile, _distractors(rng, [added], tile))
    return _visible_edit(
        family, before, draw_objects(before, [added]), objects_mask([added], tile), rng,
        a_thing=with_article(added.name), thing=added.name, in_place=IN_PLACE[added.place],
    )  # fmt: skip


def _remove(family: str, tile: RGB, rng: Rng) -> Edit:
    removed = random_object(rng)
    others = _distractors(rng, [removed], tile)
    after = draw_objects(tile, others)
    return _visible_edit(
        family, draw_objects(after, [removed]), after, objects_mask([removed], tile), rng,
        clean_after=True, the_thing=refer_to(removed, others, rng), thing=removed.name,
    )  # fmt: skip


def _replace(family: str, tile: RGB, rng: Rng) -> Edit:
    old = random_object(rng)
    kind, color = pick(rng, draw.KINDS, old.kind), pick(rng, draw.COLORS, old.color)
    new = replace(old, kind=kind, color=color, seed=int(rng.integers(2**31)))
    others = _distractors(rng, [old], tile)
    scene = draw_objects(tile, others)
    return _visible_edit(
        family, draw_objects(scene, [old]), draw_objects(scene, [new]),
        objects_mask([old, new], tile), rng,
        the_thing=refer_to(old, others, rng), thing=old.name, a_new=with_article(new.name), new=new.name,
    )  # fmt: skip


def _recolor(family: str, tile: RGB, rng: Rng) -> Edit:
    old = random_object(rng)
    new = replace(old, color=pick(rng, draw.COLORS, old.color))
    others = _distractors(rng, [old], tile)
    scene = draw_objects(tile, others)
    return _visible_edit(
        family, draw_objects(scene, [old]), draw_objects(scene, [new]),
        objects_mask([old], tile), rng,
        the_thing=refer_to(old, others, rng), thing=old.name, color=new.color,
    )  # fmt: skip


def _relocate(family: str, tile: RGB, rng: Rng) -> Edit:
    old = random_object(rng)
    new = replace(old, place=pick(rng, PLACES, old.place))
    if not are_disjoint(old, new, tile):
        raise Invisible("relocate: the old and the new place overlap")
    scene = draw_objects(tile, _distractors(rng, [old, new], tile))
    return _visible_edit(
        family, draw_objects(scene, [old]), draw_objects(scene, [new]),
        objects_mask([old, new], tile), rng,
        the_moved=f"the {old.name}", thing=old.name, place=old.place, to_place=new.place,
    )  # fmt: skip


def _resize(family: str, tile: RGB, rng: Rng) -> Edit:
    small = random_object(rng, low=0.2, high=0.26)
    large = replace(small, share=small.share * float(rng.uniform(1.8, 2.1)))
    grows = rng.random() < 0.5
    old, new = (small, large) if grows else (large, small)
    others = _distractors(rng, [large], tile)
    scene = draw_objects(tile, others)
    ring = objects_mask([large], tile) & ~objects_mask([small], tile)
    return _visible_edit(
        family, draw_objects(scene, [old]), draw_objects(scene, [new]), ring, rng,
        the_thing=refer_to(old, others, rng), thing=old.name, size="larger" if grows else "smaller",
    )  # fmt: skip


def _region_of(name: str, image: RGB) -> tuple[tuple[slice, slice], Mask]:
    """Return the rows and columns of a region of REGIONS, and its mask (H, W)."""
    left, top, right, bottom = REGIONS[name]
    height, width = image.shape[:2]
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return (rows, columns), mask


def _fill_region(
    family: str, tile: RGB, rng: Rng, fill: Callable[[tuple[slice, slice]], RGB], **values: str
) -> Edit:
    """Replace a random region by the pixels that `fill` returns for its rows and columns."""
    name = pick(rng, REGIONS)
    region, mask = _region_of(name, tile)
    after = tile.copy()
    after[region] = fill(region)
    return _visible_edit(family, tile, after, mask, rng, clean_after=False, region=name, **values)


def _region_color(family: str, tile: RGB, rng: Rng) -> Edit:
    color = pick(rng, draw.COLORS, "black", "white")
    return _fill_region(family, tile, rng, lambda region: tint(tile[region], draw.COLORS[color]), color=color)


def _region_material(family: str, tile: RGB, rng: Rng) -> Edit:
    material = pick(rng, draw.MATERIALS)

    def fill(region: tuple[slice, slice]) -> RGB:
        return draw.draw_material(material, draw.shape_of(tile), rng)[region]

    return _fill_region(family, tile, rng, fill, material=material)


def _region_scene(family: str, tile: RGB, rng: Rng) -> Edit:
    scene = pick(rng, draw.SCENES)

    def fill(region: tuple[slice, slice]) -> RGB:
        return draw.draw_scene(scene, draw.shape_of(tile[region]), rng)

    return _fill_region(family, tile, rng, fill, scene=scene)


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
    """Replace a region behind an object."""
    name = pick(rng, _CENTER_OF)
    kept = random_object(rng, place=_CENTER_OF[name])
    scene = pick(rng, draw.SCENES)
    before = draw_objects(tile, [kept])
    region, mask = _region_of(name, tile)
    background = tile.copy()
    background[region] = draw.draw_scene(scene, draw.shape_of(tile[region]), rng)
    return _visible_edit(
        family, before, draw_objects(background, [kept]), mask & ~objects_mask([kept], tile), rng,
        region=name, scene=scene, the_thing=f"the {kept.name}", thing=kept.name,
    )  # fmt: skip


def _add_text(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word, color = pick(rng, PLACES), pick(rng, WORDS), pick(rng, draw.COLORS)
    layer = text_layer(word, color, text_width(place, tile, rng))
    x, y = layer_position(place, layer, tile)
    return _visible_edit(
        family, tile, draw.paste(tile, layer, x, y), layer_mask(layer, x, y, tile), rng,
        word=word, color=color, in_place=IN_PLACE[place],
    )  # fmt: skip


def _font_color(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word, color = pick(rng, PLACES), pick(rng, WORDS), pick(rng, draw.COLORS)
    new_color = pick(rng, draw.COLORS, color)
    width = text_width(place, tile, rng)
    old_layer, new_layer = text_layer(word, color, width), text_layer(word, new_color, width)
    x, y = layer_position(place, old_layer, tile)
    letters = layer_mask(old_layer, x, y, tile)
    before = draw.paste(tile, old_layer, x, y)
    visible = np.count_nonzero(visible_change(tile, before) & letters)
    if visible < MIN_VISIBLE_SHARE * np.count_nonzero(letters):
        raise Invisible("font color: the word is illegible before the edit")
    after = draw.paste(tile, new_layer, x, y)
    return _visible_edit(
        family, before, after, letters, rng, word=word, color=new_color, in_place=IN_PLACE[place]
    )


def _replace_text(family: str, tile: RGB, rng: Rng) -> Edit:
    place, word = pick(rng, PLACES), pick(rng, WORDS)
    new_word = pick(rng, WORDS, word)
    signs = [("white", "black"), ("yellow", "black"), ("blue", "white"), ("wooden", "white")]
    sign_color, ink = signs[rng.integers(4)]
    width = text_width(place, tile, rng)
    layers = [text_layer(text, ink, round(width * 0.84)) for text in (word, new_word)]
    height = round(max(layer.shape[0] for layer in layers) * 1.5)
    if height > 0.9 * tile.shape[0]:
        raise Invisible("replace text: the sign is taller than the image")
    sign = draw.draw_sign(sign_color, (height, width), rng)
    (before, after), changed = letter_sign(tile, sign, place, layers)
    return _visible_edit(
        family, before, after, changed, rng, word=word, new_word=new_word, in_place=IN_PLACE[place]
    )


def _restyle(family: str, tile: RGB, rng: Rng) -> Edit:
    style = pick(rng, GLOBAL_FILTERS[family])
    before = draw_objects(tile, _distractors(rng, [random_object(rng)], tile))
    after = GLOBAL_FILTERS[family][style](before, rng)
    share = np.count_nonzero(visible_change(before, after)) / (before.shape[0] * before.shape[1])
    if share < MIN_VISIBLE_SHARE:
        raise Invisible(f"{family}: only {share:.0%} of the image changes visibly")
    text, summary = word_global_edit(family, rng, style)
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
    "tone": _restyle,
    "vintage": _restyle,
    "lighting": _restyle,
    "season": _restyle,
    "weather": _restyle,
    "sketch": _restyle,
}
