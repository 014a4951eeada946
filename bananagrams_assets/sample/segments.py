"""The segments of a photo that can be edited: labelled objects, or regions of one colour without labels.

Labels are in the COCO panoptic format (Kirillov et al., CVPR 2019): `NAME.png` beside `NAME.jpg`, whose
colours are segment ids (R + 256 G + 65536 B), and `objects.json` in the same or the parent folder, which
lists the categories of each photo's segments.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..vision.images import fit
from .draw import COLORS
from .photos import LABELS, RGB, Mask, PhotoError, labels_of
from .vocabulary import COLUMNS, IN_PLACE, PLACES, ROWS

MIN_SHARE = 0.004
"""Smallest segment, as a share of the image; smaller ones are hard to see and to name."""
WORK_SIDE_PX = 224
"""Longest side of the copy on which regions are segmented; their outlines are smoothed at full size."""
MAIN_OBJECT = "main object"
"""Label of a foreground object found without labels."""

COUNTABLE = frozenset(
    {
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
        "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
        "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
        "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
        "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
        "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
        "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
        "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
        "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
        "teddy bear", "hair drier", "toothbrush",
    }
)  # fmt: skip
"""COCO's countable categories (Lin et al., ECCV 2014); all others are uncountable: sky, grass, walls."""

_NEUTRALS = {"gray": (128, 128, 128), "brown": (110, 74, 46), "beige": (214, 196, 164)}


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of an image: bool `mask` (H, W), its label, whether it is countable, and its colour's name.

    `label` is the category, MAIN_OBJECT, or "" for a region of one colour. `unique`: the only segment of its
    category.
    """

    mask: Mask
    label: str
    countable: bool
    color: str
    unique: bool = True

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in px; right and bottom are exclusive."""
        return box_of(self.mask)

    @property
    def box_area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    @property
    def share(self) -> float:
        """Share of the image's pixels."""
        return float(self.mask.mean())

    @property
    def place(self) -> str:
        """The place (a key of PLACES) nearest to its centre."""
        rows, columns = np.nonzero(self.mask)
        x, y = columns.mean() / self.mask.shape[1], rows.mean() / self.mask.shape[0]
        return min(
            PLACES, key=lambda name: abs(COLUMNS[PLACES[name][0]] - x) + abs(ROWS[PLACES[name][1]] - y)
        )

    @property
    def name(self) -> str:
        """The label, such as `dog`, or `red area` for a region of one colour."""
        return self.label or f"{self.color} area"

    @property
    def reference(self) -> str:
        """Its name in an instruction, with its place unless it is the only segment of a labelled category."""
        return f"the {self.name}" if self.label and self.unique else f"the {self.name} {IN_PLACE[self.place]}"

    @property
    def touches_border(self) -> bool:
        mask = self.mask
        return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom in px of a nonempty mask; right and bottom are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def segments_of(path: Path, rgb: RGB) -> list[Segment]:
    """Return the labelled segments of a photo, or the detected ones if it has no labels.

    `rgb` is the whole photo, which may be resized; the masks have its size.
    """
    labels = labels_of(path)
    entry = _objects_entry(path) if labels else None
    return _labelled_segments(labels, entry, rgb) if labels and entry else _detected_segments(rgb)


def _labelled_segments(labels: Path, entry: dict[str, Any], rgb: RGB) -> list[Segment]:
    """Return the segments of `entry` in the image `labels`, at the size of `rgb`.

    Raises PhotoError if the label image is unreadable or has none of the listed segments.
    """
    image = cv2.imread(str(labels), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise PhotoError(f"{labels}: unreadable label image")
    height, width = rgb.shape[:2]
    ids = image.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    if ids.shape != (height, width):
        floats = ids.astype(np.float64)
        ids = cv2.resize(floats, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.int32)
    listed = {int(item["id"]): str(item["category"]) for item in entry["objects"]}
    if not set(np.unique(ids).tolist()) & set(listed):
        raise PhotoError(f"{labels}: has none of the segments that {LABELS} lists for {entry['photo']}")
    categories = list(listed.values())
    segments = []
    for number, category in listed.items():
        mask: Mask = ids == number
        if mask.mean() >= MIN_SHARE:
            unique = categories.count(category) == 1
            color = color_name(rgb, mask)
            segments.append(Segment(mask, _plain_name(category), category in COUNTABLE, color, unique))
    return segments


def _detected_segments(rgb: RGB) -> list[Segment]:
    """Detect the main object, if any (GrabCut: Rother et al., 2004), and regions of one colour."""
    height, width = rgb.shape[:2]
    small = fit(rgb, WORK_SIDE_PX)
    masks = [(mask, True) for mask in _main_object(small)] + [(mask, False) for mask in _color_regions(small)]
    segments = []
    for mask, main in masks:
        smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.2)
        enlarged: Mask = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
        if MIN_SHARE <= enlarged.mean() <= 0.8:
            label = MAIN_OBJECT if main else ""
            segments.append(Segment(enlarged, label, main, color_name(rgb, enlarged)))
    return segments


