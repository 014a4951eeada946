from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from bananagrams_assets.vision.overlay import (
    GAP_PX,
    LABEL_PX,
    TINT,
    preview_jpeg,
    sheet,
    shortened,
    strip,
    tinted,
)
from bananagrams_assets.vision.page import PageRow, render_page
from bananagrams_tests.vision.pictures import box, textured


def strip_of(width: int, height: int, tile_px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    picture = textured(1, width, height)
    mask = box(picture, 0.2, 0.2, 0.6, 0.8)
    return strip(picture, picture, mask.astype(np.float32) * 30, mask, tile_px)


@pytest.mark.parametrize(
    ("width", "height", "panel"), [(240, 180, 96), (180, 240, 128), (1280, 128, 13), (1, 1, 1), (60, 40, 40)]
)
def test_a_strip_has_four_panels_of_the_pictures_shape(width: int, height: int, panel: int) -> None:
    drawn = strip_of(width, height, 128)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (panel + LABEL_PX, 4 * 128 + 3 * GAP_PX, 3)


def test_a_strip_shows_the_change_and_leaves_the_rest_dark() -> None:
    drawn = strip_of(128, 128, 128).astype(int)[LABEL_PX:]
    heat = drawn[:, 2 * (128 + GAP_PX) : 2 * (128 + GAP_PX) + 128]
    assert heat[64, 50].sum() > 300
    assert heat[120, 120].sum() < 60


def test_the_mask_is_a_tint_with_an_outline_over_the_photograph() -> None:
    picture = np.full((60, 60, 3), 100, np.uint8)
    mask = box(picture, 0.25, 0.25, 0.75, 0.75)
    drawn = tinted(picture, mask, 60)
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


def row(**changes: object) -> PageRow:
    values: dict[str, object] = {
        "key": "sft-1-0a1b2c3d",
        "picture": "pictures/sft-1-0a1b2c3d.jpg",
        "instruction": "Remove the flag.",
        "edit_type": "Remove an existing object",
        "verdict": "local",
        "confidence": 0.87,
        "area": 0.123,
        "source": "https://example.org/a.jpg",
        "split": "train",
    }
    return PageRow(**{**values, **changes})  # type: ignore[arg-type]


def test_the_page_escapes_what_people_wrote() -> None:
    evil = "<script>alert(1)</script>"
    page = render_page(evil, [row(instruction=evil, edit_type='"><img src=x>', source=evil, key="a\"'<b>")])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x>" not in page
    assert page.count("<script>") == 1


def test_a_link_cannot_be_a_script() -> None:
    page = render_page("t", [row(picture="javascript:alert(1)")])
    assert 'href="javascript:' not in page


def test_the_page_shows_each_sample_and_counts_on_top() -> None:
    rows = [row(), row(key="b", verdict="global", confidence=0.3), row(key="c", verdict="local")]
    page = render_page("train-00000", rows)
    assert page.count('loading="lazy"') == 3
    for text in (
        "<b>3</b> samples",
        "<b>2</b> local",
        "<b>1</b> global",
        "<b>1</b> below 50%",
        "12.3%",
        "87%",
    ):
        assert text in page
    assert 'src="pictures/sft-1-0a1b2c3d.jpg"' in page
    assert "http://" not in page.replace("https://example.org", "")
    assert "//cdn" not in page


def test_a_page_of_nothing_says_so() -> None:
    assert "No samples to show." in render_page("empty", [])
