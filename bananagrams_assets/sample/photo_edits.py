"""Edits of what is in a photograph: its objects, its background, its words, its frame.

Like those of `edits`, each is a pure function with the exact mask of what visibly changes. Outlines are
feathered as an editor's are; the mask ends at half alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bananagrams_assets.sample import draw, filters, words
from bananagrams_assets.sample.edits import Edit, make_edit
from bananagrams_assets.sample.fill import fill
from bananagrams_assets.sample.photos import RGB
from bananagrams_assets.sample.segments import Mask, Segment, box_of
from bananagrams_assets.sample.things import Rng, corner_at, pick
from bananagrams_assets.sample.visible import VISIBLE_DE, Invisible, colour_change, visible_truth

LEAST_RESTYLED = 0.8
"""Share of the picture that a global edit must visibly change."""
LEAST_BLURRED = 0.7
"""Share of a background that its blur must visibly change, before gaps are closed."""


@dataclass(eq=False)
class Scene:
    """A photograph to edit (uint8 RGB), and where its segments and other photographs are to be had.

    `others` draws any photograph, `donors` one with labelled objects, None where there is none.
    """

    rgb: RGB
    find_segments: Callable[[RGB], list[Segment]]
    others: Callable[[Rng], Scene]
    donors: Callable[[Rng], Scene | None]

    @cached_property
    def segments(self) -> list[Segment]:
        return self.find_segments(self.rgb)


def make_photo_edit(family: str, scene: Scene, rng: Rng) -> Edit:
    """One edit of `family` (a key of `words.PHOTO_FAMILIES` or `words.FAMILIES`) on a photograph.

    Raises Invisible where this draw shows too little, or the photograph has nothing to edit that way.
    """
    if family in _MAKERS:
        return _MAKERS[family](family, scene, rng)
    if family in _STYLES:
        return _restyle(family, scene, rng)
    return make_edit(family, scene.rgb, rng)


def _edit(
    family: str, shown: Scene, after: RGB, painted: Mask, meant: Mask, rng: Rng, /, **names: str
) -> Edit:
    truth = visible_truth(shown.rgb, after, painted, meant)
    text, summary = words.phrase(family, rng, **names)
    return Edit(family, shown.rgb, after, truth.mask, text, summary, is_global=False)


def _segment(
    scene: Scene,
    rng: Rng,
    low: float,
    high: float,
    label: str | None = None,
    whole: bool = False,
    found: bool = False,
) -> Segment:
    """A countable segment that covers `low` to `high` of the picture.

    `whole`: the picture's border does not cut it. `found`: regions found by their colour will do too.
    """
    fitting = [
        segment
        for segment in scene.segments
        if low <= segment.share <= high
        and (segment.thing or (found and not segment.label))
        and not (whole and segment.touches_border)
        and label in (None, segment.label)
    ]
    if not fitting:
        raise Invisible("the photograph has no object of that size")
    return fitting[int(rng.integers(len(fitting)))]


def _subject(scene: Scene, rng: Rng) -> Segment:
    """What the photograph is of: one of its largest countable segments."""
    fitting = [segment for segment in scene.segments if segment.thing and 0.05 <= segment.share <= 0.6]
    if not fitting:
        raise Invisible("the photograph has no main object")
    return sorted(fitting, key=lambda segment: -segment.share)[int(rng.integers(min(2, len(fitting))))]


def _foreground(scene: Scene) -> Segment:
    """What a background is behind: the largest countable segment, where none is like it in size."""
    shares = sorted((segment.share, index) for index, segment in enumerate(scene.segments) if segment.thing)
    if not shares or not 0.05 <= shares[-1][0] <= 0.6 or sum(s > shares[-1][0] / 2 for s, _ in shares) > 1:
        raise Invisible("the photograph has no foreground, or several")
    return scene.segments[shares[-1][1]]


def _grown(mask: Mask, px: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * px + 1, 2 * px + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def _margin(mask: Mask) -> int:
    return max(3, round(float(max(mask.shape)) / 140))


def _feathered(mask: Mask) -> npt.NDArray[np.float32]:
    """Alpha (H, W, 1) that is a half on the outline and rises over 2 to 3 px."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.8, max(mask.shape) / 800))
    return np.asarray(alpha, np.float32)[..., None]


