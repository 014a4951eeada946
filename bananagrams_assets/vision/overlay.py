"""Pictures to judge masks by eye."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bananagrams_assets.vision.images import RGB, Mask, encode_jpeg, fit, resize

PANELS = ("before", "after, aligned", "difference", "mask")
GAP_PX = 4
LABEL_PX = 16
LINE_PX = 17
BACKGROUND = (24, 26, 30)
INK = (232, 234, 238)
FAINT = (150, 156, 166)
TINT = (255, 45, 110)
BRIGHTEST_DE = 40.0
"""dE drawn in the brightest colour of the heat map."""
MAX_PATH = 6000
"""Characters of an outline on a page of hundreds."""


def heat_map(difference: NDArray[np.float32]) -> RGB:
    """dE (H, W) as colours (H, W, 3), black at 0, brightest from BRIGHTEST_DE on."""
    scaled = np.clip(difference * (255 / BRIGHTEST_DE), 0, 255).astype(np.uint8)
    return np.asarray(
        cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB), np.uint8
    )


def outline(mask: Mask, size: tuple[int, int]) -> str:
    """The mask (H, W), brought to (width, height), as SVG path data of its outlines, holes included.

    Its detail is lowered until it fits MAX_PATH characters (Douglas and Peucker 1973). "" of an empty mask.
    """
    if (mask.shape[1], mask.shape[0]) != size:
        mask = resize(mask.astype(np.float32), size) >= 0.5
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance_px = 0.5
    while True:
        simple = [cv2.approxPolyDP(contour, tolerance_px, True)[:, 0] for contour in contours]
        path = "".join(
            "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z"
            for points in simple
            if len(points) > 2
        )
        if len(path) <= MAX_PATH:
            return path
        tolerance_px *= 1.5


def strip(before: RGB, aligned_after: RGB, difference: NDArray[np.float32], mask: Mask, tile_px: int) -> RGB:
    """Four labelled panels in a row: before, after as aligned, the difference as a heat map, the mask.

    All four are of the input's size (H, W). The result is uint8 RGB, 4 tile_px + 3 GAP_PX wide and
    LABEL_PX higher than the input is with its longest side fitted to `tile_px`.
    """
    panels = [
        _tile(before, tile_px),
        _tile(aligned_after, tile_px),
        _tile(heat_map(difference), tile_px),
        _tile(tinted(before, mask, tile_px), tile_px),
    ]
    canvas = _canvas(4 * tile_px + 3 * GAP_PX, panels[0].shape[0] + LABEL_PX)
    for i, panel in enumerate(panels):
        left = i * (tile_px + GAP_PX)
        canvas[LABEL_PX:, left : left + tile_px] = panel
    drawing = Image.fromarray(canvas)
    for i, label in enumerate(PANELS):
        ImageDraw.Draw(drawing).text((i * (tile_px + GAP_PX) + 2, 1), label, fill=FAINT, font=_font(11))
    return np.asarray(drawing)


def tinted(image: RGB, mask: Mask, largest_side_px: int) -> RGB:
    """The picture, fitted, with the mask as a tint and its outline as a line."""
    small = fit(image, largest_side_px)
    height, width = small.shape[:2]
    share = resize(mask.astype(np.float32), (width, height))[..., None]
    drawn = small * (1 - 0.4 * share) + np.array(TINT, np.float32) * (0.4 * share)
    inside = (share[..., 0] > 0.25).astype(np.uint8)
    outline = inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=0)
    drawn[outline > 0] = TINT
    return np.asarray(np.clip(drawn, 0, 255), np.uint8)


def sheet(strips: Sequence[RGB], captions: Sequence[Sequence[str]]) -> RGB:
    """A contact sheet: strips below one another, each under its caption.

    A caption is lines of text, the first (the instruction) bright, the others faint; a line that is wider
    than the strip is shortened. Raises ValueError for no strips or captions of another number.
    """
    if not strips or len(strips) != len(captions):
        raise ValueError(f"{len(strips)} strips and {len(captions)} captions: one for each is needed")
    width = max(item.shape[1] for item in strips)
    heights = [
        item.shape[0] + LINE_PX * len(caption) + 3 * GAP_PX
        for item, caption in zip(strips, captions, strict=True)
    ]
    canvas = _canvas(width + 2 * GAP_PX, sum(heights) + GAP_PX)
    top = GAP_PX
    for item, caption, height in zip(strips, captions, heights, strict=True):
        start = top + LINE_PX * len(caption) + GAP_PX
        canvas[start : start + item.shape[0], GAP_PX : GAP_PX + item.shape[1]] = item
        top += height
    drawing = Image.fromarray(canvas)
    draw = ImageDraw.Draw(drawing)
    top = GAP_PX
    for caption, height in zip(captions, heights, strict=True):
        for i, line in enumerate(caption):
            text = shortened(line, width, 13)
            draw.text((GAP_PX + 2, top + i * LINE_PX), text, fill=FAINT if i else INK, font=_font(13))
        top += height
    return np.asarray(drawing)


def shortened(text: str, width_px: int, font_px: int) -> str:
    """One line of text, cut with an ellipsis where it would be wider than `width_px`."""
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
    """A JPEG of at most `max_bytes`: smaller and coarser until it fits.

    Raises ValueError where not even a thumbnail of 16 px fits.
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
        raise ValueError(f"no preview fits {max_bytes} bytes; the least takes {len(data)}")
    return data


def _tile(image: RGB, tile_px: int) -> RGB:
    """The picture, fitted, in the middle of a panel `tile_px` wide."""
    small = fit(image, tile_px)
    tile = _canvas(tile_px, small.shape[0])
    left = (tile_px - small.shape[1]) // 2
    tile[:, left : left + small.shape[1]] = small
    return tile


def _canvas(width: int, height: int) -> RGB:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def _font(px: int) -> Any:
    return ImageFont.load_default(size=px)
