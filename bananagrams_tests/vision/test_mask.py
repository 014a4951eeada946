from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bananagrams_assets.config import MaskSettings
from bananagrams_assets.vision.geometry import frame_corners, overlap_polygon, resize_homography
from bananagrams_assets.vision.images import RGB, Mask, decode, encode_jpeg
from bananagrams_assets.vision.mask import EditMask, edit_mask, local_confidence, mask_evidence
from bananagrams_assets.vision.mask_refinement import (
    add_touching_components,
    close_swap_gaps,
    enlarge_mask,
    extend_into_border,
    fill_gaps,
    hysteresis,
    lost_detail,
    open_and_close,
    remove_faint_lines,
    remove_small_components,
    thin_strokes,
)
from bananagrams_assets.vision.tone import detail_similarity, match_tone
from bananagrams_tests.vision.images import box, iou, textured, warped

SETTINGS = MaskSettings()


def mask_aligned(
    before: RGB, after: RGB, scope: str = "local", mask_settings: MaskSettings = SETTINGS
) -> EditMask:
    """Mask a pair that is already aligned."""
    return edit_mask(
        before, after, np.eye(3), frame_corners((before.shape[1], before.shape[0])), mask_settings, scope
    )


def redrawn(image: RGB) -> RGB:
    """Redraw an image like an editor with a light hand: changed tone, noise and JPEG."""
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    toned = 255 * (image / 255) ** 0.93 * [1.02, 1.0, 0.97] + 3
    return decode(encode_jpeg(np.clip(toned + noise, 0, 255).astype(np.uint8), 90), 10**7)


def test_identical_pair_has_no_edit() -> None:
    result = mask_aligned(textured(1), textured(1))
    assert (result.verdict, result.is_global, result.area, result.components) == ("nothing", False, 0, 0)
    assert not result.mask.any()
    assert result.confidence <= 0.2
    assert result.difference.max() < 1


def test_pasted_patch_is_found() -> None:
    before = textured(2, 320, 240)
    truth = box(before, 0.3, 0.25, 0.6, 0.7)
    result = mask_aligned(before, np.where(truth[..., None], textured(3, 320, 240), before))
    assert result.verdict == "local"
    assert result.components == 1
    assert iou(result.mask, truth) > 0.9
    assert result.area == pytest.approx(truth.mean(), rel=0.1)
    assert result.confidence > 0.7


def test_patch_is_found_in_a_redrawn_image() -> None:
    before = cv2.GaussianBlur(textured(4, 320, 240), (0, 0), 1.0).astype(np.uint8)
    truth = box(before, 0.5, 0.2, 0.8, 0.6)
    result = mask_aligned(
        before, redrawn(np.where(truth[..., None], np.array([220, 40, 30], np.uint8), before))
    )
    assert result.verdict == "local"
    assert iou(result.mask, truth) > 0.9


@pytest.mark.parametrize("scope", ["global", ""])
def test_new_tone_is_a_global_edit(scope: str) -> None:
    before = textured(5)
    after = np.clip(before * [1.25, 1.0, 0.6] + [20, 5, -5], 0, 255).astype(np.uint8)
    result = mask_aligned(before, after, scope)
    assert (result.verdict, result.is_global, result.area) == ("global", True, 1)
    assert result.mask.all()


def test_light_tone_change_is_global_only_for_a_global_instruction() -> None:
    before = textured(6)
    after = (before * 0.86 + 18.0).astype(np.uint8)
    assert mask_aligned(before, after, "global").verdict == "global"
    assert mask_aligned(before, after, "local").verdict == "nothing"


def test_global_instruction_without_a_change_gives_nothing() -> None:
    assert mask_aligned(textured(7), textured(7), "global").verdict == "nothing"


def test_redrawn_image_is_global_without_a_known_scope() -> None:
    before = textured(8)
    grey = cv2.cvtColor(before, cv2.COLOR_RGB2GRAY)
    lines = np.where(cv2.Canny(grey, 60, 120) > 0, np.uint8(20), np.uint8(245))
    assert mask_aligned(before, np.repeat(lines[..., None], 3, axis=2), "").verdict == "global"


