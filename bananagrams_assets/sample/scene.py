"""A photo to edit, with its segments and with other photos as sources of objects and backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .edit import Edit
from .photos import RGB, Mask, Rng
from .segments import MAIN_OBJECT, Segment
from .visibility import Invisible, visible_part
from .vocabulary import word_edit


@dataclass(eq=False)
class Scene:
    """A photo, uint8 RGB (H, W, 3), and functions that provide its segments and other photos.

    `random_scene` returns any photo, `random_donor` one with labelled objects, or None if there is none.
    """

    rgb: RGB
    find_segments: Callable[[RGB], list[Segment]]
    random_scene: Callable[[Rng], Scene]
    random_donor: Callable[[Rng], Scene | None]

    @cached_property
    def segments(self) -> list[Segment]:
        return self.find_segments(self.rgb)


def visible_edit(
    family: str, before: Scene, after: RGB, painted: Mask, intended: Mask, rng: Rng, /, **values: str
) -> Edit:
    """Return a local edit whose mask is its visible part, see `visible_part`. Raises Invisible.

    `values` fill the templates of the instruction.
    """
    mask = visible_part(before.rgb, after, painted, intended)
    text, summary = word_edit(family, rng, **values)
    return Edit(family, before.rgb, after, mask, text, summary, is_global=False)


def random_segment(
    scene: Scene,
    rng: Rng,
    low: float,
    high: float,
    label: str | None = None,
    inside: bool = False,
    allow_regions: bool = False,
) -> Segment:
    """Return a random countable segment that covers `low` to `high` of the image, of `label` unless None.

    `inside`: it does not touch the border of the image. `allow_regions`: it may be a region of one colour.
    Raises Invisible if there is none.
    """
    candidates = [
        segment
        for segment in scene.segments
        if low <= segment.share <= high
        and (segment.countable or (allow_regions and not segment.label))
        and not (inside and segment.touches_border)
        and label in (None, segment.label)
    ]
    if not candidates:
        raise Invisible("the photo has no object of that size")
    return candidates[int(rng.integers(len(candidates)))]


def random_subject(scene: Scene, rng: Rng) -> Segment:
    """Return one of the two largest countable segments. Raises Invisible if there is none."""
    candidates = [segment for segment in scene.segments if segment.countable and 0.05 <= segment.share <= 0.6]
    if not candidates:
        raise Invisible("the photo has no main object")
    largest = sorted(candidates, key=lambda segment: -segment.share)
    return largest[int(rng.integers(min(2, len(candidates))))]


def foreground_of(scene: Scene) -> Segment:
    """Return the largest countable segment. Raises Invisible if there is none, or another of similar size."""
    candidates = sorted((s for s in scene.segments if s.countable), key=lambda segment: segment.share)
    shares = [segment.share for segment in candidates]
    if not shares or not 0.05 <= shares[-1] <= 0.6 or sum(share > shares[-1] / 2 for share in shares) > 1:
        raise Invisible("the photo has no foreground object, or several")
    return candidates[-1]


def same_label_mask(scene: Scene, target: Segment) -> Mask:
    """Return the pixels of all segments with the label of `target`."""
    mask = np.zeros(target.mask.shape, bool)
    for segment in scene.segments:
        if target.label and segment.label == target.label:
            mask |= segment.mask
    return mask


def random_donor_object(scene: Scene, rng: Rng, excluded_label: str = "") -> tuple[RGB, Segment]:
    """Return another photo and one complete, labelled object in it. Raises Invisible if there is none."""
    for _ in range(8):
        donor = scene.random_donor(rng)
        if donor is None:
            break
        candidates = [
            segment
            for segment in donor.segments
            if segment.countable
            and segment.label not in (MAIN_OBJECT, excluded_label)
            and not segment.touches_border
            and 0.006 <= segment.share <= 0.4
            and segment.mask.sum() > 0.35 * segment.box_area
        ]
        if candidates:
            return donor.rgb, candidates[int(rng.integers(len(candidates)))]
    raise Invisible("no other photo has a complete, labelled object")
