"""Whether today's settings still make good masks: a few made pairs whose true masks are known."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np

from ..config import Profile, SampleSettings, digest_of
from ..progress import Log
from ..records.edit_types import edit_type
from ..sample.make import SAMPLE_VERSION, Scenes, make_photo_pair
from ..sample.photos import packaged_photos
from ..stages.stage import STAGES
from ..storage import paths
from ..storage.store import MissingObject, Store
from ..vision.align import align
from ..vision.geometry import overlap_polygon, polygon_mask
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
    """IoU of each pair of the fixed sample, by family of edit, under the profile's `align` and `mask`.

    The sample is made anew each time, in seconds, of photographs that our dependencies ship.
    """
    scenes = Scenes(packaged_photos(), SIDE_PX)
    settings = SampleSettings(pairs=PAIRS, side_px=SIDE_PX)
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(PAIRS):
        pair = make_photo_pair(number, scenes, settings, STRENGTHS, FAMILIES)
        before, after, truth = pair.edit.before, pair.edited, pair.edit.mask
        size, source = (before.shape[1], before.shape[0]), (after.shape[1], after.shape[0])
        known = polygon_mask(overlap_polygon(pair.homography, source, size), size)
        alignment = align(before, after, profile.align)
        mask = np.zeros_like(truth)
        if alignment.accepted:
            scope = edit_type(pair.edit.edit_type).scope
            mask = edit_mask(before, after, alignment.homography, alignment.overlap, profile.mask, scope).mask
        found[pair.edit.family].append(score_mask(mask, truth, known).iou)
    return dict(sorted(found.items()))


def measured_mask_ious(store: Store, profile: Profile, log: Log) -> dict[str, list[float]]:
    """The same, measured once for these settings and this code, then read from the store."""
    stages: dict[str, Any] = {
        name: STAGES[name].code_version(profile) for name in ("aligned_pairs", "edit_masks")
    }
    key = digest_of({"sample": SAMPLE_VERSION, **stages})
    try:
        kept = json.loads(store.read(paths.MASK_CHECK))
        if kept["key"] == key:
            return {str(family): [float(iou) for iou in ious] for family, ious in kept["ious"].items()}
    except (MissingObject, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is none yet, or one that is not ours: it is measured again
    log(f"measuring {PAIRS} made pairs with known masks")
    ious = mask_ious(profile)
    store.write(paths.MASK_CHECK, json.dumps({"key": key, "ious": ious}, indent=1).encode())
    return ious