def color_name(rgb: RGB, mask: Mask) -> str:
    """Return the name of the colour nearest to the median of the masked pixels, in CIE Lab."""
    names = {**COLORS, **_NEUTRALS}
    middle = np.median(rgb[mask], axis=0).astype(np.float32)
    table = np.array([middle, *names.values()], np.float32).reshape(1, -1, 3) / 255
    lab = cv2.cvtColor(table, cv2.COLOR_RGB2LAB)[0]
    return list(names)[int(np.argmin(np.linalg.norm(lab[1:] - lab[0], axis=1)))]


def _main_object(rgb: RGB) -> list[Mask]:
    height, width = rgb.shape[:2]
    margin = max(2, round(0.06 * min(height, width)))
    state = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    rect = (margin, margin, width - 2 * margin, height - 2 * margin)
    cv2.grabCut(rgb, state, rect, *models, 3, cv2.GC_INIT_WITH_RECT)
    inside = ((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)).astype(np.uint8)
    largest = _components(opened_and_closed(inside, 2) > 0)[:1]
    # A mask that fills the rectangle is not an object in front of a background.
    return [_without_holes(mask) for mask in largest if 0.05 <= mask.mean() <= 0.55]


def _color_regions(rgb: RGB) -> list[Mask]:
    smooth = cv2.bilateralFilter(cv2.medianBlur(rgb, 5), 9, 40, 7)
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).astype(np.float32)
    height, width = lab.shape[:2]
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.5)
    _, labels, _ = cv2.kmeans(lab.reshape(-1, 3), 6, np.empty(0), criteria, 1, cv2.KMEANS_PP_CENTERS)
    regions: list[Mask] = []
    for cluster in range(6):
        plane = (labels.reshape(height, width) == cluster).astype(np.uint8)
        for mask in _components(opened_and_closed(plane, 2) > 0):
            rim = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
            if 0.01 <= mask.mean() <= 0.3 and rim < 0.6 * np.sqrt(mask.sum()) and _solidity(mask) > 0.6:
                regions.append(_without_holes(mask))
    return sorted(regions, key=lambda mask: -int(mask.sum()))[:8]


def opened_and_closed(plane: npt.NDArray[np.uint8], radius: int) -> npt.NDArray[np.uint8]:
    """Open a plane (H, W), then close it, with a disc of `radius` px."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    opened = cv2.morphologyEx(plane, cv2.MORPH_OPEN, kernel)
    return np.asarray(cv2.morphologyEx(opened, cv2.MORPH_CLOSE, kernel), np.uint8)


def _components(mask: Mask) -> list[Mask]:
    """Return up to 12 connected components, largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")
    return [labels == number for number in order[:12]]


def _without_holes(mask: Mask) -> Mask:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled > 0


def _solidity(mask: Mask) -> float:
    """Return the mask's area divided by that of its convex hull."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outlines)))
    return float(mask.sum() / max(hull, 1.0))


def _plain_name(category: str) -> str:
    """Return COCO's category in plain words, such as `sky` for `sky-other-merged`."""
    for ending in ("-merged", "-other", "-stuff"):
        category = category.removesuffix(ending)
    return {"playingfield": "playing field"}.get(category, category.replace("-", " "))


def _objects_entry(path: Path) -> dict[str, Any] | None:
    """Return the entry of a photo in objects.json, or None."""
    for folder in (path.parent, path.parent.parent):
        if (folder / LABELS).is_file():
            entries = _read_labels(folder / LABELS)
            if path.name in entries:
                return entries[path.name]
    return None


@lru_cache(maxsize=8)
def _read_labels(file: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {str(entry["photo"]): entry for entry in entries if entry["objects"] is not None}
    except (ValueError, KeyError, TypeError) as error:
        raise PhotoError(
            f"{file}: expected a list of photos with their objects ({type(error).__name__}: {error})"
        ) from None
