"""Edits of a photo's own content: its objects, background, text, style and frame.

Each edit is a pure function with the exact mask of the visible change. Outlines are feathered like those of a
generative editor; the mask ends at half alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from . import draw
from .compositing import blended, feathered, layer_mask
from .drawn_edits import make_drawn_edit
from .drawn_objects import layer_position, letter_sign, pick, place_corner, text_layer
from .edit import Edit
from .filters import GLOBAL_FILTERS
from .object_edits import (
    add_accessory,
    add_object,
    change_material,
    move_object,
    recolor_clothes,
    recolor_object,
    remove_object,
    replace_object,
    resize_object,
    tilt_object,
)
from .photos import RGB, Mask, Rng
from .scene import Scene, foreground_of, visible_edit
from .visibility import VISIBLE_DE, Invisible, color_difference, visible_part
from .vocabulary import CAPTIONS, FONTS, IN_PLACE, PLACES, SIGNS, word_edit, word_global_edit

MIN_RESTYLED = 0.8
"""Smallest share of the image that a global edit must change visibly."""
MIN_BLURRED = 0.7
"""Smallest share of a background that its blur must change visibly, before gaps are closed."""


def make_photo_edit(family: str, scene: Scene, rng: Rng) -> Edit:
    """Make one edit of `family`, a key of PHOTO_FAMILIES or FAMILIES, on a photo.

    Raises Invisible if the edit is not visible enough, or the photo does not allow it.
    """
    if family in _MAKERS:
        return _MAKERS[family](family, scene, rng)
    if family in GLOBAL_FILTERS:
        return _restyle(family, scene, rng)
    return make_drawn_edit(family, scene.rgb, rng)


def _replace_background(family: str, scene: Scene, rng: Rng) -> Edit:
    subject = foreground_of(scene)
    height, width = subject.mask.shape
    if rng.random() < 0.5:
        name = pick(rng, draw.SCENES)
        background = draw.draw_scene(name, (height, width), rng)
    else:
        name = "different place"
        other = scene.random_scene(rng).rgb
        background = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    after = blended(background, scene.rgb.astype(np.float32), feathered(subject.mask))
    changed = ~subject.mask
    return visible_edit(family, scene, after, changed, changed, rng, the=subject.reference, scene=name)


def _blur_background(family: str, scene: Scene, rng: Rng) -> Edit:
    subject = foreground_of(scene)
    sigma = max(subject.mask.shape) / rng.uniform(22, 36)
    # Normalised convolution: the subject must not bleed into the blur.
    background = (~subject.mask).astype(np.float32)[..., None]
    weight = cv2.GaussianBlur(background, (0, 0), sigma)[..., None]
    soft = cv2.GaussianBlur(scene.rgb * background, (0, 0), sigma) / np.maximum(weight, 1e-3)
    after = blended(draw.to_bytes(soft), scene.rgb.astype(np.float32), feathered(subject.mask))
    changed = ~subject.mask
    if (color_difference(scene.rgb, after) > VISIBLE_DE)[changed].mean() < MIN_BLURRED:
        raise Invisible("the background was already smooth")
    return visible_edit(family, scene, after, changed, changed, rng, the=subject.reference)


def _paste_text(image: RGB, layer: draw.Layer, place: str) -> tuple[RGB, Mask]:
    """Paste a text at a place. Returns the image and the text's mask. Raises Invisible if it does not fit."""
    x, y = layer_position(place, layer, image)
    if x < 0 or y < 0:
        raise Invisible("the text does not fit")
    return draw.paste(image, layer, x, y), layer_mask(layer, x, y, image)


def _add_caption(family: str, scene: Scene, rng: Rng) -> Edit:
    text, color = pick(rng, CAPTIONS), pick(rng, draw.COLORS)
    font, place = pick(rng, FONTS), pick(rng, PLACES)
    width = round(rng.uniform(0.36, 0.55) * scene.rgb.shape[1])
    after, mask = _paste_text(scene.rgb, text_layer(text, color, width, font), place)
    return visible_edit(
        family, scene, after, mask, mask, rng, word=text, color=color, font=font, where=IN_PLACE[place]
    )


def _restyle_text(family: str, scene: Scene, rng: Rng) -> Edit:
    text, place = pick(rng, CAPTIONS), pick(rng, PLACES)
    color = pick(rng, draw.COLORS)
    new_color, font = pick(rng, draw.COLORS, color), pick(rng, FONTS)
    new_font = pick(rng, FONTS, font)
    width = round(rng.uniform(0.4, 0.6) * scene.rgb.shape[1])
    before, old = _paste_text(scene.rgb, text_layer(text, color, width, font), place)
    visible_part(scene.rgb, before, old, old)  # raises Invisible if the text is illegible before the edit
    after, new = _paste_text(scene.rgb, text_layer(text, new_color, width, new_font), place)
    staged = replace(scene, rgb=before)
    return visible_edit(
        family, staged, after, old | new, old | new, rng, word=text, color=new_color, font=new_font
    )


