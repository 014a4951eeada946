from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bananagrams_assets.config import AlignSettings
from bananagrams_assets.vision.align import Alignment, align
from bananagrams_assets.vision.geometry import (
    Floats,
    frame_corners,
    normalise_homography,
    project,
    resize_homography,
)
from bananagrams_assets.vision.images import RGB, resize
from bananagrams_tests.vision.images import box, textured, warped

SETTINGS = AlignSettings()
SIZE = (240, 180)


def corner_error(alignment: Alignment, truth: Floats, size: tuple[int, int]) -> float:
    corners = frame_corners(size)
    return float(
        np.linalg.norm(project(alignment.homography, corners) - project(truth, corners), axis=1).max()
    )


def inverse(H: Floats) -> Floats:
    return normalise_homography(np.asarray(np.linalg.inv(H), np.float64))


@st.composite
def small_homographies(draw: st.DrawFn) -> Floats:
    """Draw a homography, input → edited: little scale, shear, shift and perspective."""
    a, b, c, d = (draw(st.floats(-0.05, 0.05)) for _ in range(4))
    x, y = draw(st.floats(-10, 10)), draw(st.floats(-8, 8))
    p, q = draw(st.floats(-1e-4, 1e-4)), draw(st.floats(-1e-4, 1e-4))
    return np.array([[1 + a, b, x], [c, 1 + d, y], [p, q, 1]])


@given(H=small_homographies(), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_small_homographies_are_recovered_within_a_pixel(H: Floats, seed: int) -> None:
    before = textured(seed, *SIZE)
    alignment = align(before, warped(before, H, SIZE), SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, inverse(H), SIZE) < 1
    assert alignment.homography[2, 2] == 1
    assert 0 <= alignment.confidence <= 1
    assert (alignment.overlap >= -0.5).all()
    assert (alignment.overlap <= np.array(SIZE) - 0.5).all()


@pytest.mark.parametrize("size", [(240, 180), (360, 270), (300, 160), (170, 128)])
def test_resize_is_recovered_exactly(size: tuple[int, int]) -> None:
    before = textured(1, *SIZE)
    alignment = align(before, resize(before, size), SETTINGS)
    assert (alignment.accepted, alignment.method) == (True, "resize")
    assert np.array_equal(alignment.homography, resize_homography(size, SIZE))
    assert alignment.overlap_share == pytest.approx(1)
    assert alignment.confidence > 0.8


def test_crop_is_a_scale_with_the_right_overlap() -> None:
    before = textured(2, *SIZE)
    after = np.ascontiguousarray(before[30:150, 40:220])
    alignment = align(before, after, SETTINGS)
    assert (alignment.accepted, alignment.method) == (True, "scale")
    assert corner_error(alignment, np.array([[1, 0, 40], [0, 1, 30], [0, 0, 1.0]]), (180, 120)) < 0.3
    assert alignment.overlap_share == pytest.approx(180 * 120 / (240 * 180), abs=0.01)


def test_extended_canvas_covers_the_whole_input() -> None:
    wide = textured(3, 300, 240)
    before = np.ascontiguousarray(wide[30:210, 30:270])
    alignment = align(before, wide, SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, np.array([[1, 0, -30], [0, 1, -30], [0, 0, 1.0]]), (300, 240)) < 0.5
    assert alignment.overlap_share == pytest.approx(1, abs=1e-6)


def test_edit_of_a_third_of_the_image_does_not_bias_the_alignment() -> None:
    before = textured(4, *SIZE)
    after = np.where(box(before, 0.1, 0.1, 0.6, 0.75)[..., None], textured(5, *SIZE), before)
    H = np.array([[1.03, 0, 3.0], [0, 1.03, -2.0], [0, 0, 1]])
    alignment = align(before, warped(after, H, SIZE), SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, inverse(H), SIZE) < 1


def test_ten_to_one_panorama_aligns() -> None:
    before = textured(6, 1600, 160)
    alignment = align(before, resize(before, (1280, 128)), SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, resize_homography((1280, 128), (1600, 160)), (1280, 128)) < 1


def test_unrelated_images_are_rejected_with_a_reason() -> None:
    alignment = align(textured(7, *SIZE), textured(8, *SIZE), SETTINGS)
    assert not alignment.accepted
    assert "needed" in alignment.reason
    assert (alignment.method, alignment.confidence, alignment.overlap_share, len(alignment.overlap)) == (
        "none",
        0,
        0,
        0,
    )
    assert np.array_equal(alignment.homography, np.eye(3))


def test_mirrored_image_is_rejected() -> None:
    before = textured(9, *SIZE)
    assert not align(before, np.ascontiguousarray(before[:, ::-1]), SETTINGS).accepted


def test_small_overlap_is_rejected_with_its_share() -> None:
    before = textured(10, 480, 360)
    alignment = align(before, np.ascontiguousarray(before[100:260, 100:300]), SETTINGS)
    assert not alignment.accepted
    assert "share 19% of the input; 30% needed" in alignment.reason


def test_large_stretch_is_rejected() -> None:
    before = textured(11, *SIZE)
    H = np.array([[1.0, 0, 0], [0, 0.58, 40], [0, 0, 1]])
    alignment = align(before, warped(before, H, SIZE), SETTINGS)
    assert not alignment.accepted
    assert "stretch" in alignment.reason


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 64)])
def test_uniform_images_are_equal_or_rejected(size: tuple[int, int]) -> None:
    grey: RGB = np.full((size[1], size[0], 3), 90, np.uint8)
    same = align(grey, grey, SETTINGS)
    assert same.accepted
    assert same.confidence < 0.2
    other = align(grey, np.full_like(grey, 200), SETTINGS)
    assert not other.accepted
    assert other.reason


