"""Made pairs: an edit of a photo, re-encoded by the simulated editor, with its true mask and homography."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from ..config import SampleSettings
from .draw import to_bytes
from .drawn_edits import make_drawn_edit
from .edit import Edit
from .editor import Homography, reencode
from .photo_edits import make_photo_edit
from .photos import RGB, Photo, Rng, cut_tile, labels_of, read_photo, tile_boxes, tile_url
from .scene import Scene
from .segments import segments_of
from .visibility import Invisible

SAMPLE_VERSION = "4"
"""Increase it whenever the same settings give other pairs."""
_ATTEMPTS = 24

# Pairs per family in one round of 63: 49 local edits, 14 global ones.
FAMILY_COUNTS = {
    "add": 5,
    "remove": 7,
    "replace": 4,
    "recolor": 4,
    "region color": 5,
    "region material": 4,
    "relocate": 3,
    "resize": 3,
    "add text": 4,
    "replace text": 2,
    "font color": 2,
    "region scene": 4,
    "keep object": 2,
    "tone": 3,
    "vintage": 2,
    "lighting": 3,
    "season": 2,
    "weather": 2,
    "sketch": 2,
}
_FAMILIES = tuple(family for family, count in FAMILY_COUNTS.items() for _ in range(count))

# Pairs per family in one round of 87 for a folder of photos: 58 local edits, 19 global ones, 6 of the frame
# and 4 without a change.
PHOTO_COUNTS = {
    "add object": 6,
    "remove object": 6,
    "replace object": 5,
    "recolor object": 5,
    "object material": 4,
    "move object": 3,
    "resize object": 3,
    "turn object": 2,
    "pose": 1,
    "replace background": 4,
    "blur background": 2,
    "clothing": 2,
    "accessory": 4,
    "caption": 3,
    "add text": 2,
    "replace text": 2,
    "font color": 1,
    "restyle text": 2,
    "translate text": 1,
    "tone": 2,
    "vintage": 2,
    "lighting": 2,
    "season": 2,
    "weather": 2,
    "sketch": 2,
    "art": 2,
    "historical": 2,
    "anime": 1,
    "cel": 1,
    "ink": 1,
    "zoom in": 3,
    "outpaint": 3,
    "untouched": 4,
}
_PHOTO_FAMILIES = tuple(family for family, count in PHOTO_COUNTS.items() for _ in range(count))


@dataclass(frozen=True)
class Pair:
    """A made pair: the edit, the re-encoded image, and its homography (edited → input px)."""

    edit: Edit
    edited: RGB
    homography: Homography
    url: str
    photo: str
    strength: float


def make_pair(
    number: int, photos: Sequence[Photo], settings: SampleSettings, read: Callable[[Path], RGB] = read_photo
) -> Pair:
    """Make pair `number`; it depends on the photos, the settings and its number, not on other pairs.

    `read` decodes a photo. Raises Invisible if no attempt gave a visible edit.
    """
    photo = photos[_dealt_option(number, len(photos), settings.seed, 0)]
    family = _FAMILIES[_dealt_option(number, len(_FAMILIES), settings.seed, 1)]
    rgb = read(photo.path)
    boxes = tile_boxes(rgb.shape[1], rgb.shape[0], settings.side_px)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([settings.seed, number, attempt])
        # The first box is the whole photo, which shows most; every third pair uses it.
        box = boxes[0 if rng.random() < 1 / 3 else int(rng.integers(len(boxes)))]
        # Some photos cannot show some edits (a sketch of a black sky): try other families.
        if attempt >= _ATTEMPTS // 2:
            family = _FAMILIES[int(rng.integers(len(_FAMILIES)))]
        try:
            edit = make_drawn_edit(family, cut_tile(rgb, box, settings.side_px), rng)
        except Invisible:
            continue
        edited, homography = reencode(edit.after, settings.strength, rng)
        return Pair(edit, edited, homography, tile_url(photo, box), photo.name, settings.strength)
    raise Invisible(f"{photo.path}: no visible edit in {_ATTEMPTS} attempts")


class Scenes:
    """The photos of a folder as scenes with a longest side of at most `side_px`, decoded on demand.

    `enlarge`: smaller photos are enlarged to `side_px`, with grain, for benchmarks of large images.
    """

    def __init__(self, photos: Sequence[Photo], side_px: int, enlarge: bool = False) -> None:
        self.photos = photos
        self._side_px, self._enlarge = side_px, enlarge
        self._labelled = [index for index, photo in enumerate(photos) if labels_of(photo.path)]
        self.get = lru_cache(maxsize=24)(self._get)

    def _get(self, index: int) -> Scene:
        path = self.photos[index].path
        photo = read_photo(path)
        rgb = cut_tile(photo, (0, 0, photo.shape[1], photo.shape[0]), self._side_px)
        if self._enlarge and max(rgb.shape) < self._side_px:
            rgb = _enlarged(rgb, self._side_px, np.random.default_rng(index))
        return Scene(rgb, partial(segments_of, path), self._random_scene, self._random_labelled_scene)

    def _random_scene(self, rng: Rng) -> Scene:
        return self.get(int(rng.integers(len(self.photos))))

    def _random_labelled_scene(self, rng: Rng) -> Scene | None:
        if not self._labelled:
            return None
        return self.get(self._labelled[int(rng.integers(len(self._labelled)))])


def _enlarged(rgb: RGB, side_px: int, rng: Rng) -> RGB:
    scale = side_px / max(rgb.shape[:2])
    size = round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)
    smooth = cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return to_bytes(smooth + 2.5 * rng.standard_normal((*smooth.shape[:2], 1), dtype=np.float32))


def make_photo_pair(
    number: int,
    scenes: Scenes,
    settings: SampleSettings,
    strengths: Sequence[float],
    families: Sequence[str] = _PHOTO_FAMILIES,
) -> Pair:
    """Make pair `number` of a folder of photos; families and strengths are used in turn.

    The pair depends on the photos, the settings and its number, not on other pairs. Raises Invisible if no
    attempt gave a visible edit.
    """
    dealt_photo = _dealt_option(number, len(scenes.photos), settings.seed, 0)
    family = families[_dealt_option(number, len(families), settings.seed, 1)]
    strength = strengths[number % len(strengths)]
    for attempt in range(3 * _ATTEMPTS):
        rng = np.random.default_rng([settings.seed, number, attempt, 1])
        # Not every photo allows every edit: try other photos first, then also other families.
        index = dealt_photo if attempt < 4 else int(rng.integers(len(scenes.photos)))
        if attempt >= 2 * _ATTEMPTS:
            family = families[int(rng.integers(len(families)))]
        scene, photo = scenes.get(index), scenes.photos[index]
        try:
            edit = make_photo_edit(family, scene, rng)
        except Invisible:
            continue
        edited, homography = reencode(edit.after, strength, rng)
        if edit.homography is not None:
            homography = edit.homography @ homography
            homography /= homography[2, 2]
        whole_box = (0, 0, scene.rgb.shape[1], scene.rgb.shape[0])
        return Pair(edit, edited, homography, tile_url(photo, whole_box), photo.name, strength)
    raise Invisible(f"pair {number}: no visible edit in {3 * _ATTEMPTS} attempts")


def _dealt_option(number: int, options: int, seed: int, stream: int) -> int:
    """Return the option of pair `number`: each round of `options` pairs has every option once, shuffled."""
    rng = np.random.default_rng([seed, stream, number // options, options])
    return int(rng.permutation(options)[number % options])
