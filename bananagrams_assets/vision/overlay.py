"""Draw masks and differences for visual inspection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .images import RGB, Mask, encode_jpeg, fit, resize

PANELS = ("before", "after, aligned", "difference", "mask")
GAP_PX = 4
LABEL_PX = 16
LINE_PX = 17
BACKGROUND = (24, 26, 30)
TEXT_COLOR = (232, 234, 238)
FAINT_COLOR = (150, 156, 166)
MASK_COLOR = (255, 45, 110)
HEAT_MAP_MAX_DE = 40.0
"""dE drawn in the brightest colour of the heat map."""
MAX_PATH_CHARACTERS = 6000
"""Length limit of an outline; a page has hundreds of them."""


def heat_map(difference: NDArray[np.float32]) -> RGB:
    """Colour dE (H, W) as (H, W, 3): black at 0, brightest from HEAT_MAP_MAX_DE."""
    scaled = np.clip(difference * (255 / HEAT_MAP_MAX_DE), 0, 255).astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB), np.uint8
    )


def outline_path(mask: Mask, size: tuple[int, int]) -> str:
    """Return the outlines of a mask (H, W), holes included, as SVG path data at (width, height).

    They are simplified until they fit MAX_PATH_CHARACTERS (Douglas and Peucker 1973). An empty mask gives "".
    """
    if (mask.shape[1], mask.shape[0]) != size:
        mask = resize(mask.astype(np.float32), size) >= 0.5
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance_px = 0.5
    while True:
        polygons = [cv2.approxPolyDP(contour, tolerance_px, True)[:, 0] for contour in contours]
        path = "".join(
            "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z"
            for points in polygons
            if len(points) > 2
        )
        if len(path) <= MAX_PATH_CHARACTERS:
            return path
        tolerance_px *= 1.5


def panel_strip(
    before: RGB, aligned_after: RGB, difference: NDArray[np.float32], mask: Mask, tile_px: int
) -> RGB:
    """Draw four labelled panels in a row: before, aligned after, difference as a heat map, and mask.

    All inputs have the size (H, W) of the input. The result is uint8 RGB, 4 tile_px + 3 GAP_PX wide and
    LABEL_PX higher than the input with its longest side fitted to `tile_px`.
    """
    images = [fit(image, tile_px) for image in (before, aligned_after, heat_map(difference))]
    images.append(mask_overlay(before, mask, tile_px))
    size = (4 * tile_px + 3 * GAP_PX, images[0].shape[0] + LABEL_PX)
    strip = Image.new("RGB", size, BACKGROUND)
    for i, (label, image) in enumerate(zip(PANELS, images, strict=True)):
        left = i * (tile_px + GAP_PX)
        strip.paste(Image.fromarray(image), (left + (tile_px - image.shape[1]) // 2, LABEL_PX))
        ImageDraw.Draw(strip).text((left + 2, 1), label, fill=FAINT_COLOR, font=_font(11))
    return np.asarray(strip)


def mask_overlay(image: RGB, mask: Mask, largest_side_px: int) -> RGB:
    """Draw the mask over the fitted image, as a tint with its outline as a line."""
    small = fit(image, largest_side_px)
    height, width = small.shape[:2]
    coverage = resize(mask.astype(np.float32), (width, height))[..., None]
    drawn = small * (1 - 0.4 * coverage) + np.array(MASK_COLOR, np.float32) * (0.4 * coverage)
    inside = (coverage[..., 0] > 0.25).astype(np.uint8)
    outline = inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=0)
    drawn[outline > 0] = MASK_COLOR
    return np.asarray(np.clip(drawn, 0, 255), np.uint8)


def contact_sheet(strips: Sequence[RGB], captions: Sequence[Sequence[str]]) -> RGB:
    """Stack strips vertically, each under its caption.

    A caption is a list of lines: the first (the instruction) is bright, the others are faint. Lines wider
    than the sheet are truncated. Raises ValueError without strips or if the numbers differ.
    """
    if not strips or len(strips) != len(captions):
        raise ValueError(f"{len(strips)} strips and {len(captions)} captions: one for each is needed")
    width = max(item.shape[1] for item in strips)
    height = sum(
        item.shape[0] + LINE_PX * len(caption) + 3 * GAP_PX
        for item, caption in zip(strips, captions, strict=True)
    )
    sheet = Image.new("RGB", (width + 2 * GAP_PX, height + GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for item, caption in zip(strips, captions, strict=True):
        for i, line in enumerate(caption):
            color = FAINT_COLOR if i else TEXT_COLOR
            draw.text((GAP_PX + 2, top), truncate_text(line, width, 13), fill=color, font=_font(13))
            top += LINE_PX
        sheet.paste(Image.fromarray(item), (GAP_PX, top + GAP_PX))
        top += item.shape[0] + 3 * GAP_PX
    return np.asarray(sheet)


def truncate_text(text: str, width_px: int, font_px: int) -> str:
    """Join the words of a text to one line and truncate it with an ellipsis at `width_px`."""
    text = " ".join(text.split())
    font = _font(font_px)
    if font.getlength(text) <= width_px:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width_px else (low, middle - 1)
    return text[:low].rstrip() + "…"


def preview_jpeg(rgb: RGB, max_bytes: int) -> bytes:
    """Encode a JPEG of at most `max_bytes`; reduce quality and size until it fits.

    Raises ValueError if not even a thumbnail of 16 px fits.
    """
    side = max(rgb.shape[:2])
    while side >= 16:
        small = fit(rgb, side)
        for quality in (85, 70, 55):
            data = encode_jpeg(small, quality)
            if len(data) <= max_bytes:
                return data
        side = int(side * 0.8)
    data = encode_jpeg(fit(rgb, 16), 40)
    if len(data) > max_bytes:
        raise ValueError(f"no preview fits {max_bytes} bytes; the smallest takes {len(data)}")
    return data


def _font(px: int) -> Any:
    return ImageFont.load_default(size=px)
