from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bananagrams_assets.sample.editor import reencode
from bananagrams_assets.sample.photos import RGB, SMALLEST_SIDE_PX, cut_tile, tile_boxes


def _coordinate_image(width: int, height: int) -> RGB:
    """Return an image whose red is x and whose green is y."""
    y, x = np.mgrid[:height, :width]
    return np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(96, 256), st.integers(96, 256), st.integers(0, 2**32 - 1))
def test_the_homography_maps_edited_pixels_to_input_pixels(width: int, height: int, seed: int) -> None:
    edited, homography = reencode(_coordinate_image(width, height), 0.0, np.random.default_rng(seed))
    rows, columns = np.mgrid[: edited.shape[0], : edited.shape[1]]
    points = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    mapped = homography @ points
    x, y = mapped[0] / mapped[2], mapped[1] / mapped[2]
    inside = (x >= 3) & (x <= width - 4) & (y >= 3) & (y <= height - 4)
    values = edited.reshape(-1, 3).astype(float)
    assert inside.mean() > 0.75
    assert np.max(np.abs(values[inside, 0] - x[inside])) < 1.2
    assert np.max(np.abs(values[inside, 1] - y[inside])) < 1.2
    assert homography[2, 2] == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(96, 400), st.integers(96, 400), st.integers(0, 2**32 - 1))
def test_size_and_geometry_stay_close_to_the_input(width: int, height: int, seed: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    edited, homography = reencode(image, 0.0, np.random.default_rng(seed))
    assert edited.shape[0] % 8 == 0
    assert edited.shape[1] % 8 == 0
    assert 0.78 < edited.shape[1] / width < 1.25
    assert 0.78 < edited.shape[0] / height < 1.25
    corners = np.array([[0, 0, 1], [edited.shape[1] - 1, edited.shape[0] - 1, 1]]).T
    mapped = homography @ corners
    shift = (mapped[:2] / mapped[2]).T - [[0, 0], [width - 1, height - 1]]
    assert np.all(np.abs(shift) < 0.09 * max(width, height))


def test_the_change_grows_with_strength() -> None:
    rng = np.random.default_rng(0)
    image = np.clip(128 + 40 * rng.standard_normal((160, 200, 3)), 0, 255).astype(np.uint8)
    unchanged, unchanged_homography = reencode(image, 0.0, np.random.default_rng(5))
    changes = []
    for strength in (0.5, 1.0, 2.0):
        result, homography = reencode(image, strength, np.random.default_rng(5))
        assert np.array_equal(homography, unchanged_homography)
        assert result.shape == unchanged.shape
        changes.append(np.abs(result.astype(float) - unchanged).mean())
    assert 0 < changes[0] < changes[1] < changes[2]


@given(st.integers(SMALLEST_SIDE_PX, 4000), st.integers(SMALLEST_SIDE_PX, 4000), st.integers(128, 2048))
def test_tiles_are_inside_the_photo_and_the_first_is_the_whole(width: int, height: int, side: int) -> None:
    boxes = tile_boxes(width, height, side)
    assert boxes[0] == (0, 0, width, height)
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        assert min(w, h) > 0
    assert all(max(w, h) >= 0.9 * side for _, _, w, h in boxes[1:])


@settings(deadline=None, max_examples=25)
@given(st.integers(100, 400), st.integers(100, 400), st.integers(128, 320))
def test_a_tile_has_at_most_the_longest_side_and_is_never_enlarged(
    width: int, height: int, side: int
) -> None:
    tile = cut_tile(np.zeros((height, width, 3), np.uint8), (0, 0, width, height), side)
    assert max(tile.shape[:2]) == min(side, max(width, height))
    assert tile.shape[1] / tile.shape[0] == pytest.approx(width / height, rel=0.02)