def _over(image: RGB, layer: npt.NDArray[Any], alpha: npt.NDArray[np.float32]) -> RGB:
    return draw.to_bytes(image * (1 - alpha) + layer * alpha)


def _remove(family: str, scene: Scene, rng: Rng) -> Edit:
    if rng.random() < 0.4:
        before, covered, name, where = _placed(scene, rng)
        staged = replace(scene, rgb=before)
        return _edit(family, staged, scene.rgb, covered, covered, rng, the=f"the {name} {where}", name=name)
    target = _segment(scene, rng, 0.004, 0.14)
    hole = _grown(target.mask, _margin(target.mask))
    after = fill(scene.rgb, hole, _same(scene, target))
    return _edit(family, scene, after, hole, target.mask, rng, the=target.the, name=target.name)


def _same(scene: Scene, target: Segment) -> Mask:
    """What must not fill the place of a removed object: others of its kind."""
    found = np.zeros(target.mask.shape, bool)
    for segment in scene.segments:
        if target.label and segment.label == target.label:
            found |= segment.mask
    return found


def _lab(rgb: RGB) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _recolored(rgb: RGB, mask: Mask, color: str) -> npt.NDArray[np.float32]:
    """The picture in one colour, light and shade of the masked part kept, float32 0..255."""
    target = _lab(np.array([[draw.COLORS[color]]], np.uint8))[0, 0]
    lab = _lab(rgb)
    middle = float(np.median(lab[..., 0][mask]))
    lightness = target[0] + 0.75 * (lab[..., 0] - middle) + 0.35 * (middle - target[0])
    painted = np.dstack(
        [np.clip(lightness, 2, 98), 0.1 * lab[..., 1] + 0.9 * target[1], 0.1 * lab[..., 2] + 0.9 * target[2]]
    )
    return np.asarray(
        np.clip(cv2.cvtColor(painted.astype(np.float32), cv2.COLOR_LAB2RGB) * 255, 0, 255), np.float32
    )


def _recolor(family: str, scene: Scene, rng: Rng) -> Edit:
    target = _segment(scene, rng, 0.006, 0.5, found=True)
    color = pick(rng, draw.COLORS, target.color)
    after = _over(scene.rgb, _recolored(scene.rgb, target.mask, color), _feathered(target.mask))
    return _edit(
        family, scene, after, target.mask, target.mask, rng, the=target.the, name=target.name, color=color
    )


def _material(family: str, scene: Scene, rng: Rng) -> Edit:
    target = _segment(scene, rng, 0.012, 0.5, found=True)
    material = pick(rng, draw.MATERIALS)
    surface = draw.draw_material(material, scene.rgb.shape[:2], rng).astype(np.float32)
    light = cv2.GaussianBlur(scene.rgb.astype(np.float32).mean(axis=2), (0, 0), 2)
    shade = np.clip(light / max(float(np.median(light[target.mask])), 20), 0.45, 1.5)[..., None]
    after = _over(scene.rgb, np.clip(surface * shade, 0, 255), _feathered(target.mask))
    return _edit(
        family, scene, after, target.mask, target.mask, rng,
        the=target.the, name=target.name, material=material,
    )  # fmt: skip


def _clothing(family: str, scene: Scene, rng: Rng) -> Edit:
    person = _segment(scene, rng, 0.03, 0.6, label="person")
    clothes = _clothes(scene.rgb, person)
    color = pick(rng, draw.COLORS, person.color)
    after = _over(scene.rgb, _recolored(scene.rgb, clothes, color), _feathered(clothes))
    return _edit(family, scene, after, clothes, clothes, rng, the=person.the, name="person", color=color)


