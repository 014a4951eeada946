"""Measure masks on a few made pairs with known true masks, to check settings and code."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

from ..config import Profile, SampleSettings, digest_of
from ..progress import Log
from ..sample.pairs import SAMPLE_VERSION, Scenes, make_photo_pair
from ..sample.photos import packaged_photos
from ..storage import paths
from ..storage.store import MissingObject, Store
from .mask_evaluation import measure_pair
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
        edit = pair.edit
        measured = measure_pair(edit.before, pair.edited, edit.mask, pair.homography, edit.edit_type, profile)
        ious[edit.family].append(score_mask(measured.predicted, measured.truth, measured.valid).iou)
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