def _translate_sign(family: str, scene: Scene, rng: Rng) -> Edit:
    english, language, translation = SIGNS[int(rng.integers(len(SIGNS)))]
    signs = [("white", "black"), ("yellow", "black"), ("blue", "white"), ("green", "white")]
    sign_color, ink = signs[int(rng.integers(4))]
    place, font = pick(rng, PLACES), pick(rng, FONTS)
    sign_w = round(rng.uniform(0.42, 0.6) * scene.rgb.shape[1])
    sign_h = round(sign_w * 0.36)
    sign = draw.draw_sign(sign_color, (sign_h, sign_w), rng)
    words = [
        text_layer(word, ink, round(sign_w * min(0.86, 0.17 * len(word))), font)
        for word in (english, translation)
    ]
    if any(word.shape[0] > sign_h - 6 for word in words):
        raise Invisible("the word is taller than the sign")
    (before, after), changed = letter_sign(scene.rgb, sign, place, words)
    staged = replace(scene, rgb=before)
    return visible_edit(family, staged, after, changed, changed, rng, word=english, language=language)


def _restyle(family: str, scene: Scene, rng: Rng) -> Edit:
    style = pick(rng, GLOBAL_FILTERS[family])
    after = GLOBAL_FILTERS[family][style](scene.rgb, rng)
    share = float((color_difference(scene.rgb, after) > VISIBLE_DE).mean())
    if share < MIN_RESTYLED:
        raise Invisible(f"{family}: only {share:.0%} of the image changes visibly")
    text, summary = word_global_edit(family, rng, style)
    return Edit(family, scene.rgb, after, np.ones(after.shape[:2], bool), text, summary, is_global=True)


def _crop_box(rgb: RGB, share: float, place: str) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a crop of `share` of both sides at a place, inside the image."""
    height, width = rgb.shape[:2]
    w, h = round(share * width), round(share * height)
    return *place_corner(place, (w, h), rgb.shape, margin=0), w, h


def _crop_homography(x: int, y: int, scale_x: float, scale_y: float) -> npt.NDArray[np.float64]:
    """Map pixels of a resized crop to pixels of the image (pixel centres at integers)."""
    return np.array(
        [[scale_x, 0, x + (scale_x - 1) / 2], [0, scale_y, y + (scale_y - 1) / 2], [0, 0, 1]], np.float64
    )


def _unmasked_edit(
    family: str,
    before: RGB,
    after: RGB,
    rng: Rng,
    homography: npt.NDArray[np.float64] | None = None,
    **values: str,
) -> Edit:
    """Return an edit with an empty mask, which changes no content that both images show."""
    text, summary = word_edit(family, rng, **values)
    empty = np.zeros(before.shape[:2], bool)
    return Edit(family, before, after, empty, text, summary, is_global=False, homography=homography)


def _zoom_in(family: str, scene: Scene, rng: Rng) -> Edit:
    place = pick(rng, PLACES)
    x, y, w, h = _crop_box(scene.rgb, float(rng.uniform(0.62, 0.9)), place)
    height, width = scene.rgb.shape[:2]
    after = cv2.resize(scene.rgb[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_CUBIC)
    homography = _crop_homography(x, y, w / width, h / height)
    return _unmasked_edit(family, scene.rgb, after.astype(np.uint8), rng, homography, place=place)


def _outpaint(family: str, scene: Scene, rng: Rng) -> Edit:
    x, y, w, h = _crop_box(scene.rgb, float(rng.uniform(0.62, 0.9)), pick(rng, PLACES))
    before = np.ascontiguousarray(scene.rgb[y : y + h, x : x + w])
    return _unmasked_edit(family, before, scene.rgb, rng, _crop_homography(-x, -y, 1.0, 1.0))


def _leave_untouched(family: str, scene: Scene, rng: Rng) -> Edit:
    return _unmasked_edit(family, scene.rgb, scene.rgb, rng)


_MAKERS: dict[str, Callable[[str, Scene, Rng], Edit]] = {
    "add object": add_object,
    "remove object": remove_object,
    "replace object": replace_object,
    "recolor object": recolor_object,
    "object material": change_material,
    "move object": move_object,
    "resize object": resize_object,
    "turn object": tilt_object,
    "pose": tilt_object,
    "replace background": _replace_background,
    "blur background": _blur_background,
    "clothing": recolor_clothes,
    "accessory": add_accessory,
    "caption": _add_caption,
    "restyle text": _restyle_text,
    "translate text": _translate_sign,
    "zoom in": _zoom_in,
    "outpaint": _outpaint,
    "untouched": _leave_untouched,
}
