"""Numbers about a shard, for people: shares, medians, histograms, a few pictures."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from ..storage.tables import reason_class
from ..vision.images import RGB

PREVIEW_PAIRS = 4
PREVIEW_TILE_PX = 192
PREVIEW_BYTES = 40_000


def counts(values: Iterable[str]) -> dict[str, int]:
    """How often each value stands there, in order of the values."""
    return dict(sorted(Counter(values).items()))


def reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reasons counted by kind, see `kind_of`."""
    return counts(kind_of(row["reason"]) for row in rows if row["reason"])


def kind_of(reason: str) -> str:
    """A reason without its particulars and with `#` for numbers, but for those of HTTP."""
    return re.sub(r"(?<!HTTP )\b\d[\d.,]*", "#", reason_class(reason))


def median(values: Iterable[float]) -> float | None:
    """The median to 4 digits; None of nothing."""
    found = list(values)
    return round(float(statistics.median(found)), 4) if found else None


def histogram(values: Iterable[float]) -> list[int]:
    """Counts of values 0..1 in ten equal bins; 1 is in the last."""
    bins = [0] * 10
    for value in values:
        bins[min(9, max(0, int(value * 10)))] += 1
    return bins


def by_edit_type(
    rows: Iterable[Mapping[str, Any]],
    types: Mapping[str, str],
    name: str,
    holds: Callable[[Mapping[str, Any]], bool],
) -> dict[str, dict[str, int]]:
    """For each edit type, how many `pairs` there are and, under `name`, how many for which `holds`."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        entry = found.setdefault(types[row["key"]], {"pairs": 0, name: 0})
        entry["pairs"] += 1
        entry[name] += holds(row)
    return dict(sorted(found.items()))


def preview(strips: list[RGB], captions: list[list[str]]) -> bytes | None:
    """One small JPEG of some strips; None where there is none."""
    from ..vision.overlay import preview_jpeg, sheet

    return preview_jpeg(sheet(strips, captions), PREVIEW_BYTES) if strips else None


def side_by_side(images: list[RGB]) -> RGB:
    """Pictures of one height, left to right."""
    height = min(image.shape[0] for image in images)
    scaled = [
        cv2.resize(image, (max(1, round(image.shape[1] * height / image.shape[0])), height))
        for image in images
    ]
    return np.ascontiguousarray(np.concatenate(scaled, axis=1), np.uint8)
