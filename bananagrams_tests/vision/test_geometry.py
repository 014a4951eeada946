from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.vision.geometry import (
    Floats,
    frame_corners,
    jacobians,
    normalise_homography,
    overlap_polygon,
    polygon_area,
    polygon_mask,
    project,
    rescale_homography,
    resize_homography,
    warp,
)
from bananagrams_tests.vision.images import textured


def inverse(H: Floats) -> Floats:
    return normalise_homography(np.asarray(np.linalg.inv(H), np.float64))


small = st.floats(-0.08, 0.08)
sides = st.tuples(st.integers(8, 900), st.integers(8, 900))


@st.composite
def homographies(draw: st.DrawFn) -> Floats:
    """Draw a homography in an editor's range: scale, shear, shift and a little perspective."""
    scale = draw(st.floats(0.6, 1.6))
    a, b, c, d = (draw(small) for _ in range(4))
    x, y = draw(st.floats(-60, 60)), draw(st.floats(-60, 60))
    p, q = draw(st.floats(-2e-4, 2e-4)), draw(st.floats(-2e-4, 2e-4))
    return np.array([[scale + a, b, x], [c, scale + d, y], [p, q, 1]])


@given(source=sides, target=sides)
def test_resize_maps_frame_to_frame(source: tuple[int, int], target: tuple[int, int]) -> None:
    assert np.allclose(
        project(resize_homography(source, target), frame_corners(source)), frame_corners(target), atol=1e-6
    )


@given(H=homographies(), source=sides, target=sides, small_source=sides, small_target=sides)
def test_rescaling_can_be_reversed(
    H: Floats,
    source: tuple[int, int],
    target: tuple[int, int],
    small_source: tuple[int, int],
    small_target: tuple[int, int],
) -> None:
    there = rescale_homography(H, source, small_source, target, small_target)
    back = rescale_homography(there, small_source, source, small_target, target)
    assert back[2, 2] == 1
    assert np.allclose(back, H, rtol=1e-6, atol=1e-6)


@given(
    H=homographies(), points=st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), min_size=1, max_size=9)
)
def test_inverse_maps_points_back(H: Floats, points: list[tuple[float, float]]) -> None:
    array = np.array(points, np.float64)
    assert np.allclose(project(inverse(H), project(H, array)), array, atol=1e-5)


@given(H=homographies(), x=st.floats(0, 500), y=st.floats(0, 500))
def test_jacobians_match_finite_differences(H: Floats, x: float, y: float) -> None:
    point, step = np.array([[x, y]]), 1e-4
    by_x, by_y = (
        (project(H, point + offset) - project(H, point - offset))[0] / (2 * step)
        for offset in step * np.eye(2)
    )
    assert np.allclose(jacobians(H, point)[0], np.stack([by_x, by_y], axis=1), atol=1e-4)


@given(H=homographies(), source=sides, target=sides)
def test_overlap_is_inside_both_frames(H: Floats, source: tuple[int, int], target: tuple[int, int]) -> None:
    polygon = overlap_polygon(H, source, target)
    if len(polygon) == 0:
        return
    low, high = frame_corners(target)[0], frame_corners(target)[2]
    assert (polygon >= low - 1e-9).all()
    assert (polygon <= high + 1e-9).all()
    back = project(inverse(H), polygon)
    assert (back >= frame_corners(source)[0] - 1e-4).all()
    assert (back <= frame_corners(source)[2] + 1e-4).all()
    assert polygon_area(polygon) <= target[0] * target[1] * (1 + 1e-9)


@given(H=homographies(), source=sides, target=st.tuples(st.integers(8, 90), st.integers(8, 90)))
def test_overlap_mask_has_the_pixels_that_map_into_the_edited_frame(
    H: Floats, source: tuple[int, int], target: tuple[int, int]
) -> None:
    mask = polygon_mask(overlap_polygon(H, source, target), target)
    y, x = np.indices(mask.shape)
    back = project(inverse(H), np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64))
    right, bottom = frame_corners(source)[2]
    depth = np.minimum(
        np.minimum(back[:, 0] + 0.5, right - back[:, 0]), np.minimum(back[:, 1] + 0.5, bottom - back[:, 1])
    )
    away_from_edges = np.abs(depth) > 1e-3
    assert np.array_equal(mask.ravel()[away_from_edges], (depth > 0)[away_from_edges])


def test_frame_covers_all_of_its_pixels() -> None:
    whole = overlap_polygon(np.eye(3), (7, 5), (7, 5))
    assert polygon_mask(whole, (7, 5)).all()
    assert polygon_area(whole) == 35
    assert not polygon_mask(np.empty((0, 2)), (7, 5)).any()
    assert polygon_area(np.empty((0, 2))) == 0


def test_disjoint_frames_do_not_overlap() -> None:
    aside = np.array([[1, 0, 500], [0, 1, 0], [0, 0, 1]], np.float64)
    assert polygon_area(overlap_polygon(aside, (100, 100), (100, 100))) == 0


def test_warp_can_be_reversed() -> None:
    image = textured(5, 160, 120)
    H = np.array([[1.1, 0.02, -4.0], [-0.01, 1.05, 3.0], [5e-5, -4e-5, 1]])
    there, valid = warp(image, H, (160, 120))
    back, valid_back = warp(there, inverse(H), (160, 120))
    inner = np.zeros_like(valid)
    inner[12:-12, 12:-12] = True
    assert valid.dtype == bool
    assert np.abs(back.astype(int) - image)[inner & valid_back].mean() < 6


def test_identity_changes_no_pixel() -> None:
    image = textured(6, 50, 40)
    same, valid = warp(image, np.eye(3), (50, 40))
    assert np.array_equal(same, image)
    assert valid.all()


def test_shrinking_averages_pixels() -> None:
    board = np.repeat((np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    small, _ = warp(board, resize_homography((256, 256), (50, 50)), (50, 50))
    assert np.abs(small.astype(int) - 127).max() < 30
