"""Statistics and previews of a shard, shown as metadata in the Dagster UI."""

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
    """Return the number of occurrences of each value, sorted by value."""
    return dict(sorted(Counter(values).items()))


def reasons(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of rows by kind of reason; rows without a reason are not counted."""
    return counts(reason_kind(row["reason"]) for row in rows if row["reason"])


def reason_kind(reason: str) -> str:
    """Return a reason without its particulars and with `#` for numbers other than HTTP status codes."""
    return re.sub(r"(?<!HTTP )\b\d[\d.,]*", "#", reason_class(reason))


def median(values: Iterable[float]) -> float | None:
    """Return the median rounded to 4 digits; None for no values."""
    numbers = list(values)
    return round(float(statistics.median(numbers)), 4) if numbers else None


def histogram(values: Iterable[float]) -> list[int]:
    """Return the counts of values in 0..1 in ten equal bins. 1 falls in the last bin."""
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
    """Return for each edit type the number of `pairs`, and under `name` the number for which `holds`."""
    by_type: dict[str, dict[str, int]] = {}
    for row in rows:
        entry = by_type.setdefault(types[row["key"]], {"pairs": 0, name: 0})
        entry["pairs"] += 1
        entry[name] += holds(row)
    return dict(sorted(by_type.items()))


def preview(strips: list[RGB], captions: list[list[str]]) -> bytes | None:
    """Return one JPEG of the strips with their captions, at most PREVIEW_BYTES; None without strips."""
    from ..vision.overlay import contact_sheet, preview_jpeg

    return preview_jpeg(contact_sheet(strips, captions), PREVIEW_BYTES) if strips else None


def side_by_side(images: list[RGB]) -> RGB:
    """Return the images scaled to the smallest height, from left to right."""
    height = min(image.shape[0] for image in images)
    scaled = [
        cv2.resize(image, (max(1, round(image.shape[1] * height / image.shape[0])), height))
        for image in images
    ]
    return np.ascontiguousarray(np.concatenate(scaled, axis=1), np.uint8)
