from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bananagrams_assets.config import AlignSettings
from bananagrams_assets.vision.align import Alignment, align
from bananagrams_assets.vision.geometry import Floats, frame, normalised, project, resizing
from bananagrams_assets.vision.images import RGB, resize
from bananagrams_tests.vision.images import box, moved, textured

SETTINGS = AlignSettings()
SIZE = (240, 180)


def corner_error(found: Alignment, truth: Floats, size: tuple[int, int]) -> float:
    corners = frame(size)
    return float(np.linalg.norm(project(found.homography, corners) - project(truth, corners), axis=1).max())


def inverse(H: Floats) -> Floats:
    return normalised(np.asarray(np.linalg.inv(H), np.float64))


@st.composite
def small_homographies(draw: st.DrawFn) -> Floats:
    """Input → edited: a few per cent of scale, shear and shift, and a little perspective."""
    a, b, c, d = (draw(st.floats(-0.05, 0.05)) for _ in range(4))
    x, y = draw(st.floats(-10, 10)), draw(st.floats(-8, 8))
    p, q = draw(st.floats(-1e-4, 1e-4)), draw(st.floats(-1e-4, 1e-4))
    return np.array([[1 + a, b, x], [c, 1 + d, y], [p, q, 1]])


@given(H=small_homographies(), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_small_homographies_are_recovered_within_a_pixel(H: Floats, seed: int) -> None:
    before = textured(seed, *SIZE)
    found = align(before, moved(before, H, SIZE), SETTINGS)
    assert found.accepted
    assert corner_error(found, inverse(H), SIZE) < 1
    assert found.homography[2, 2] == 1
    assert 0 <= found.confidence <= 1
    assert (found.overlap >= -0.5).all()
    assert (found.overlap <= np.array(SIZE) - 0.5).all()


@pytest.mark.parametrize("size", [(240, 180), (360, 270), (300, 160), (170, 128)])
def test_a_resize_is_found_as_one_and_exactly(size: tuple[int, int]) -> None:
    before = textured(1, *SIZE)
    found = align(before, resize(before, size), SETTINGS)
    assert (found.accepted, found.method) == (True, "resize")
    assert np.array_equal(found.homography, resizing(size, SIZE))
    assert found.overlap_share == pytest.approx(1)
    assert found.confidence > 0.8


def test_a_crop_is_a_scale_and_knows_its_overlap() -> None:
    before = textured(2, *SIZE)
    after = np.ascontiguousarray(before[30:150, 40:220])
    found = align(before, after, SETTINGS)
    assert (found.accepted, found.method) == (True, "scale")
    assert corner_error(found, np.array([[1, 0, 40], [0, 1, 30], [0, 0, 1.0]]), (180, 120)) < 0.3
    assert found.overlap_share == pytest.approx(180 * 120 / (240 * 180), abs=0.01)


def test_wider_content_keeps_the_whole_input() -> None:
    wide = textured(3, 300, 240)
    before = np.ascontiguousarray(wide[30:210, 30:270])
    found = align(before, wide, SETTINGS)
    assert found.accepted
    assert corner_error(found, np.array([[1, 0, -30], [0, 1, -30], [0, 0, 1.0]]), (300, 240)) < 0.5
    assert found.overlap_share == pytest.approx(1, abs=1e-6)


def test_an_edit_of_a_third_of_the_image_does_not_pull_it() -> None:
    before = textured(4, *SIZE)
    after = np.where(box(before, 0.1, 0.1, 0.6, 0.75)[..., None], textured(5, *SIZE), before)
    H = np.array([[1.03, 0, 3.0], [0, 1.03, -2.0], [0, 0, 1]])
    found = align(before, moved(after, H, SIZE), SETTINGS)
    assert found.accepted
    assert corner_error(found, inverse(H), SIZE) < 1


def test_a_panorama_of_ten_to_one_aligns() -> None:
    before = textured(6, 1600, 160)
    found = align(before, resize(before, (1280, 128)), SETTINGS)
    assert found.accepted
    assert corner_error(found, resizing((1280, 128), (1600, 160)), (1280, 128)) < 1


def test_unrelated_images_are_rejected_in_words() -> None:
    found = align(textured(7, *SIZE), textured(8, *SIZE), SETTINGS)
    assert not found.accepted
    assert "needed" in found.reason
    assert (found.method, found.confidence, found.overlap_share, len(found.overlap)) == ("none", 0, 0, 0)
    assert np.array_equal(found.homography, np.eye(3))


def test_a_mirrored_image_is_rejected() -> None:
    before = textured(9, *SIZE)
    assert not align(before, np.ascontiguousarray(before[:, ::-1]), SETTINGS).accepted


def test_a_small_share_of_the_input_is_rejected_with_the_share() -> None:
    before = textured(10, 480, 360)
    found = align(before, np.ascontiguousarray(before[100:260, 100:300]), SETTINGS)
    assert not found.accepted
    assert "share 19% of the input; 30% needed" in found.reason


def test_a_stretch_beyond_belief_is_rejected() -> None:
    before = textured(11, *SIZE)
    H = np.array([[1.0, 0, 0], [0, 0.58, 40], [0, 0, 1]])
    found = align(before, moved(before, H, SIZE), SETTINGS)
    assert not found.accepted
    assert "stretch" in found.reason


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 64)])
def test_images_of_one_colour_are_equal_or_rejected(size: tuple[int, int]) -> None:
    grey: RGB = np.full((size[1], size[0], 3), 90, np.uint8)
    same = align(grey, grey, SETTINGS)
    assert same.accepted
    assert same.confidence < 0.2
    other = align(grey, np.full_like(grey, 200), SETTINGS)
    assert not other.accepted
    assert other.reason


