"""What a photograph has to edit: labelled objects or, where nothing is labelled, regions of one colour.

Labels are in the COCO panoptic form (Kirillov et al., CVPR 2019): `NAME.png` beside `NAME.jpg`, whose colours
are segment ids (R + 256 G + 65536 B), and an `objects.json` beside the pictures or one folder up that
gives each photograph's segments their categories.
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

from bananagrams_assets.sample.draw import COLORS
from bananagrams_assets.sample.photos import LABELS, RGB, PhotoError, labels_of
from bananagrams_assets.sample.words import COLUMNS, IN_PLACE, PLACES, ROWS

Mask = npt.NDArray[np.bool_]

SMALLEST_SHARE = 0.004
"""Of the picture: smaller segments are hard to see and harder to name."""
WORK_SIDE_PX = 224
"""Regions are found on a copy of this longest side; their outlines are drawn smooth at full size."""

THINGS = frozenset(
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
"""COCO's countable categories (Lin et al., ECCV 2014); all others are stuff: sky, grass, walls."""

_NEUTRALS = {"gray": (128, 128, 128), "brown": (110, 74, 46), "beige": (214, 196, 164)}


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a picture: bool `mask` (H, W), its category, whether it is countable, and its colour's name.

    `label` is the category, or "" for a region that was found. `unique`: no other segment of its category.
    """

    mask: Mask
    label: str
    thing: bool
    color: str
    unique: bool = True

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in px, the latter two exclusive."""
        return box_of(self.mask)

    @property
    def share(self) -> float:
        """Of the picture's pixels."""
        return float(self.mask.mean())

    @property
    def place(self) -> str:
        """The name of the place (see `words.PLACES`) next to its centre."""
        rows, columns = np.nonzero(self.mask)
        x, y = columns.mean() / self.mask.shape[1], rows.mean() / self.mask.shape[0]
        return min(
            PLACES, key=lambda name: abs(COLUMNS[PLACES[name][0]] - x) + abs(ROWS[PLACES[name][1]] - y)
        )

    @property
    def name(self) -> str:
        """Without place: `dog`, or `red area` where it was found by its colour."""
        return self.label or f"{self.color} area"

    @property
    def the(self) -> str:
        """How an instruction names it, with its place unless it is the only one of a labelled category."""
        return f"the {self.name}" if self.label and self.unique else f"the {self.name} {IN_PLACE[self.place]}"

    @property
    def touches_border(self) -> bool:
        mask = self.mask
        return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of a mask that is not empty, the latter two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def segments_of(path: Path, rgb: RGB) -> list[Segment]:
    """The labelled segments of a photograph at the size of `rgb` (its whole, resized), else those found."""
    return labelled_segments(path, rgb) if labels_of(path) and _entry(path) else found_segments(rgb)


def labelled_segments(path: Path, rgb: RGB) -> list[Segment]:
    """Raises PhotoError where the labels cannot be read or know none of the listed segments."""
    labels, entry = labels_of(path), _entry(path)
    image = cv2.imread(str(labels), cv2.IMREAD_COLOR_RGB) if labels else None
    if image is None or entry is None:
        raise PhotoError(f"{labels or path}: not a readable picture of labels")
    height, width = rgb.shape[:2]
    ids = image.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    if ids.shape != (height, width):
        ids = cv2.resize(ids.astype(np.float64), (width, height), interpolation=cv2.INTER_NEAREST).astype(
            np.int32
        )
    listed = {int(item["id"]): str(item["category"]) for item in entry["objects"]}
    if not set(np.unique(ids).tolist()) & set(listed):
        raise PhotoError(f"{labels}: holds none of the segments that {LABELS} lists for {path.name}")
    categories = list(listed.values())
    found = []
    for number, category in listed.items():
        mask: Mask = ids == number
        if mask.mean() >= SMALLEST_SHARE:
            name = _plain(category)
            thing = category in THINGS
            found.append(Segment(mask, name, thing, color_name(rgb, mask), categories.count(category) == 1))
    return found


def found_segments(rgb: RGB) -> list[Segment]:
    """The main object, where it stands out (GrabCut: Rother et al., 2004), then regions of one colour."""
    height, width = rgb.shape[:2]
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    masks = [(mask, True) for mask in _main_object(small)] + [(mask, False) for mask in _color_regions(small)]
    found = []
    for mask, main in masks:
        smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.2)
        whole: Mask = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
        if SMALLEST_SHARE <= whole.mean() <= 0.8:
            label = "main object" if main else ""
            found.append(Segment(whole, label, main, color_name(rgb, whole)))
    return found


def color_name(rgb: RGB, mask: Mask) -> str:
    """The name of the colour nearest to the median of the masked pixels, in CIE Lab."""
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
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    inside = cv2.morphologyEx(cv2.morphologyEx(inside, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
    largest = _components(inside > 0)[:1]
    # What fills the rectangle is no object before a ground.
    return [_filled(mask) for mask in largest if 0.05 <= mask.mean() <= 0.55]


def _color_regions(rgb: RGB) -> list[Mask]:
    smooth = cv2.bilateralFilter(cv2.medianBlur(rgb, 5), 9, 40, 7)
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).astype(np.float32)
    height, width = lab.shape[:2]
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.5)
    _, labels, _ = cv2.kmeans(lab.reshape(-1, 3), 6, np.empty(0), criteria, 1, cv2.KMEANS_PP_CENTERS)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    found: list[Mask] = []
    for cluster in range(6):
        plane = (labels.reshape(height, width) == cluster).astype(np.uint8)
        plane = cv2.morphologyEx(cv2.morphologyEx(plane, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        for mask in _components(plane > 0):
            rim = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
            if 0.01 <= mask.mean() <= 0.3 and rim < 0.6 * np.sqrt(mask.sum()) and _solidity(mask) > 0.6:
                found.append(_filled(mask))
    return sorted(found, key=lambda mask: -int(mask.sum()))[:8]


def _components(mask: Mask) -> list[Mask]:
    """Connected parts, the largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")
    return [labels == number for number in order[:12]]


def _filled(mask: Mask) -> Mask:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    whole = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(whole, outlines, -1, 1, cv2.FILLED)
    return whole > 0


def _solidity(mask: Mask) -> float:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outlines)))
    return float(mask.sum() / max(hull, 1.0))


def _plain(category: str) -> str:
    """COCO's names as a person says them: `sky-other-merged` is the sky."""
    for ending in ("-merged", "-other", "-stuff"):
        category = category.removesuffix(ending)
    return {"playingfield": "playing field"}.get(category, category.replace("-", " "))


def _entry(path: Path) -> dict[str, Any] | None:
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
            f"{file}: not a list of photographs with their objects ({type(error).__name__}: {error})"
        ) from None
