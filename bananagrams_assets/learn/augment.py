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
_LETTERING = re.compile(
    r"\b(?:texts?|words?|letter(?:s|ing)?|fonts?|captions?|titles?|logos?|signs?|signage|billboards?|posters?|"
    r"labels?|stickers?|reads?|sa(?:y|ys|id)|writ(?:e|es|ten|ing)|prints?|printed|numbers?|digits?|clocks?)\b",
    re.I,
)
_NO_SIDE = re.compile(
    r"\bjust right\b|\bright (?:now|away|above|below|behind|beneath|under|next|beside|through|after|before|"
    r"amount|size|angles?)\b|"
    r"\b(?:what(?:['\u2019]s| is| was)|nothing|all that(?:['\u2019]s| is)|be|been|have|has) left\b|"
    r"\bleft ?overs?\b|"
    r"\bleft behind\b|\b(?:left|right)-handed",
    re.I,
)
_QUOTED = re.compile(r"[\"\u201c\u201d\u00ab\u00bb]|(?<!\w)['\u2018][^'\u2019]+['\u2019](?!\w)")


def augment(
    image: Plane, mask: Plane, known: Plane, text: str, settings: AugmentSettings, rng: np.random.Generator
) -> tuple[Plane, Plane, Plane, str]:
    """Change uint8 RGB (H, W, 3), mask and known (H, W), and the instruction, together; sizes stay.

    A mirror image swaps left and right in the words; it is skipped where they speak of lettering, which
    would be mirrored too, and where "left" or "right" is no side. A crop moves what remains away from where
    "the top left" or "the left half" was, so it is skipped where the words name a place; what is edited
    stays inside it. With settings.drop_words the instruction becomes empty.
    """
    flip, crop, blur, drop = rng.random(4)
    if flip < settings.flip and can_mirror(text):
        image, mask, known = (np.ascontiguousarray(plane[:, ::-1]) for plane in (image, mask, known))
        text = mirror_words(text)
    if settings.crop and not names_a_place(text):
        image, mask, known = _crop(image, mask, known, settings.crop * crop, rng)
    if settings.color:
        image = _recolor(image, settings.color, rng)
    if blur < settings.blur:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0)), np.uint8)
    return image, mask, known, "" if drop < settings.drop_words else text


def mirror_words(text: str) -> str:
    """The instruction for the mirror image: left ↔ right, clockwise ↔ counterclockwise, case kept."""
    return _SIDES.sub(_mirror, text)


def names_a_place(text: str) -> bool:
    """Whether the words say where in the picture, which a crop would change."""
    return _PLACES.search(text) is not None


def can_mirror(text: str) -> bool:
    """Whether the words, sides swapped, are true of the mirror image."""
    return not (_QUOTED.search(text) or _LETTERING.search(text) or _NO_SIDE.search(text))


def _mirror(match: re.Match[str]) -> str:
    word = match[1]
    if word is None:
        return match[0][len(match[2]) :] if match[2] else "counter" + match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _crop(
    image: Plane, mask: Plane, known: Plane, share: float, rng: np.random.Generator
) -> tuple[Plane, Plane, Plane]:
    """Cut `share` off each side's length, and enlarge what remains to the old size.

    What the words speak of stays in the picture: the window holds the mask, or lies within its extent
    where that is larger.
    """
    height, width = mask.shape
    h, w = max(1, round(height * (1 - share))), max(1, round(width * (1 - share)))
    edited = mask > 0
    y, x = _window(np.any(edited, 1), h, rng), _window(np.any(edited, 0), w, rng)
    planes = (image, cv2.INTER_LINEAR), (mask, cv2.INTER_LINEAR), (known, cv2.INTER_NEAREST)
    cut = [
        cv2.resize(plane[y : y + h, x : x + w], (width, height), interpolation=interpolation)
        for plane, interpolation in planes
    ]
    return cut[0].astype(np.uint8), cut[1].astype(np.uint8), cut[2].astype(np.uint8)


def _window(edited: npt.NDArray[np.bool_], length: int, rng: np.random.Generator) -> int:
    """Where along one axis a window of `length` begins, given which rows or columns the mask touches."""
    last = len(edited) - length
    touched = np.flatnonzero(edited)
    low, high = 0, last
    if len(touched):
        bounds = int(touched[-1]) + 1 - length, int(touched[0])
        low, high = max(0, min(bounds)), min(last, max(bounds))
    return int(rng.integers(low, high + 1))


def _recolor(image: Plane, strength: float, rng: np.random.Generator) -> Plane:
    """Brightness, contrast and saturation, each by a factor within 1 ± strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32) * brightness
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
    x = grey[..., None] + (x - grey[..., None]) * saturation
    mean = grey.mean()
    return np.asarray(np.clip(mean + (x - mean) * contrast, 0, 255), np.uint8)
