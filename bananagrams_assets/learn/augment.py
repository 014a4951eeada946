"""Random augmentation of a training sample that keeps image, mask and instruction consistent."""

from __future__ import annotations

import re

import cv2
import numpy as np
import numpy.typing as npt

from ..config import AugmentSettings

Plane = npt.NDArray[np.uint8]

_SIDES = re.compile(r"\b(left|right)(?=(?:most|wards?|hand)?\b)|\b(counter-?|anti-?)?clockwise\b", re.I)
_POSITIONS = re.compile(
    r"\b(?:top|bottom|left|right|upper|lower|cent(?:er|re)|middle|corners?|edges?|sides?|borders?|hal(?:f|ves)|"
    r"thirds?|quarters?|left-?most|right-?most|above|below)\b",
    re.I,
)
_LETTERING = re.compile(
    r"\b(?:texts?|words?|letter(?:s|ing)?|fonts?|captions?|titles?|logos?|signs?|signage|billboards?|posters?|"
    r"labels?|stickers?|reads?|sa(?:y|ys|id)|writ(?:e|es|ten|ing)|prints?|printed|numbers?|digits?|clocks?)\b",
    re.I,
)
_NOT_A_SIDE = re.compile(
    r"\bjust right\b|\bright (?:now|away|above|below|behind|beneath|under|next|beside|through|after|before|"
    r"amount|size|angles?)\b|"
    r"\b(?:what(?:['\u2019]s| is| was)|nothing|all that(?:['\u2019]s| is)|be|been|have|has) left\b|"
    r"\bleft ?overs?\b|"
    r"\bleft behind\b|\b(?:left|right)-handed",
    re.I,
)
_QUOTED = re.compile(r"[\"\u201c\u201d\u00ab\u00bb]|(?<!\w)['\u2018][^'\u2019]+['\u2019](?!\w)")


def augment(
    image: Plane, mask: Plane, valid: Plane, text: str, settings: AugmentSettings, rng: np.random.Generator
) -> tuple[Plane, Plane, Plane, str]:
    """Augment image uint8 RGB (H, W, 3), mask and valid uint8 (H, W) and the instruction; sizes stay.

    A flip swaps left and right in the instruction. It is skipped if the instruction mentions lettering,
    which a flip would mirror, or uses "left" or "right" in another sense than a side. A crop changes where
    "the top left" or "the left half" is, so it is skipped if the instruction names a position; the mask
    stays inside the crop. `drop_words` is the probability of an empty instruction.
    """
    flip, crop, blur, drop = rng.random(4)
    if flip < settings.flip and can_mirror(text):
        image, mask, valid = (np.ascontiguousarray(plane[:, ::-1]) for plane in (image, mask, valid))
        text = mirror_text(text)
    if settings.crop and not names_position(text):
        image, mask, valid = _crop(image, mask, valid, settings.crop * crop, rng)
    if settings.color:
        image = _recolor(image, settings.color, rng)
    if blur < settings.blur:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.0)), np.uint8)
    return image, mask, valid, "" if drop < settings.drop_words else text


def mirror_text(text: str) -> str:
    """Swap left and right, clockwise and counterclockwise in an instruction, preserving case."""
    return _SIDES.sub(_mirror_word, text)


def names_position(text: str) -> bool:
    """Return whether the instruction names a position in the image, which a crop would change."""
    return _POSITIONS.search(text) is not None


def can_mirror(text: str) -> bool:
    """Return whether the instruction with swapped sides is correct for the mirrored image."""
    return not (_QUOTED.search(text) or _LETTERING.search(text) or _NOT_A_SIDE.search(text))


def _mirror_word(match: re.Match[str]) -> str:
    word = match[1]
    if word is None:
        return match[0][len(match[2]) :] if match[2] else "counter" + match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _crop(
    image: Plane, mask: Plane, valid: Plane, fraction: float, rng: np.random.Generator
) -> tuple[Plane, Plane, Plane]:
    """Crop each side by `fraction` of its length and resize the crop to the original size.

    The crop contains the mask, or lies within the mask's bounding box if that is larger than the crop.
    """
    height, width = mask.shape
    h, w = max(1, round(height * (1 - fraction))), max(1, round(width * (1 - fraction)))
    edited = mask > 0
    y, x = _crop_start(np.any(edited, 1), h, rng), _crop_start(np.any(edited, 0), w, rng)
    planes = (image, cv2.INTER_LINEAR), (mask, cv2.INTER_LINEAR), (valid, cv2.INTER_NEAREST)
    cropped = [
        cv2.resize(plane[y : y + h, x : x + w], (width, height), interpolation=interpolation)
        for plane, interpolation in planes
    ]
    return cropped[0].astype(np.uint8), cropped[1].astype(np.uint8), cropped[2].astype(np.uint8)


def _crop_start(edited: npt.NDArray[np.bool_], length: int, rng: np.random.Generator) -> int:
    """Draw the start of a crop of `length` along one axis; `edited` marks the mask's rows or columns."""
    last = len(edited) - length
    indices = np.flatnonzero(edited)
    low, high = 0, last
    if len(indices):
        bounds = int(indices[-1]) + 1 - length, int(indices[0])
        low, high = max(0, min(bounds)), min(last, max(bounds))
    return int(rng.integers(low, high + 1))


def _recolor(image: Plane, strength: float, rng: np.random.Generator) -> Plane:
    """Scale brightness, contrast and saturation, each by a random factor in 1 ± strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32) * brightness
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
    x = grey[..., None] + (x - grey[..., None]) * saturation
    mean = grey.mean()
    return np.asarray(np.clip(mean + (x - mean) * contrast, 0, 255), np.uint8)
