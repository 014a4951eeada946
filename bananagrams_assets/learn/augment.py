"""Random changes of a training sample that keep photograph, mask and words consistent."""

from __future__ import annotations

import re

import cv2
import numpy as np
import numpy.typing as npt

from ..config import AugmentSettings

Plane = npt.NDArray[np.uint8]

_SIDES = re.compile(r"\b(left|right)(?=(?:most|wards?|hand)?\b)|\b(counter-?|anti-?)?clockwise\b", re.I)
_PLACES = re.compile(
    r"\b(?:top|bottom|left|right|upper|lower|cent(?:er|re)|middle|corners?|edges?|sides?|borders?|hal(?:f|ves)|"
    r"thirds?|quarters?|left-?most|right-?most|above|below)\b",
    re.I,
)
_QUOTED = re.compile(r"[\"\u201c\u201d\u00ab\u00bb]|(?<!\w)['\u2018][^'\u2019]+['\u2019](?!\w)")


def augment(
    picture: Plane, mask: Plane, known: Plane, text: str, settings: AugmentSettings, rng: np.random.Generator
) -> tuple[Plane, Plane, Plane, str]:
    """Change uint8 RGB (H, W, 3), mask and known (H, W), and the instruction, together; sizes stay.

    A mirror image swaps left and right in the words; it is skipped where words are quoted, since the
    lettering they name would be mirrored too. A crop moves what remains away from where "the top left" or
    "the left half" was, so it is skipped where the words name a place.
    """
    flip, crop, blur = rng.random(3)
    if flip < settings.flip and not quotes(text):
        picture, mask, known = (np.ascontiguousarray(plane[:, ::-1]) for plane in (picture, mask, known))
        text = mirror_words(text)
    if settings.crop and not names_a_place(text):
        picture, mask, known = _crop((picture, mask, known), settings.crop * crop, rng)
    if settings.color:
        picture = _recolor(picture, settings.color, rng)
    if blur < settings.blur:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.0)), np.uint8)
    return picture, mask, known, text


def mirror_words(text: str) -> str:
    """The instruction for the mirror image: left ↔ right, clockwise ↔ counterclockwise, case kept."""
    return _SIDES.sub(_mirror, text)


def names_a_place(text: str) -> bool:
    """Whether the words say where in the picture, which a crop would change."""
    return _PLACES.search(text) is not None


def quotes(text: str) -> bool:
    """Whether the words quote a text."""
    return _QUOTED.search(text) is not None


def _mirror(match: re.Match[str]) -> str:
    word = match[1]
    if word is None:
        return match[0][len(match[2]) :] if match[2] else "counter" + match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _crop(planes: tuple[Plane, ...], share: float, rng: np.random.Generator) -> tuple[Plane, ...]:
    """Cut `share` off each side's length, somewhere, and enlarge what remains to the old size."""
    height, width = planes[0].shape[:2]
    h, w = max(1, round(height * (1 - share))), max(1, round(width * (1 - share)))
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return tuple(
        np.asarray(
            cv2.resize(
                plane[y : y + h, x : x + w],
                (width, height),
                interpolation=cv2.INTER_LINEAR if plane.ndim == 3 else cv2.INTER_NEAREST,
            ),
            np.uint8,
        )
        for plane in planes
    )


def _recolor(picture: Plane, strength: float, rng: np.random.Generator) -> Plane:
    """Brightness, contrast and saturation, each by a factor within 1 ± strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = picture.astype(np.float32) * brightness
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
    x = grey[..., None] + (x - grey[..., None]) * saturation
    mean = grey.mean()
    return np.asarray(np.clip(mean + (x - mean) * contrast, 0, 255), np.uint8)