def test_thin_text_keeps_its_gaps_open() -> None:
    before = cv2.GaussianBlur(textured(9, 400, 200), (0, 0), 3.0).astype(np.uint8)
    ink = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(ink, "OPEN 24", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2.0, 255, 4, cv2.LINE_AA)
    after = np.where(ink[..., None] > 127, np.uint8(255), before)
    result = mask_aligned(before, redrawn(after))
    truth = ink > 127
    assert result.verdict == "local"
    assert (result.mask & truth).sum() > 0.95 * truth.sum()
    assert iou(result.mask, truth) > 0.6
    parts, _ = cv2.connectedComponents((~result.mask).astype(np.uint8), connectivity=4)
    assert parts - 1 >= 1 + 3  # the background and the insides of O, P and 4


def test_gaps_of_small_letters_stay_open_despite_jpeg_colour_bleeding() -> None:
    before = np.full((480, 640, 3), 235, np.uint8)
    cv2.circle(before, (320, 240), 150, (90, 120, 90), -1)
    ink = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(ink, "Half price today", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 1, cv2.LINE_AA)
    after = np.where(ink[..., None] > 127, np.array([20, 60, 200], np.uint8), before)
    result = mask_aligned(before, redrawn(after))
    assert result.verdict == "local"
    assert iou(result.mask, ink > 127) > 0.7


def test_thin_strokes_are_thin_and_belong_to_small_components() -> None:
    clear = np.zeros((100, 100), bool)
    clear[10:12, 10:60] = clear[30:50, 10:60] = clear[60:98, 10:12] = clear[60:62, 10:60] = True
    expected = np.zeros_like(clear)
    expected[10:12, 10:60] = True
    assert np.array_equal(thin_strokes(clear, clear, 5, 20), expected)


def test_faint_patch_is_kept_and_faint_line_is_not() -> None:
    difference = np.zeros((60, 60), np.float32)
    difference[10:30, 10:30] = difference[40:42, 5:55] = 12
    assert np.array_equal(hysteresis(difference, 3.0, 15.0), (difference > 0) & (np.arange(60) < 35)[:, None])
    difference[41, 30] = 16
    assert np.array_equal(hysteresis(difference, 3.0, 15.0), difference > 0)


def test_only_lines_fainter_than_most_of_the_mask_are_removed() -> None:
    difference = np.zeros((100, 100), np.float32)
    difference[10:40, 10:40] = 40
    difference[50:53, 10:90] = 35
    difference[60:75, 10:30] = 15
    expected = difference > 0
    difference[90:93, 10:90] = 15
    assert np.array_equal(remove_faint_lines(difference > 0, difference), expected)
    faint = difference * (difference < 20)
    assert np.array_equal(remove_faint_lines(faint > 0, faint), faint > 0)


def test_gaps_are_filled_in_large_edits_only() -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:120] = True
    gaps = mask.copy()
    gaps[60:68, 60:68] = gaps[150:160, 90:95] = False
    assert np.array_equal(fill_gaps(gaps), mask)
    ring = np.zeros_like(mask)
    ring[80:100, 150:164] = True
    ring[84:96, 154:160] = False
    assert np.array_equal(fill_gaps(ring), ring)
    window = mask.copy()
    window[50:90, 40:80] = False
    assert np.array_equal(fill_gaps(window), window)


def test_blurring_loses_detail_and_redrawing_does_not() -> None:
    before = textured(3, 400, 300)
    blurred = np.asarray(cv2.GaussianBlur(before, (0, 0), 12), np.uint8)
    background = ~box(before, 0.3, 0.3, 0.7, 0.7)
    lost = lost_detail(before, np.where(background[..., None], blurred, redrawn(before)))
    assert not lost[~background].any()
    assert lost.sum() > 0.6 * background.sum()
    assert not lost_detail(before, redrawn(before)).any()


def test_only_touching_components_are_added() -> None:
    mask, more = np.zeros((2, 20, 20), bool)
    mask[2:5, 2:5] = True
    more[5:9, 5:9] = more[12:16, 12:16] = True
    expected = mask | more
    expected[12:16, 12:16] = False
    assert np.array_equal(add_touching_components(mask, more), expected)