def test_smooth_pair_with_changed_tone_is_aligned() -> None:
    smooth = np.asarray(cv2.GaussianBlur(textured(12, *SIZE), (0, 0), 9), np.uint8)
    alignment = align(smooth, np.clip(smooth.astype(int) + 12, 0, 255).astype(np.uint8), SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, np.eye(3), SIZE) < 1


@pytest.mark.parametrize("share", [0.6, 0.75])
def test_crop_is_placed_to_a_fraction_of_a_pixel(share: float) -> None:
    before = textured(14, 480, 360)
    width, height = round(480 * share), round(360 * share)
    after = resize(np.ascontiguousarray(before[10 : 10 + height, 30 : 30 + width]), (480, 360))
    truth = np.array([[1, 0, 30], [0, 1, 10], [0, 0, 1.0]]) @ resize_homography((480, 360), (width, height))
    alignment = align(before, after, SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, truth, (480, 360)) < 0.5
    assert alignment.overlap_share == pytest.approx(share**2, abs=0.01)


@pytest.mark.parametrize("change", ["grey", "negative", "gamma", "noise"])
def test_global_tone_change_does_not_affect_the_homography(change: str) -> None:
    before = textured(15, *SIZE)
    H = np.array([[1.03, 0.01, 3.0], [-0.01, 1.03, -2.0], [0, 0, 1]])
    after = warped(before, H, SIZE)
    if change == "grey":
        after = np.repeat(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    elif change == "negative":
        after = 255 - after
    elif change == "gamma":
        after = (255 * (after / 255) ** 2.2).astype(np.uint8)
    else:
        noise = np.random.default_rng(0).normal(0, 15, after.shape)
        after = np.clip(after + noise, 0, 255).astype(np.uint8)
    alignment = align(before, after, SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, inverse(H), SIZE) < 0.7


@pytest.mark.parametrize("style", ["snow", "smooth", "poster", "unordered inks"])
def test_stylised_image_is_aligned_by_shapes_and_tones(style: str) -> None:
    size = 640, 480
    before = resize(textured(0, 160, 120), size)
    H = np.array([[1.03, 0.01, 6], [-0.008, 0.98, -5], [0, 0, 1]])
    after = warped(before, H, size)
    grey = cv2.GaussianBlur(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
    level = np.digitize(grey, np.percentile(grey, (25, 55, 80)))
    inks = np.array([(24, 20, 60), (200, 40, 90), (250, 170, 40), (250, 240, 210)], np.uint8)
    if style == "snow":
        after[np.random.default_rng(1).random(level.shape) > 0.88] = 255
    elif style == "smooth":
        after = np.asarray(cv2.medianBlur(after, 21), np.uint8)
    else:
        after = (inks if style == "poster" else inks[[3, 0, 2, 1]])[level]
    alignment = align(before, after, SETTINGS)
    assert alignment.accepted
    assert corner_error(alignment, inverse(H), size) < 1.5


def test_almost_completely_replaced_image_is_rejected() -> None:
    before = textured(16, *SIZE)
    kept = box(before, 0.4, 0.4, 0.6, 0.6)
    alignment = align(before, np.where(kept[..., None], before, textured(17, *SIZE)), SETTINGS)
    assert not alignment.accepted
    assert "needed" in alignment.reason


def test_min_confidence_is_a_setting_in_the_reason() -> None:
    before = textured(18, *SIZE)
    after = np.where(box(before, 0.0, 0.0, 0.5, 1.0)[..., None], textured(19, *SIZE), before)
    alignment = align(before, after, SETTINGS)
    assert alignment.accepted
    strict = align(before, after, AlignSettings(min_confidence=1.0))
    assert not strict.accepted
    assert f"confidence of {alignment.confidence:.2f}; 1 needed" in strict.reason


@pytest.mark.parametrize("one", [(1, 1), (1, 300), (40, 3), (64, 64), (700, 20)])
@pytest.mark.parametrize("other", [(1, 1), (300, 1), (64, 64)])
def test_any_image_sizes_give_finite_numbers(one: tuple[int, int], other: tuple[int, int]) -> None:
    alignment = align(textured(20, *one), textured(20, *other), SETTINGS)
    assert np.isfinite(alignment.homography).all()
    assert np.isfinite(alignment.overlap).all()
    assert np.isfinite([alignment.confidence, alignment.residual_px, alignment.overlap_share]).all()
    assert alignment.accepted or alignment.reason


def test_number_of_threads_does_not_affect_the_result() -> None:
    before = textured(21, 480, 360)
    after = warped(before, np.array([[1.02, 0.01, 2.0], [-0.01, 0.99, 1.0], [3e-5, 0, 1]]), (480, 360))
    threads = cv2.getNumThreads()
    alignments = []
    try:
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            alignments.append(align(before, after, SETTINGS))
    finally:
        cv2.setNumThreads(threads)
    assert all(np.array_equal(one.homography, alignments[0].homography) for one in alignments)
    assert len({one.confidence for one in alignments}) == 1


def test_result_is_deterministic() -> None:
    before = textured(13, *SIZE)
    after = warped(before, np.array([[1.02, 0.01, 2.0], [-0.01, 0.99, 1.0], [3e-5, 0, 1]]), SIZE)
    one, other = (align(before, after, SETTINGS) for _ in range(2))
    for name in Alignment.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(other, name))
