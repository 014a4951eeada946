"""Edits of the objects in a photo: removed, added, replaced, recoloured, moved, dressed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from . import draw
from .compositing import blended, cut_out, dilated, feathered, layer_mask, margin_px, paste_toned
from .drawn_objects import pick, place_corner
from .edit import Edit
from .inpaint import inpaint
from .photos import RGB, Mask, Rng
from .scene import Scene, random_donor_object, random_segment, random_subject, same_label_mask, visible_edit
from .segments import MAIN_OBJECT, Segment, box_of, opened_and_closed
from .visibility import Invisible
from .vocabulary import IN_PLACE, PLACES, with_article


def remove_object(family: str, scene: Scene, rng: Rng) -> Edit:
    """Inpaint an object, or take the photo itself as the image after the removal of an added object."""
    if rng.random() < 0.4:
        before, mask, name, where = _with_added_object(scene, rng)
        staged = replace(scene, rgb=before)
        return visible_edit(family, staged, scene.rgb, mask, mask, rng, the=f"the {name} {where}", name=name)
    target = random_segment(scene, rng, 0.004, 0.14)
    hole = dilated(target.mask, margin_px(target.mask))
    after = inpaint(scene.rgb, hole, same_label_mask(scene, target))
    return visible_edit(family, scene, after, hole, target.mask, rng, the=target.reference, name=target.name)


def _lab(rgb: RGB) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _recolored(rgb: RGB, mask: Mask, color: str) -> npt.NDArray[np.float32]:
    """Return the image in one colour, float32 0..255; the masked part keeps its lightness variations."""
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


def recolor_object(family: str, scene: Scene, rng: Rng) -> Edit:
    target = random_segment(scene, rng, 0.006, 0.5, allow_regions=True)
    color = pick(rng, draw.COLORS, target.color)
    after = blended(scene.rgb, _recolored(scene.rgb, target.mask, color), feathered(target.mask))
    return visible_edit(
        family, scene, after, target.mask, target.mask, rng,
        the=target.reference, name=target.name, color=color,
    )  # fmt: skip


def change_material(family: str, scene: Scene, rng: Rng) -> Edit:
    target = random_segment(scene, rng, 0.012, 0.5, allow_regions=True)
    material = pick(rng, draw.MATERIALS)
    surface = draw.draw_material(material, scene.rgb.shape[:2], rng).astype(np.float32)
    light = cv2.GaussianBlur(scene.rgb.astype(np.float32).mean(axis=2), (0, 0), 2)
    shade = np.clip(light / max(float(np.median(light[target.mask])), 20), 0.45, 1.5)[..., None]
    after = blended(scene.rgb, np.clip(surface * shade, 0, 255), feathered(target.mask))
    return visible_edit(
        family, scene, after, target.mask, target.mask, rng,
        the=target.reference, name=target.name, material=material,
    )  # fmt: skip


def recolor_clothes(family: str, scene: Scene, rng: Rng) -> Edit:
    person = random_segment(scene, rng, 0.03, 0.6, label="person")
    clothes = _clothes(scene.rgb, person)
    color = pick(rng, draw.COLORS, person.color)
    after = blended(scene.rgb, _recolored(scene.rgb, clothes, color), feathered(clothes))
    return visible_edit(
        family, scene, after, clothes, clothes, rng, the=person.reference, name="person", color=color
    )


def _clothes(rgb: RGB, person: Segment) -> Mask:
    """Return the largest patch of one colour in the middle of a person. Raises Invisible if there is none."""
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
    smooth = opened_and_closed(plane, margin_px(torso))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=4)
    if len(stats) < 2 or stats[1:, cv2.CC_STAT_AREA].max() < 0.006 * torso.size:
        raise Invisible("the person's clothes have no patch of one colour")
    largest_patch: Mask = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())) & person.mask
    return largest_patch


def _transform_object(
    family: str, scene: Scene, target: Segment, rng: Rng, transform: Any, inpaints: bool = True, **values: str
) -> Edit:
    """Redraw an object through an affine map, float64 (2, 3); `inpaints`: fill its old place."""
    height, width = target.mask.shape
    hole = dilated(target.mask, margin_px(target.mask)) if inpaints else np.zeros_like(target.mask)
    background = inpaint(scene.rgb, hole, target.mask) if inpaints else scene.rgb
    layer = cv2.warpAffine(
        scene.rgb, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    place = cv2.warpAffine(target.mask.astype(np.float32), transform, (width, height)) > 0.5
    return visible_edit(
        family, scene, blended(background, layer, feathered(place)), hole | place, target.mask ^ place, rng,
        the=target.reference, name=target.name, **values,
    )  # fmt: skip


def move_object(family: str, scene: Scene, rng: Rng) -> Edit:
    target = random_segment(scene, rng, 0.008, 0.16, inside=True)
    left, _, right, _ = target.box
    width = target.mask.shape[1]
    step = (right - left) * rng.uniform(0.5, 1.3)
    ways = [way for way, free in (("left", left - step), ("right", width - right - step)) if free > 2]
    if not ways:
        raise Invisible("the object has no room to move")
    way = ways[int(rng.integers(len(ways)))]
    shift = round(step) * (1 if way == "right" else -1)
    transform = np.array([[1, 0, shift], [0, 1, 0]], np.float64)
    return _transform_object(family, scene, target, rng, transform, way=way)


def resize_object(family: str, scene: Scene, rng: Rng) -> Edit:
    grows = rng.random() < 0.6
    target = random_segment(scene, rng, 0.008, 0.14, inside=True)
    left, _, right, bottom = target.box
    scale = rng.uniform(1.35, 1.7) if grows else rng.uniform(0.45, 0.65)
    transform = cv2.getRotationMatrix2D(((left + right) / 2, bottom), 0, scale)
    size = "larger" if grows else "smaller"
    return _transform_object(family, scene, target, rng, transform, inpaints=not grows, size=size)


def tilt_object(family: str, scene: Scene, rng: Rng) -> Edit:
    """Rotate an object, or slightly rotate a person for the family `pose`."""
    pose = family == "pose"
    target = random_segment(scene, rng, 0.01, 0.16, inside=True, label="person" if pose else None)
    left, _, right, bottom = target.box
    angle = rng.uniform(10, 18) if pose else rng.uniform(18, 40)
    way = "left" if rng.random() < 0.5 else "right"
    degrees = angle if way == "left" else -angle
    transform = cv2.getRotationMatrix2D(((left + right) / 2, bottom), degrees, 1.0)
    return _transform_object(family, scene, target, rng, transform, way=way)


def _with_added_object(scene: Scene, rng: Rng) -> tuple[RGB, Mask, str, str]:
    """Paste one more object. Returns the image, the object's mask, its name and its place in words."""
    height, width = scene.rgb.shape[:2]
    if rng.random() < 0.7 and scene.random_donor(rng):
        rgb, segment = random_donor_object(scene, rng)
        left, top, right, bottom = segment.box
        scale = rng.uniform(0.16, 0.42) * min(height, width) / max(right - left, bottom - top)
        size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
        layer, name = cut_out(rgb, segment.mask, segment.box, size), segment.label
    else:
        kind, color = pick(rng, draw.KINDS), pick(rng, draw.COLORS)
        side = round(rng.uniform(0.15, 0.35) * min(height, width))
        layer, name = draw.draw_object(kind, color, side, int(rng.integers(2**31))), f"{color} {kind}"
    place, shift = pick(rng, PLACES), (rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06))
    x, y = place_corner(place, (layer.shape[1], layer.shape[0]), scene.rgb.shape, margin=1, shift=shift)
    image, mask = paste_toned(scene.rgb, layer, x, y)
    return image, mask, name, _next_to(scene, mask) or IN_PLACE[place]