def test_a_smooth_pair_of_another_tone_is_aligned() -> None:
    smooth = np.asarray(cv2.GaussianBlur(textured(12, *SIZE), (0, 0), 9), np.uint8)
    found = align(smooth, np.clip(smooth.astype(int) + 12, 0, 255).astype(np.uint8), SETTINGS)
    assert found.accepted
    assert corner_error(found, np.eye(3), SIZE) < 1


@pytest.mark.parametrize("share", [0.6, 0.75])
def test_a_crop_is_placed_to_a_fraction_of_a_pixel(share: float) -> None:
    before = textured(14, 480, 360)
    width, height = round(480 * share), round(360 * share)
    after = resize(np.ascontiguousarray(before[10 : 10 + height, 30 : 30 + width]), (480, 360))
    truth = np.array([[1, 0, 30], [0, 1, 10], [0, 0, 1.0]]) @ resizing((480, 360), (width, height))
    found = align(before, after, SETTINGS)
    assert found.accepted
    assert corner_error(found, truth, (480, 360)) < 0.5
    assert found.overlap_share == pytest.approx(share**2, abs=0.01)


@pytest.mark.parametrize("change", ["grey", "negative", "gamma", "noise"])
def test_another_tone_of_the_whole_image_does_not_move_it(change: str) -> None:
    before = textured(15, *SIZE)
    H = np.array([[1.03, 0.01, 3.0], [-0.01, 1.03, -2.0], [0, 0, 1]])
    after = moved(before, H, SIZE)
    if change == "grey":
        after = np.repeat(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    elif change == "negative":
        after = 255 - after
    elif change == "gamma":
        after = (255 * (after / 255) ** 2.2).astype(np.uint8)
    else:
        noise = np.random.default_rng(0).normal(0, 15, after.shape)
        after = np.clip(after + noise, 0, 255).astype(np.uint8)
    found = align(before, after, SETTINGS)
    assert found.accepted
    assert corner_error(found, inverse(H), SIZE) < 0.7


@pytest.mark.parametrize("style", ["snow", "smooth", "poster", "inks without order"])
def test_a_image_drawn_in_another_style_is_found_by_its_shapes_and_tones(style: str) -> None:
    size = 640, 480
    before = resize(textured(0, 160, 120), size)
    H = np.array([[1.03, 0.01, 6], [-0.008, 0.98, -5], [0, 0, 1]])
    after = moved(before, H, size)
    grey = cv2.GaussianBlur(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
    level = np.digitize(grey, np.percentile(grey, (25, 55, 80)))
    inks = np.array([(24, 20, 60), (200, 40, 90), (250, 170, 40), (250, 240, 210)], np.uint8)
    if style == "snow":
        after[np.random.default_rng(1).random(level.shape) > 0.88] = 255
    elif style == "smooth":
        after = np.asarray(cv2.medianBlur(after, 21), np.uint8)
    else:
        after = (inks if style == "poster" else inks[[3, 0, 2, 1]])[level]
    found = align(before, after, SETTINGS)
    assert found.accepted
    assert corner_error(found, inverse(H), size) < 1.5


def test_what_is_left_of_a_image_replaced_almost_whole_is_not_trusted() -> None:
    before = textured(16, *SIZE)
    kept = box(before, 0.4, 0.4, 0.6, 0.6)
    found = align(before, np.where(kept[..., None], before, textured(17, *SIZE)), SETTINGS)
    assert not found.accepted
    assert "needed" in found.reason


def test_the_least_confidence_is_a_setting_and_the_reason_names_it() -> None:
    before = textured(18, *SIZE)
    after = np.where(box(before, 0.0, 0.0, 0.5, 1.0)[..., None], textured(19, *SIZE), before)
    found = align(before, after, SETTINGS)
    assert found.accepted
    strict = align(before, after, AlignSettings(min_confidence=1.0))
    assert not strict.accepted
    assert f"confidence of {found.confidence:.2f}; 1 needed" in strict.reason


@pytest.mark.parametrize("one", [(1, 1), (1, 300), (40, 3), (64, 64), (700, 20)])
@pytest.mark.parametrize("other", [(1, 1), (300, 1), (64, 64)])
def test_images_of_any_size_give_finite_numbers(one: tuple[int, int], other: tuple[int, int]) -> None:
    found = align(textured(20, *one), textured(20, *other), SETTINGS)
    assert np.isfinite(found.homography).all()
    assert np.isfinite(found.overlap).all()
    assert np.isfinite([found.confidence, found.residual_px, found.overlap_share]).all()
    assert found.accepted or found.reason


def test_the_number_of_threads_changes_nothing() -> None:
    before = textured(21, 480, 360)
    after = moved(before, np.array([[1.02, 0.01, 2.0], [-0.01, 0.99, 1.0], [3e-5, 0, 1]]), (480, 360))
    threads = cv2.getNumThreads()
    found = []
    try:
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            found.append(align(before, after, SETTINGS))
    finally:
        cv2.setNumThreads(threads)
    assert all(np.array_equal(one.homography, found[0].homography) for one in found)
    assert len({one.confidence for one in found}) == 1


def test_twice_gives_the_same() -> None:
    before = textured(13, *SIZE)
    after = moved(before, np.array([[1.02, 0.01, 2.0], [-0.01, 0.99, 1.0], [3e-5, 0, 1]]), SIZE)
    one, other = (align(before, after, SETTINGS) for _ in range(2))
    for name in Alignment.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(other, name))
