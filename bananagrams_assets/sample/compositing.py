"""Compositing: soft masks, blending, and pasting of cut-out objects."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .draw import Layer, paste, to_bytes
from .photos import RGB, Mask
from .visibility import Invisible


def dilated(mask: Mask, px: int) -> Mask:
    """Return `mask` dilated by a disc of radius `px`."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * px + 1, 2 * px + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)


def margin_px(mask: Mask) -> int:
    """Return the margin around a removed object for the size of its image."""
    return max(3, round(float(max(mask.shape)) / 140))


def feathered(mask: Mask) -> npt.NDArray[np.float32]:
    """Return alpha (H, W, 1), 0..1, that is 0.5 on the outline and rises over 2 to 3 px."""
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.8, max(mask.shape) / 800))
    return np.asarray(alpha, np.float32)[..., None]


def blended(image: RGB, layer: npt.NDArray[Any], alpha: npt.NDArray[np.float32]) -> RGB:
    """Return `layer` (H, W, 3), 0..255, over `image` with `alpha` (H, W, 1)."""
    return to_bytes(image * (1 - alpha) + layer * alpha)


def cut_out(rgb: RGB, mask: Mask, box: tuple[int, int, int, int], size: tuple[int, int]) -> Layer:
    """Cut out a masked object within `box` (left, top, right, bottom), resized to `size` (W, H) px."""
    left, top, right, bottom = box
    # Labels are generous: without this erosion, a rim of the old background would show.
    alpha = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    window = (slice(top, bottom), slice(left, right))
    shrinks = size[0] < right - left
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    color = cv2.resize(rgb[window].astype(np.float32), size, interpolation=interpolation)
    cover = cv2.GaussianBlur(cv2.resize(alpha[window], size, interpolation=cv2.INTER_LINEAR), (0, 0), 0.8)
    return np.dstack([np.clip(color, 0, 255), np.clip(cover, 0, 1)]).astype(np.float32)


def paste_toned(image: RGB, layer: Layer, x: int, y: int) -> tuple[RGB, Mask]:
    """Paste `layer` with its top left corner at (x, y), its lightness moved towards that of the place.

    Returns the image and the pixels covered at half alpha or more. Raises Invisible if there are none.
    """
    height, width = layer.shape[:2]
    under = image[y : y + height, x : x + width].astype(np.float32)
    covers = layer[..., 3] > 0.5
    if not covers.any():
        raise Invisible("the object is too thin to paste")
    light = (under.mean() - layer[..., :3][covers].mean()) * 0.2
    toned = np.dstack([np.clip(layer[..., :3] + light, 0, 255), layer[..., 3]]).astype(np.float32)
    return paste(image, toned, x, y), layer_mask(toned, x, y, image)


def layer_mask(layer: Layer, x: int, y: int, image: RGB) -> Mask:
    """Return the pixels of `image` that a layer pasted at (x, y) covers at half alpha or more."""
    mask = np.zeros(image.shape[:2], bool)
    mask[y : y + layer.shape[0], x : x + layer.shape[1]] = layer[..., 3] > 0.5
    return mask
