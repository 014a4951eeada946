from __future__ import annotations

import io
import json
import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from bananagrams_assets.vision.overlay import (
    GAP_PX,
    LABEL_PX,
    MAX_PATH,
    TINT,
    outline,
    preview_jpeg,
    sheet,
    shortened,
    strip,
    tinted,
)
from bananagrams_assets.vision.page import LEAST, PageRow, render_contents, render_page, render_summary
from bananagrams_tests.vision.images import box, textured


def strip_of(width: int, height: int, tile_px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = textured(1, width, height)
    mask = box(image, 0.2, 0.2, 0.6, 0.8)
    return strip(image, image, mask.astype(np.float32) * 30, mask, tile_px)


@pytest.mark.parametrize(
    ("width", "height", "panel"), [(240, 180, 96), (180, 240, 128), (1280, 128, 13), (1, 1, 1), (60, 40, 40)]
)
def test_a_strip_has_four_panels_of_the_images_shape(width: int, height: int, panel: int) -> None:
    drawn = strip_of(width, height, 128)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (panel + LABEL_PX, 4 * 128 + 3 * GAP_PX, 3)


def test_a_strip_shows_the_change_and_leaves_the_rest_dark() -> None:
    drawn = strip_of(128, 128, 128).astype(int)[LABEL_PX:]
    heat = drawn[:, 2 * (128 + GAP_PX) : 2 * (128 + GAP_PX) + 128]
    assert heat[64, 50].sum() > 300
    assert heat[120, 120].sum() < 60


def test_the_mask_is_a_tint_with_an_outline_over_the_photograph() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = box(image, 0.25, 0.25, 0.75, 0.75)
    drawn = tinted(image, mask, 60)
    assert tuple(drawn[15, 30]) == TINT
    assert (drawn[~mask] == 100).all()
    assert drawn[30, 30, 0] > 130


def test_a_sheet_stacks_strips_under_their_captions() -> None:
    strips = [strip_of(240, 180, 96), strip_of(100, 200, 96)]
    captions = [["Remove the red flag, bitte", "Remove · 87% · 12.0%"], ["把天空变成紫色 " * 40]]
    drawn = sheet(strips, captions)
    assert drawn.shape[1] == strips[0].shape[1] + 2 * GAP_PX
    assert drawn.shape[0] > sum(item.shape[0] for item in strips)
    last = drawn[-2 * GAP_PX - strips[1].shape[0] : -2 * GAP_PX, GAP_PX:-GAP_PX]
    assert np.array_equal(last[LABEL_PX:], strips[1][LABEL_PX:])


def test_a_sheet_needs_a_caption_for_each_strip() -> None:
    for strips in ([], [strip_of(60, 40, 64)]):
        with pytest.raises(ValueError, match="one for each is needed"):
            sheet(strips, [])


@given(text=st.text(max_size=300), width=st.integers(30, 400))
@settings(deadline=None)
def test_shortened_text_fits_in_one_line(text: str, width: int) -> None:
    line = shortened(text, width, 13)
    assert "\n" not in line
    font = ImageFont.load_default(size=13)
    assert font.getlength(line) <= width


@pytest.mark.parametrize("most", [40_000, 6_000, 900])
def test_a_preview_fits_its_bytes(most: int) -> None:
    data = preview_jpeg(textured(2, 900, 1400), most)
    assert len(data) <= most
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_a_preview_that_cannot_fit_says_so() -> None:
    with pytest.raises(ValueError, match="no preview fits 10 bytes"):
        preview_jpeg(textured(2), 10)


def test_an_outline_follows_the_mask_and_its_holes() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    mask[15:25, 20:40] = False
    path = outline(mask, (60, 40))
    assert path.count("M") == path.count("Z") == 2
    assert iou(redrawn(path, (60, 40)), mask) > 0.9
    assert iou(redrawn(outline(mask, (30, 20)), (30, 20)), mask[::2, ::2]) > 0.85
    assert outline(np.zeros((4, 4), bool), (4, 4)) == ""


def test_the_outline_of_a_ragged_mask_stays_short() -> None:
    mask = textured(3, 512, 512)[..., 0] > 120
    assert 0 < len(outline(mask, (512, 512))) <= MAX_PATH


def redrawn(path: str, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """SVG path data filled by the even-odd rule."""
    contours = [
        np.array([point.split() for point in part.rstrip("Z").split("L")], np.float64) - 0.5
        for part in path.split("M")[1:]
    ]
    canvas = np.zeros((size[1], size[0]), np.uint8)
    cv2.fillPoly(canvas, [np.round(contour).astype(np.int32) for contour in contours], 1)
    return canvas > 0


def iou(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float((one & other).sum() / (one | other).sum())


def row(**changes: object) -> PageRow:
    values: dict[str, object] = {
        "key": "sft-1-0a1b2c3d",
        "text": "Remove the flag.",
        "type": "Remove an existing object",
        "scope": "local",
        "mask": "local",
        "confidence": 0.87,
        "area": 0.123,
        "source": "https://example.org/a.jpg",
        "split": "train",
        "shard": "train-00000",
    }
    return PageRow(**{**values, **changes})  # type: ignore[arg-type]


EVIL = '</script><img src=x onerror="alert(1)"><!--'


def test_what_people_wrote_reaches_no_page_as_markup() -> None:
    rows = [row(text=EVIL, type=EVIL, source=EVIL, key=EVIL, reason=EVIL, image=EVIL)]
    for page in (render_page(EVIL, EVIL, rows, "../index.html"), render_contents(EVIL, [EVIL])):
        assert "<img src=x" not in page
        assert page.count("</script>") == page.count("<script")
        assert "<!--" not in page
    assert EVIL in json.loads(render_summary(EVIL, "train", {}, rows)[len("bananagrams(") : -3])["name"]


def test_pages_ask_for_nothing_from_elsewhere() -> None:
    for page in (
        render_page("t", "train-00000", [row(source="here")]),
        render_contents("t", ["train-00000"]),
    ):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|url\(", page)


def test_a_summary_brings_the_first_masks_that_have_a_image() -> None:
    rows = [row(key=f"k{number}", image="p.jpg") for number in range(40)]
    rows = [row(key="lost", mask="rejected", image="p.jpg"), row(key="unseen"), *rows]
    content = json.loads(
        render_summary("train-00000", "train", {"masks": 41}, rows)[len("bananagrams(") : -3]
    )
    assert (content["samples"], content["masks"]) == (42, 41)
    assert [found["key"] for found in content["least"]] == [f"k{number}" for number in range(LEAST)]