def test_gaps_between_swapped_letters_are_closed_except_background() -> None:
    before = np.full((60, 120, 3), (30, 60, 160), np.uint8)
    after = before.copy()
    before[20:40, 20:34] = after[20:40, 31:45] = 240
    before[20:40, 50:60] = after[20:40, 63:73] = 240
    changed = (before != after).any(axis=2)
    result = close_swap_gaps(changed, before, after)
    assert result[22:38, 31:34].all()
    assert not result[:, 60:63].any()
    plain = np.full_like(before, 30)
    assert np.array_equal(close_swap_gaps(changed, plain, after), changed)


def test_half_pixel_shift_is_no_edit() -> None:
    before = cv2.GaussianBlur(textured(10), (0, 0), 0.8).astype(np.uint8)
    after = warped(before, np.array([[1, 0, 0.5], [0, 1, -0.5], [0, 0, 1.0]]), (240, 180))
    assert mask_aligned(before, after).area < 0.01


def test_mask_stays_inside_the_overlap() -> None:
    before = textured(11, 240, 180)
    after = np.ascontiguousarray(before[:, 60:])
    H = np.array([[1, 0, 60], [0, 1, 0], [0, 0, 1.0]])
    overlap = overlap_polygon(H, (180, 180), (240, 180))
    tone = edit_mask(before, np.clip(after * 0.5, 0, 255).astype(np.uint8), H, overlap, SETTINGS, "global")
    assert tone.mask[:, 60:].all()
    assert not tone.mask[:, :60].any()
    patched = after.copy()
    patched[40:120, 80:140] = [250, 20, 20]
    local = edit_mask(before, patched, H, overlap, SETTINGS, "local")
    assert not local.mask[:, :64].any()
    assert not local.difference[:, :60].any()
    assert iou(local.mask, np.pad(np.any(patched != after, axis=2), ((0, 0), (60, 0)))) > 0.9


def test_mask_has_the_size_of_the_input() -> None:
    before = textured(12, 400, 300)
    truth = box(before, 0.2, 0.2, 0.5, 0.6)
    after = cv2.resize(
        np.where(truth[..., None], np.array([10, 240, 90], np.uint8), before),
        (520, 360),
        interpolation=cv2.INTER_AREA,
    ).astype(np.uint8)
    mask_settings = MaskSettings(working_side_px=200)
    result = edit_mask(
        before,
        after,
        resize_homography((520, 360), (400, 300)),
        frame_corners((400, 300)),
        mask_settings,
        "local",
    )
    assert result.mask.shape == result.difference.shape == (300, 400)
    assert iou(result.mask, truth) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (40, 30)])
@pytest.mark.parametrize("scope", ["local", "global", "geometric", ""])
def test_uniform_images_give_an_empty_mask(size: tuple[int, int], scope: str) -> None:
    grey = np.full((size[1], size[0], 3), 77, np.uint8)
    result = mask_aligned(grey, grey, scope)
    assert result.verdict == "nothing"
    assert not result.mask.any()
    assert np.isfinite([result.confidence, result.noise, result.area]).all()
    assert result.confidence <= 0.2 or scope == "geometric"


def test_no_overlap_gives_an_empty_mask_with_zero_confidence() -> None:
    result = edit_mask(textured(1), textured(2), np.eye(3), np.empty((0, 2)), SETTINGS, "global")
    assert (result.verdict, result.area, result.confidence) == ("nothing", 0, 0)
    assert not result.mask.any()


@given(
    pair=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda size: st.tuples(*[npst.arrays(np.uint8, (*size, 3))] * 2)
    ),
    scope=st.sampled_from(["local", "global", "geometric", ""]),
)
@settings(deadline=None)
def test_any_images_give_finite_numbers(pair: tuple[RGB, RGB], scope: str) -> None:
    result = mask_aligned(*pair, scope)
    assert result.mask.shape == pair[0].shape[:2]
    assert np.isfinite(result.difference).all()
    assert 0 <= result.confidence <= 1
    assert 0 <= result.area <= 1
    assert result.is_global == (result.verdict == "global")
    assert result.mask.any() == (result.verdict != "nothing")


def test_result_is_deterministic() -> None:
    before = textured(13)
    after = redrawn(np.where(box(before, 0.1, 0.1, 0.4, 0.5)[..., None], textured(14), before))
    one, other = mask_aligned(before, after), mask_aligned(before, after)
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(one.difference, other.difference)
    assert (one.confidence, one.noise) == (other.confidence, other.noise)


