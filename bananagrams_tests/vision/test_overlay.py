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
    MASK_COLOR,
    MAX_PATH_CHARACTERS,
    contact_sheet,
    mask_overlay,
    outline_path,
    panel_strip,
    preview_jpeg,
    truncate_text,
)
from bananagrams_assets.vision.page import (
    SUMMARY_SAMPLES,
    PageRow,
    render_contents,
    render_page,
    render_summary,
)
from bananagrams_tests.vision.images import box, textured


def strip_of(width: int, height: int, tile_px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = textured(1, width, height)
    mask = box(image, 0.2, 0.2, 0.6, 0.8)
    return panel_strip(image, image, mask.astype(np.float32) * 30, mask, tile_px)


@pytest.mark.parametrize(
    ("width", "height", "panel"), [(240, 180, 96), (180, 240, 128), (1280, 128, 13), (1, 1, 1), (60, 40, 40)]
)
def test_strip_has_four_panels_of_the_images_aspect_ratio(width: int, height: int, panel: int) -> None:
    result = strip_of(width, height, 128)
    assert result.dtype == np.uint8
    assert result.shape == (panel + LABEL_PX, 4 * 128 + 3 * GAP_PX, 3)


def test_strip_shows_the_difference_on_a_dark_background() -> None:
    result = strip_of(128, 128, 128).astype(int)[LABEL_PX:]
    heat = result[:, 2 * (128 + GAP_PX) : 2 * (128 + GAP_PX) + 128]
    assert heat[64, 50].sum() > 300
    assert heat[120, 120].sum() < 60


def test_mask_overlay_has_a_tint_and_an_outline() -> None:
    image = np.full((60, 60, 3), 100, np.uint8)
    mask = box(image, 0.25, 0.25, 0.75, 0.75)
    result = mask_overlay(image, mask, 60)
    assert tuple(result[15, 30]) == MASK_COLOR
    assert (result[~mask] == 100).all()
    assert result[30, 30, 0] > 130


def test_contact_sheet_stacks_strips_under_their_captions() -> None:
    strips = [strip_of(240, 180, 96), strip_of(100, 200, 96)]
    captions = [["Remove the red flag, bitte", "Remove · 87% · 12.0%"], ["把天空变成紫色 " * 40]]
    result = contact_sheet(strips, captions)
    assert result.shape[1] == strips[0].shape[1] + 2 * GAP_PX
    assert result.shape[0] > sum(item.shape[0] for item in strips)
    last = result[-2 * GAP_PX - strips[1].shape[0] : -2 * GAP_PX, GAP_PX:-GAP_PX]
    assert np.array_equal(last[LABEL_PX:], strips[1][LABEL_PX:])


def test_contact_sheet_needs_a_caption_for_each_strip() -> None:
    for strips in ([], [strip_of(60, 40, 64)]):
        with pytest.raises(ValueError, match="one for each is needed"):
            contact_sheet(strips, [])


@given(text=st.text(max_size=300), width=st.integers(30, 400))
@settings(deadline=None)
def test_truncated_text_fits_in_one_line(text: str, width: int) -> None:
    line = truncate_text(text, width, 13)
    assert "\n" not in line
    font = ImageFont.load_default(size=13)
    assert font.getlength(line) <= width


@pytest.mark.parametrize("max_bytes", [40_000, 6_000, 900])
def test_preview_has_at_most_the_given_bytes(max_bytes: int) -> None:
    data = preview_jpeg(textured(2, 900, 1400), max_bytes)
    assert len(data) <= max_bytes
    assert Image.open(io.BytesIO(data)).format == "JPEG"


def test_preview_that_cannot_fit_raises() -> None:
    with pytest.raises(ValueError, match="no preview fits 10 bytes"):
        preview_jpeg(textured(2), 10)


def test_outline_follows_the_mask_and_its_holes() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    mask[15:25, 20:40] = False
    path = outline_path(mask, (60, 40))
    assert path.count("M") == path.count("Z") == 2
    assert iou(rasterised(path, (60, 40)), mask) > 0.9
    assert iou(rasterised(outline_path(mask, (30, 20)), (30, 20)), mask[::2, ::2]) > 0.85
    assert outline_path(np.zeros((4, 4), bool), (4, 4)) == ""


def test_outline_of_a_ragged_mask_is_simplified() -> None:
    mask = textured(3, 512, 512)[..., 0] > 120
    assert 0 < len(outline_path(mask, (512, 512))) <= MAX_PATH_CHARACTERS


def rasterised(path: str, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Fill SVG path data by the even-odd rule."""
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


MARKUP = '</script><img src=x onerror="alert(1)"><!--'


def test_text_reaches_no_page_as_markup() -> None:
    rows = [row(text=MARKUP, type=MARKUP, source=MARKUP, key=MARKUP, reason=MARKUP, image=MARKUP)]
    for page in (render_page(MARKUP, MARKUP, rows, "../index.html"), render_contents(MARKUP, [MARKUP])):
        assert "<img src=x" not in page
        assert page.count("</script>") == page.count("<script")
        assert "<!--" not in page
    assert MARKUP in json.loads(render_summary(MARKUP, "train", {}, rows)[len("bananagrams(") : -3])["name"]


def test_pages_load_nothing_from_other_sites() -> None:
    for page in (
        render_page("t", "train-00000", [row(source="here")]),
        render_contents("t", ["train-00000"]),
    ):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|//cdn|@import|url\(", page)


def test_summary_has_the_first_masks_with_an_image() -> None:
    rows = [row(key=f"k{number}", image="p.jpg") for number in range(40)]
    rows = [row(key="lost", mask="rejected", image="p.jpg"), row(key="unseen"), *rows]
    content = json.loads(
        render_summary("train-00000", "train", {"masks": 41}, rows)[len("bananagrams(") : -3]
    )
    assert (content["samples"], content["masks"]) == (42, 41)
    assert content["least"][0]["picture"] == "p.jpg"
    assert [sample["key"] for sample in content["least"]] == [
        f"k{number}" for number in range(SUMMARY_SAMPLES)
    ]