def _clothes(rgb: RGB, person: Segment) -> Mask:
    """The largest patch of one colour of a person's middle."""
    _, top, _, bottom = person.box
    torso = person.mask.copy()
    torso[: round(top + 0.2 * (bottom - top))] = False
    torso[round(top + 0.8 * (bottom - top)) :] = False
    lab = _lab(cv2.bilateralFilter(rgb, 9, 50, 9).astype(np.uint8))
    points = lab[torso]
    if len(points) < 400:
        raise Invisible("the person is too small to dress")
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 0.5)
    _, labels, _ = cv2.kmeans(points, 3, np.empty(0), criteria, 1, cv2.KMEANS_PP_CENTERS)
    largest = int(np.bincount(labels.ravel(), minlength=3).argmax())
    plane = np.zeros(torso.shape, np.uint8)
    plane[torso] = labels.ravel() == largest
    radius = _margin(torso)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(plane, cv2.MORPH_OPEN, kernel)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(closed.astype(np.uint8), connectivity=4)
    if len(stats) < 2 or stats[1:, cv2.CC_STAT_AREA].max() < 0.006 * torso.size:
        raise Invisible("the person's clothes have no one colour")
    chosen: Mask = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())) & person.mask
    return chosen


def _moved(
    scene: Scene, target: Segment, transform: npt.NDArray[np.float64], emptied: bool
) -> tuple[RGB, Mask, Mask]:
    """The picture with an object drawn again through an affine map (2, 3), what was painted, and its new
    place; `emptied`: its old place is filled."""
    height, width = target.mask.shape
    hole = _grown(target.mask, _margin(target.mask)) if emptied else np.zeros_like(target.mask)
    ground = fill(scene.rgb, hole, target.mask) if emptied else scene.rgb
    layer = cv2.warpAffine(
        scene.rgb, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    place = cv2.warpAffine(target.mask.astype(np.float32), transform, (width, height)) > 0.5
    return _over(ground, layer, _feathered(place)), hole | place, place


def _move(family: str, scene: Scene, rng: Rng) -> Edit:
    target = _segment(scene, rng, 0.008, 0.16, whole=True)
    left, _, right, _ = target.box
    width = target.mask.shape[1]
    step = (right - left) * rng.uniform(0.5, 1.3)
    ways = [way for way, free in (("left", left - step), ("right", width - right - step)) if free > 2]
    if not ways:
        raise Invisible("the object has no room to move")
    way = ways[int(rng.integers(len(ways)))]
    shift = round(step) * (1 if way == "right" else -1)
    transform = np.array([[1, 0, shift], [0, 1, 0]], np.float64)
    after, painted, place = _moved(scene, target, transform, emptied=True)
    return _edit(
        family, scene, after, painted, target.mask ^ place, rng, the=target.the, name=target.name, way=way
    )


def _about(x: float, y: float, degrees: float, scale: float) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.getRotationMatrix2D((x, y), degrees, scale), np.float64)


def _resize(family: str, scene: Scene, rng: Rng) -> Edit:
    grows = rng.random() < 0.6
    target = _segment(scene, rng, 0.008, 0.14, whole=True)
    left, _, right, bottom = target.box
    scale = rng.uniform(1.35, 1.7) if grows else rng.uniform(0.45, 0.65)
    transform = _about((left + right) / 2, bottom, 0, scale)
    after, painted, place = _moved(scene, target, transform, emptied=not grows)
    size = "larger" if grows else "smaller"
    return _edit(
        family, scene, after, painted, target.mask ^ place, rng, the=target.the, name=target.name, size=size
    )


def _turn(family: str, scene: Scene, rng: Rng) -> Edit:
    pose = family == "pose"
    target = _segment(scene, rng, 0.01, 0.16, whole=True, label="person" if pose else None)
    left, _, right, bottom = target.box
    angle = rng.uniform(10, 18) if pose else rng.uniform(18, 40)
    way = "left" if rng.random() < 0.5 else "right"
    transform = _about((left + right) / 2, bottom, angle if way == "left" else -angle, 1.0)
    after, painted, place = _moved(scene, target, transform, emptied=True)
    return _edit(
        family, scene, after, painted, target.mask ^ place, rng, the=target.the, name=target.name, way=way
    )


def _donor(scene: Scene, rng: Rng, but: str = "") -> tuple[RGB, Segment]:
    """A whole object of another photograph, not of the category `but`."""
    for _ in range(8):
        other = scene.donors(rng)
        if other is None:
            break
        fitting = [
            segment
            for segment in other.segments
            if segment.thing
            and segment.label not in ("main object", but)
            and not segment.touches_border
            and 0.006 <= segment.share <= 0.4
            and segment.mask.sum() > 0.35 * _box_area(segment)
        ]
        if fitting:
            return other.rgb, fitting[int(rng.integers(len(fitting)))]
    raise Invisible("no other photograph has a whole, labelled object")