def test_tone_fit_inverts_a_curve_despite_an_edit() -> None:
    before = textured(15)
    truth = box(before, 0, 0, 0.4, 1)
    toned = np.clip(255 * (before / 255) ** 1.3 * [0.9, 1.0, 1.05] + 6, 0, 255).astype(np.uint8)
    after = np.where(truth[..., None], np.uint8(250), toned)
    tone = match_tone(before, after, np.ones(truth.shape, bool))
    assert np.abs(tone.image.astype(np.int16) - before)[~truth].mean() < 2.5
    assert tone.unchanged[~truth].mean() > 0.9
    assert tone.unchanged[truth].mean() < 0.1


def test_enlarged_mask_has_subpixel_outline() -> None:
    width = 40
    edge = np.clip((np.arange(width) - 18.7) * 20 + 28, 0, 100).astype(np.float32)  # its level at 18.7
    difference = np.tile(edge, (20, 1))
    mask = difference >= 28
    large = enlarge_mask(mask, difference, 3.0, (4 * width, 80))
    assert large.shape == (80, 160)
    assert np.abs(large.argmax(axis=1) - 4 * 19.2).max() <= 2
    assert not enlarge_mask(np.zeros_like(mask), difference, 3.0, (160, 80)).any()


def test_confidence_falls_with_lower_contrast_and_more_components() -> None:
    valid = np.ones((100, 100), bool)
    mask = np.zeros_like(valid)
    mask[20:60, 20:60] = True

    def confidence(contrast: float, components: int, mask: Mask = mask) -> float:
        difference = np.where(mask, np.float32(contrast), np.float32(0.5))
        return local_confidence(mask_evidence(mask, valid, difference, 4.0, 0.7, components))

    assert confidence(40, 1) > 0.85
    assert confidence(40, 1) > confidence(6, 1)
    assert confidence(40, 1) > confidence(40, 30)
    specks = np.zeros_like(valid)
    specks[::9, ::9] = True
    assert confidence(6, 144, specks) < 0.5


def test_hysteresis_keeps_only_weak_pixels_that_touch_strong_ones() -> None:
    difference = np.array([[5, 5, 12, 0, 5, 5, 0]], np.float32)
    assert hysteresis(difference, 4, 10).tolist() == [[True, True, True, False, False, False, False]]


def test_small_components_are_removed_and_the_others_counted() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = mask[12:18, 12:18] = mask[0, 19] = True
    kept, count = remove_small_components(mask, 0.01)
    assert count == 2
    assert kept.sum() == 72


def test_closing_fills_only_pixels_above_the_noise() -> None:
    mask = np.ones((15, 15), bool)
    mask[7, 6:9] = False
    above = np.zeros_like(mask)
    above[7, 7] = True
    closed = open_and_close(mask, above, 1, 5)
    assert closed[7].tolist() == [True] * 6 + [False, True, False] + [True] * 6


def test_edit_at_the_ignored_border_is_extended_into_it() -> None:
    valid = np.zeros((12, 20), bool)
    valid[:, 4:] = True
    mask = valid & (np.arange(12)[:, None] >= 6)
    whole = extend_into_border(mask, valid, ~valid)
    assert whole[6:].all()
    assert not whole[:6].any()


def test_thin_strokes_stay_thin_above_the_working_size() -> None:
    before = textured(31, 1024, 768)
    letters = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(letters, "Half price today", (200, 400), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 255, 3)
    truth = letters > 127
    result = mask_aligned(before, np.where(truth[..., None], np.array([250, 30, 200], np.uint8), before))
    assert result.verdict == "local"
    assert iou(result.mask, truth) > 0.8


def test_new_background_of_the_old_colour_is_not_mistaken_for_a_light_change() -> None:
    before = textured(32, 320, 240)
    truth = box(before, 0.0, 0.0, 1.0, 0.55)
    lighter = np.clip(textured(33, 320, 240).astype(np.int16) + 12, 0, 255).astype(np.uint8)
    assert detail_similarity(before, before, (64, 48)).min() > 0.99
    assert detail_similarity(before, lighter, (64, 48)).mean() < 0.1
    result = mask_aligned(before, np.where(truth[..., None], lighter, before))
    assert result.verdict == "local"
    assert iou(result.mask, truth) > 0.85