def add_object(family: str, scene: Scene, rng: Rng) -> Edit:
    after, mask, name, where = _with_added_object(scene, rng)
    return visible_edit(
        family, scene, after, mask, mask, rng, a_thing=with_article(name), thing=name, where=where
    )


def _next_to(scene: Scene, mask: Mask) -> str:
    """Return "next to …" for a labelled object close to a mask, but not under it; "" if there is none."""
    near = dilated(mask, round(max(mask.shape) / 20))
    for segment in scene.segments:
        named = segment.label and segment.label != MAIN_OBJECT and segment.countable
        if named and (segment.mask & near).any() and not (segment.mask & mask).any():
            return f"next to {segment.reference}"
    return ""


def replace_object(family: str, scene: Scene, rng: Rng) -> Edit:
    if rng.random() < 0.4:
        before, old_mask, name, where = _with_added_object(scene, rng)
        staged, background = replace(scene, rgb=before), scene.rgb
        painted, reference = old_mask, f"the {name} {where}"
    else:
        target = random_segment(scene, rng, 0.008, 0.16)
        staged, old_mask, name, reference = scene, target.mask, target.name, target.reference
        painted = dilated(old_mask, margin_px(old_mask))
        background = inpaint(scene.rgb, painted, same_label_mask(scene, target))
    left, top, right, bottom = box_of(old_mask)
    layer, new_name = _substitute(scene, rng, (right - left, bottom - top), excluded_name=name)
    height, width = old_mask.shape
    if layer.shape[0] > height - 2 or layer.shape[1] > width - 2:
        raise Invisible("the new object does not fit into the image")
    x = min(max(round((left + right - layer.shape[1]) / 2), 1), width - layer.shape[1] - 1)
    y = min(max(bottom - layer.shape[0], 1), height - layer.shape[0] - 1)
    after, new_mask = paste_toned(background, layer, x, y)
    return visible_edit(
        family, staged, after, painted | new_mask, old_mask | new_mask, rng,
        the=reference, name=name, a_new=with_article(new_name), new=new_name,
    )  # fmt: skip


def _substitute(scene: Scene, rng: Rng, size: tuple[int, int], excluded_name: str) -> tuple[draw.Layer, str]:
    """Return an object of about `size` (W, H) px, not named `excluded_name`, and its name."""
    if not scene.random_donor(rng):
        kind, color = pick(rng, draw.KINDS), pick(rng, draw.COLORS)
        name = f"{color} {kind}"
        if name == excluded_name:
            raise Invisible("the new object equals the old one")
        return draw.draw_object(kind, color, max(16, min(size)), int(rng.integers(2**31))), name
    rgb, segment = random_donor_object(scene, rng, excluded_name)
    left, top, right, bottom = segment.box
    scale = min(size[0] / (right - left), size[1] / (bottom - top)) * rng.uniform(0.95, 1.15)
    resized = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    return cut_out(rgb, segment.mask, segment.box, resized), segment.label


def add_accessory(family: str, scene: Scene, rng: Rng) -> Edit:
    """Draw an accessory on a person, or on the subject of a photo without persons."""
    people = [s for s in scene.segments if s.label == "person" and s.share >= 0.03]
    wearer = people[int(rng.integers(len(people)))] if people else random_subject(scene, rng)
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
    after, mask = draw.paste(scene.rgb, layer, x, y), layer_mask(layer, x, y, scene.rgb)
    name = f"{color} {kind}"
    is_plural = kind.endswith("glasses")
    return visible_edit(
        family, scene, after, mask, mask, rng,
        a_thing=name if is_plural else with_article(name), thing=name,
        the=wearer.reference, name=wearer.name,
    )  # fmt: skip