def _box_area(segment: Segment) -> int:
    left, top, right, bottom = segment.box
    return (right - left) * (bottom - top)


def _cut_out(rgb: RGB, segment: Segment, size: tuple[int, int]) -> draw.Layer:
    """An object cut out along its outline, resized to (W, H) px, as an RGBA layer."""
    left, top, right, bottom = segment.box
    # A pixel less all round: labels are generous, and a rim of another picture gives an object away.
    alpha = cv2.erode(segment.mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    window = (slice(top, bottom), slice(left, right))
    small = size[0] < right - left
    way = cv2.INTER_AREA if small else cv2.INTER_CUBIC
    color = cv2.resize(rgb[window].astype(np.float32), size, interpolation=way)
    cover = cv2.GaussianBlur(cv2.resize(alpha[window], size, interpolation=cv2.INTER_LINEAR), (0, 0), 0.8)
    return np.dstack([np.clip(color, 0, 255), np.clip(cover, 0, 1)]).astype(np.float32)


def _pasted(image: RGB, layer: draw.Layer, x: int, y: int) -> tuple[RGB, Mask]:
    """`picture` with part of the light of the place on the layer, and what it covers at half alpha."""
    height, width = layer.shape[:2]
    under = image[y : y + height, x : x + width].astype(np.float32)
    covers = layer[..., 3] > 0.5
    if not covers.any():
        raise Invisible("the object is too thin to paste")
    light = (under.mean() - layer[..., :3][covers].mean()) * 0.2
    toned = np.dstack([np.clip(layer[..., :3] + light, 0, 255), layer[..., 3]]).astype(np.float32)
    mask = np.zeros(image.shape[:2], bool)
    mask[y : y + height, x : x + width] = covers
    return draw.paste(image, toned, x, y), mask


def _placed(scene: Scene, rng: Rng) -> tuple[RGB, Mask, str, str]:
    """The picture with one more object, what it covers, its name, and where it stands in words."""
    height, width = scene.rgb.shape[:2]
    if rng.random() < 0.7 and scene.donors(rng):
        rgb, segment = _donor(scene, rng)
        left, top, right, bottom = segment.box
        scale = rng.uniform(0.16, 0.42) * min(height, width) / max(right - left, bottom - top)
        size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
        layer, name = _cut_out(rgb, segment, size), segment.label
    else:
        kind, color = pick(rng, draw.KINDS), pick(rng, draw.COLORS)
        side = round(rng.uniform(0.15, 0.35) * min(height, width))
        layer, name = draw.draw_thing(kind, color, side, int(rng.integers(2**31))), f"{color} {kind}"
    place = pick(rng, words.PLACES)
    column, row = words.PLACES[place]
    x = round((words.COLUMNS[column] + rng.uniform(-0.06, 0.06)) * width - layer.shape[1] / 2)
    y = round((words.ROWS[row] + rng.uniform(-0.06, 0.06)) * height - layer.shape[0] / 2)
    x = min(max(x, 1), width - layer.shape[1] - 1)
    y = min(max(y, 1), height - layer.shape[0] - 1)
    image, mask = _pasted(scene.rgb, layer, x, y)
    return image, mask, name, _beside(scene, mask) or words.IN_PLACE[place]


def _add(family: str, scene: Scene, rng: Rng) -> Edit:
    after, mask, name, where = _placed(scene, rng)
    return _edit(family, scene, after, mask, mask, rng, a_thing=words.a(name), thing=name, where=where)


def _beside(scene: Scene, mask: Mask) -> str:
    """Next to which labelled object a mask lies; empty where it lies next to none, or on top of one."""
    near = _grown(mask, round(max(mask.shape) / 20))
    for segment in scene.segments:
        named = segment.label and segment.label != "main object" and segment.thing
        if named and (segment.mask & near).any() and not (segment.mask & mask).any():
            return f"next to {segment.the}"
    return ""


def _replace(family: str, scene: Scene, rng: Rng) -> Edit:
    if rng.random() < 0.4:
        before, covered, name, where = _placed(scene, rng)
        staged, ground = replace(scene, rgb=before), scene.rgb
        painted, the = covered, f"the {name} {where}"
    else:
        target = _segment(scene, rng, 0.008, 0.16)
        staged, covered, name, the = scene, target.mask, target.name, target.the
        painted = _grown(covered, _margin(covered))
        ground = fill(scene.rgb, painted, _same(scene, target))
    left, top, right, bottom = box_of(covered)
    layer, new = _fitting(scene, rng, (right - left, bottom - top), but=name)
    height, width = covered.shape
    if layer.shape[0] > height - 2 or layer.shape[1] > width - 2:
        raise Invisible("the new object does not fit into the picture")
    x = min(max(round((left + right - layer.shape[1]) / 2), 1), width - layer.shape[1] - 1)
    y = min(max(bottom - layer.shape[0], 1), height - layer.shape[0] - 1)
    after, place = _pasted(ground, layer, x, y)
    return _edit(
        family, staged, after, painted | place, covered | place, rng,
        the=the, name=name, a_new=words.a(new), new=new,
    )  # fmt: skip


def _fitting(scene: Scene, rng: Rng, size: tuple[int, int], but: str) -> tuple[draw.Layer, str]:
    """An object not named `but`, of about a size (W, H) in px, and its name."""
    if not scene.donors(rng):
        kind, color = pick(rng, draw.KINDS), pick(rng, draw.COLORS)
        if f"{color} {kind}" == but:
            raise Invisible("an object would replace its like")
        return draw.draw_thing(kind, color, max(16, min(size)), int(rng.integers(2**31))), f"{color} {kind}"
    rgb, new = _donor(scene, rng, but)
    left, top, right, bottom = new.box
    scale = min(size[0] / (right - left), size[1] / (bottom - top)) * rng.uniform(0.95, 1.15)
    resized = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    return _cut_out(rgb, new, resized), new.label


def _background(family: str, scene: Scene, rng: Rng) -> Edit:
    subject = _foreground(scene)
    height, width = subject.mask.shape
    if rng.random() < 0.5:
        name = pick(rng, draw.SCENES)
        behind = draw.draw_scene(name, (height, width), rng)
    else:
        name = "different place"
        other = scene.others(rng).rgb
        behind = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    after = _over(behind, scene.rgb.astype(np.float32), _feathered(subject.mask))
    ground = ~subject.mask
    return _edit(family, scene, after, ground, ground, rng, the=subject.the, scene=name)


def _blur(family: str, scene: Scene, rng: Rng) -> Edit:
    subject = _foreground(scene)
    sigma = max(subject.mask.shape) / rng.uniform(22, 36)
    known = (~subject.mask).astype(np.float32)[..., None]
    # The subject must not bleed into the blur.
    weight = cv2.GaussianBlur(known, (0, 0), sigma)[..., None]
    soft = cv2.GaussianBlur(scene.rgb * known, (0, 0), sigma) / np.maximum(weight, 1e-3)
    after = _over(draw.to_bytes(soft), scene.rgb.astype(np.float32), _feathered(subject.mask))
    ground = ~subject.mask
    if (colour_change(scene.rgb, after) > VISIBLE_DE)[ground].mean() < LEAST_BLURRED:
        raise Invisible("the background was smooth already")
    return _edit(family, scene, after, ground, ground, rng, the=subject.the)


def _accessory(family: str, scene: Scene, rng: Rng) -> Edit:
    people = [s for s in scene.segments if s.label == "person" and s.share >= 0.03]
    wearer = people[int(rng.integers(len(people)))] if people else _subject(scene, rng)
    kind, color = pick(rng, draw.ACCESSORIES), pick(rng, draw.COLORS)
    _, top, _, bottom = wearer.box
    tall = bottom - top
    rows = wearer.mask[top : top + max(4, round((0.16 if people else 0.3) * tall))]
    columns = np.flatnonzero(rows.any(axis=0))
    head = max(int(columns[-1] - columns[0]), 8)
    size_w = min(max(round(0.95 * head), 24), round(0.45 * wearer.mask.shape[1]))
    size_h = round(size_w * {"glasses": 0.4, "sunglasses": 0.4, "party hat": 1.0}.get(kind, 0.5))
    down = {"headband": 0.01, "party hat": -0.12, "glasses": 0.06, "sunglasses": 0.06}.get(kind, 0.16)
    height, width = wearer.mask.shape
    x = min(max(round((columns[0] + columns[-1] - size_w) / 2), 1), width - size_w - 1)
    y = min(max(round(top + down * tall), 1), height - size_h - 1)
    if size_h >= height - 2 or y < 1:
        raise Invisible("the accessory does not fit")
    layer = draw.draw_accessory(kind, color, (size_w, size_h))
    after = draw.paste(scene.rgb, layer, x, y)
    mask = np.zeros((height, width), bool)
    mask[y : y + size_h, x : x + size_w] = layer[..., 3] > 0.5
    plural = kind.endswith("glasses")
    thing = f"{color} {kind}"
    return _edit(
        family, scene, after, mask, mask, rng,
        a_thing=thing if plural else words.a(thing), thing=thing, the=wearer.the, name=wearer.name,
    )  # fmt: skip


def _word_layer(word: str, color: str, width: int, font: str) -> draw.Layer:
    alpha = draw.draw_word(word, width, words.FONTS[font])
    rgb = np.broadcast_to(np.array(draw.COLORS[color], np.float32), (*alpha.shape, 3))
    return np.dstack([rgb, alpha]).astype(np.float32)


def _put(image: RGB, layer: draw.Layer, place: str) -> tuple[RGB, Mask]:
    x, y = corner_at(place, layer, image)
    if x < 0 or y < 0:
        raise Invisible("the words do not fit")
    mask = np.zeros(image.shape[:2], bool)
    mask[y : y + layer.shape[0], x : x + layer.shape[1]] = layer[..., 3] > 0.5
    return draw.paste(image, layer, x, y), mask


def _caption(family: str, scene: Scene, rng: Rng) -> Edit:
    word, color = pick(rng, words.CAPTIONS), pick(rng, draw.COLORS)
    font, place = pick(rng, words.FONTS), pick(rng, words.PLACES)
    width = round(rng.uniform(0.36, 0.55) * scene.rgb.shape[1])
    after, mask = _put(scene.rgb, _word_layer(word, color, width, font), place)
    where = words.IN_PLACE[place]
    return _edit(family, scene, after, mask, mask, rng, word=word, color=color, font=font, where=where)


def _restyle_text(family: str, scene: Scene, rng: Rng) -> Edit:
    word, place = pick(rng, words.CAPTIONS), pick(rng, words.PLACES)
    color = pick(rng, draw.COLORS)
    new_color, font = pick(rng, draw.COLORS, color), pick(rng, words.FONTS)
    new_font = pick(rng, words.FONTS, font)
    width = round(rng.uniform(0.4, 0.6) * scene.rgb.shape[1])
    before, old = _put(scene.rgb, _word_layer(word, color, width, font), place)
    visible_truth(scene.rgb, before, old, old)  # it has to be read before it is changed
    after, new = _put(scene.rgb, _word_layer(word, new_color, width, new_font), place)
    written = replace(scene, rgb=before)
    return _edit(family, written, after, old | new, old | new, rng, word=word, color=new_color, font=new_font)


def _translate(family: str, scene: Scene, rng: Rng) -> Edit:
    english, language, translation = words.SIGNS[int(rng.integers(len(words.SIGNS)))]
    ground, ink = [("white", "black"), ("yellow", "black"), ("blue", "white"), ("green", "white")][
        int(rng.integers(4))
    ]
    place, font = pick(rng, words.PLACES), pick(rng, words.FONTS)
    height, width = scene.rgb.shape[:2]
    board_w = round(rng.uniform(0.42, 0.6) * width)
    board_h = round(board_w * 0.36)
    board = draw.draw_plate(ground, (board_h, board_w), rng)
    signs, cover = [], np.zeros((height, width), bool)
    x, y = corner_at(place, board, scene.rgb)
    bare = draw.paste(scene.rgb, board, x, y)
    for word in (english, translation):
        layer = _word_layer(word, ink, round(board_w * min(0.86, 0.17 * len(word))), font)
        if layer.shape[0] > board_h - 6:
            raise Invisible("the word is taller than the sign")
        u, v = x + (board_w - layer.shape[1]) // 2, y + (board_h - layer.shape[0]) // 2
        signs.append(draw.paste(bare, layer, u, v))
        cover[v : v + layer.shape[0], u : u + layer.shape[1]] ^= layer[..., 3] > 0.5
    written = replace(scene, rgb=signs[0])
    return _edit(family, written, signs[1], cover, cover, rng, word=english, language=language)


_STYLES: Mapping[str, Mapping[str, filters.Filter]] = {
    "tone": filters.TONES,
    "vintage": filters.FILMS,
    "lighting": filters.LIGHTS,
    "season": filters.SEASONS,
    "weather": filters.WEATHERS,
    "sketch": filters.STYLES,
    "art": filters.ARTS,
    "historical": filters.PASTS,
    "anime": filters.ANIME,
    "cel": filters.CELS,
    "ink": filters.INKS,
}


def _restyle(family: str, scene: Scene, rng: Rng) -> Edit:
    name = pick(rng, _STYLES[family])
    after = _STYLES[family][name](scene.rgb, rng)
    shown = float((colour_change(scene.rgb, after) > VISIBLE_DE).mean())
    if shown < LEAST_RESTYLED:
        raise Invisible(f"{family}: {shown:.0%} of the picture changes visibly")
    text, summary = words.phrase(family, rng, tone=name, lighting=name, season=name, weather=name, style=name)
    return Edit(family, scene.rgb, after, np.ones(after.shape[:2], bool), text, summary, is_global=True)


def _window(rgb: RGB, share: float, place: str) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of `share` of both sides at a place, inside the picture."""
    height, width = rgb.shape[:2]
    w, h = round(share * width), round(share * height)
    column, row = words.PLACES[place]
    x = min(max(round(words.COLUMNS[column] * width - w / 2), 0), width - w)
    y = min(max(round(words.ROWS[row] * height - h / 2), 0), height - h)
    return x, y, w, h


def _framing(x: int, y: int, scale_x: float, scale_y: float) -> npt.NDArray[np.float64]:
    """Pixels of a resized crop → pixels of the picture (centres at integers)."""
    return np.array(
        [[scale_x, 0, x + (scale_x - 1) / 2], [0, scale_y, y + (scale_y - 1) / 2], [0, 0, 1]], np.float64
    )


def _zoom(family: str, scene: Scene, rng: Rng) -> Edit:
    place = pick(rng, words.PLACES)
    x, y, w, h = _window(scene.rgb, float(rng.uniform(0.62, 0.9)), place)
    height, width = scene.rgb.shape[:2]
    after = cv2.resize(scene.rgb[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_CUBIC)
    text, summary = words.phrase(family, rng, place=place)
    nothing = np.zeros((height, width), bool)
    homography = _framing(x, y, w / width, h / height)
    return Edit(
        family,
        scene.rgb,
        after.astype(np.uint8),
        nothing,
        text,
        summary,
        is_global=False,
        homography=homography,
    )


def _outpaint(family: str, scene: Scene, rng: Rng) -> Edit:
    x, y, w, h = _window(scene.rgb, float(rng.uniform(0.62, 0.9)), pick(rng, words.PLACES))
    before = np.ascontiguousarray(scene.rgb[y : y + h, x : x + w])
    text, summary = words.phrase(family, rng)
    homography = _framing(-x, -y, 1.0, 1.0)
    return Edit(
        family,
        before,
        scene.rgb,
        np.zeros((h, w), bool),
        text,
        summary,
        is_global=False,
        homography=homography,
    )


def _untouched(family: str, scene: Scene, rng: Rng) -> Edit:
    text, summary = words.phrase(family, rng)
    return Edit(
        family, scene.rgb, scene.rgb, np.zeros(scene.rgb.shape[:2], bool), text, summary, is_global=False
    )


_MAKERS: dict[str, Callable[[str, Scene, Rng], Edit]] = {
    "add object": _add,
    "remove object": _remove,
    "replace object": _replace,
    "recolor object": _recolor,
    "object material": _material,
    "move object": _move,
    "resize object": _resize,
    "turn object": _turn,
    "pose": _turn,
    "replace background": _background,
    "blur background": _blur,
    "clothing": _clothing,
    "accessory": _accessory,
    "caption": _caption,
    "restyle text": _restyle_text,
    "translate text": _translate,
    "zoom in": _zoom,
    "outpaint": _outpaint,
    "untouched": _untouched,
}
