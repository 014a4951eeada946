"""Measure masks on a few made pairs with known true masks, to check settings and code."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from ..config import Profile, SampleSettings, digest_of
from ..progress import Log
from ..records.edit_types import edit_type
from ..sample.pairs import SAMPLE_VERSION, Scenes, make_photo_pair
from ..sample.photos import packaged_photos
from ..storage import paths
from ..storage.store import MissingObject, Store
from ..vision.align import align
from ..vision.geometry import image_size, overlap_polygon, polygon_mask
from ..vision.mask import edit_mask
from .mask_scores import score_mask

FAMILIES = (
    "add object", "remove object", "recolor object", "object material", "replace background", "add text",
    "accessory", "font color",
)  # fmt: skip
STRENGTHS = (1.0, 2.0)
PAIRS = 12
SIDE_PX = 320


def mask_ious(profile: Profile) -> dict[str, list[float]]:
    """Return the IoU of each pair of a fixed sample, by family of edit, under the profile's settings.

    The sample is made on each call, in seconds, from photos that installed packages contain.
    """
    scenes = Scenes(packaged_photos(), SIDE_PX)
    settings = SampleSettings(pairs=PAIRS, side_px=SIDE_PX)
    ious: dict[str, list[float]] = defaultdict(list)
    for number in range(PAIRS):
        pair = make_photo_pair(number, scenes, settings, STRENGTHS, FAMILIES)
        before, after, truth = pair.edit.before, pair.edited, pair.edit.mask
        size = image_size(before)
        valid = polygon_mask(overlap_polygon(pair.homography, image_size(after), size), size)
        alignment = align(before, after, profile.align)
        mask = np.zeros_like(truth)
        if alignment.accepted:
            scope = edit_type(pair.edit.edit_type).scope
            mask = edit_mask(before, after, alignment.homography, alignment.overlap, profile.mask, scope).mask
        ious[pair.edit.family].append(score_mask(mask, truth, valid).iou)
    return dict(sorted(ious.items()))


def measured_mask_ious(
    store: Store, profile: Profile, code_versions: Mapping[str, str], log: Log
) -> dict[str, list[float]]:
    """Return `mask_ious` from the store, or measure and store them if settings or code have changed.

    `code_versions`: those of the stages `aligned_pairs` and `edit_masks`, which cover code and settings.
    """
    key = digest_of({"sample": SAMPLE_VERSION, **code_versions})
    try:
        stored = json.loads(store.read(paths.MASK_CHECK))
        if stored["key"] == key:
            return {str(family): [float(iou) for iou in ious] for family, ious in stored["ious"].items()}
    except (MissingObject, ValueError, KeyError, TypeError, AttributeError):
        pass  # a missing or invalid file is measured again
    log(f"measuring {PAIRS} made pairs with known masks")
    ious = mask_ious(profile)
    store.write(paths.MASK_CHECK, json.dumps({"key": key, "ious": ious}, indent=1).encode())
    return ious
