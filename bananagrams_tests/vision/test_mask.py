from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bananagrams_assets.config import MaskSettings
from bananagrams_assets.vision.geometry import frame, overlap_polygon, resizing
from bananagrams_assets.vision.images import RGB, Mask, encode_jpeg
from bananagrams_assets.vision.images import decode as decoded
from bananagrams_assets.vision.mask import (
    EditMask,
    continued,
    enlarged,
    gaps_filled,
    hysteresis,
    joined,
    local_confidence,
    lost_detail,
    mask_evidence,
    opened_and_closed,
    strokes,
    traded_gaps_closed,
    without_faint_lines,
    without_specks,
)
from bananagrams_assets.vision.mask import edit_mask as masked
from bananagrams_assets.vision.tone import alike_detail, explain_tone
from bananagrams_tests.vision.images import box, iou, moved, textured

SETTINGS = MaskSettings()


def in_place(before: RGB, after: RGB, scope: str = "local", config: MaskSettings = SETTINGS) -> EditMask:
    """The mask of a pair that is aligned as it stands."""
    return masked(before, after, np.eye(3), frame((before.shape[1], before.shape[0])), config, scope)


def redrawn(image: RGB) -> RGB:
    """As a light editor leaves it: another tone, noise, JPEG."""
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    toned = 255 * (image / 255) ** 0.93 * [1.02, 1.0, 0.97] + 3
    return decoded(encode_jpeg(np.clip(toned + noise, 0, 255).astype(np.uint8), 90), 10**7)


def test_an_identical_pair_holds_no_edit() -> None:
    found = in_place(textured(1), textured(1))
    assert (found.verdict, found.is_global, found.area, found.components) == ("nothing", False, 0, 0)
    assert not found.mask.any()
    assert found.confidence <= 0.2
    assert found.difference.max() < 1


def test_a_pasted_patch_is_found_where_it_is() -> None:
    before = textured(2, 320, 240)
    truth = box(before, 0.3, 0.25, 0.6, 0.7)
    found = in_place(before, np.where(truth[..., None], textured(3, 320, 240), before))
    assert found.verdict == "local"
    assert found.components == 1
    assert iou(found.mask, truth) > 0.9
    assert found.area == pytest.approx(truth.mean(), rel=0.1)
    assert found.confidence > 0.7


def test_a_patch_is_found_in_a_image_that_was_redrawn() -> None:
    before = cv2.GaussianBlur(textured(4, 320, 240), (0, 0), 1.0).astype(np.uint8)
    truth = box(before, 0.5, 0.2, 0.8, 0.6)
    found = in_place(before, redrawn(np.where(truth[..., None], np.array([220, 40, 30], np.uint8), before)))
    assert found.verdict == "local"
    assert iou(found.mask, truth) > 0.9


@pytest.mark.parametrize("scope", ["global", ""])
def test_a_new_tone_is_a_global_edit_of_the_whole_overlap(scope: str) -> None:
    before = textured(5)
    after = np.clip(before * [1.25, 1.0, 0.6] + [20, 5, -5], 0, 255).astype(np.uint8)
    found = in_place(before, after, scope)
    assert (found.verdict, found.is_global, found.area) == ("global", True, 1)
    assert found.mask.all()


def test_a_light_change_of_tone_is_global_only_where_one_was_instructed() -> None:
    before = textured(6)
    after = (before * 0.86 + 18.0).astype(np.uint8)
    assert in_place(before, after, "global").verdict == "global"
    assert in_place(before, after, "local").verdict == "nothing"


def test_an_instructed_global_edit_that_was_not_made_is_not_believed() -> None:
    assert in_place(textured(7), textured(7), "global").verdict == "nothing"


def test_a_image_drawn_anew_is_global_without_being_told() -> None:
    before = textured(8)
    grey = cv2.cvtColor(before, cv2.COLOR_RGB2GRAY)
    lines = np.where(cv2.Canny(grey, 60, 120) > 0, np.uint8(20), np.uint8(245))
    assert in_place(before, np.repeat(lines[..., None], 3, axis=2), "").verdict == "global"


def test_thin_text_survives_with_its_gaps_open() -> None:
    before = cv2.GaussianBlur(textured(9, 400, 200), (0, 0), 3.0).astype(np.uint8)
    ink = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(ink, "OPEN 24", (40, 120), cv2.FONT_HERSHEY_SIMPLEX, 2.0, 255, 4, cv2.LINE_AA)
    after = np.where(ink[..., None] > 127, np.uint8(255), before)
    found = in_place(before, redrawn(after))
    truth = ink > 127
    assert found.verdict == "local"
    assert (found.mask & truth).sum() > 0.95 * truth.sum()
    assert iou(found.mask, truth) > 0.6
    parts, _ = cv2.connectedComponents((~found.mask).astype(np.uint8), connectivity=4)
    assert parts - 1 >= 1 + 3  # the ground, and the insides of O, P and 4


def test_the_gaps_of_small_letters_stay_open_where_jpeg_lets_colour_bleed_into_them() -> None:
    before = np.full((480, 640, 3), 235, np.uint8)
    cv2.circle(before, (320, 240), 150, (90, 120, 90), -1)
    ink = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(ink, "Half price today", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 1, cv2.LINE_AA)
    after = np.where(ink[..., None] > 127, np.array([20, 60, 200], np.uint8), before)
    found = in_place(before, redrawn(after))
    assert found.verdict == "local"
    assert iou(found.mask, ink > 127) > 0.7


def test_strokes_are_thin_and_of_small_components_alone() -> None:
    clear = np.zeros((100, 100), bool)
    clear[10:12, 10:60] = clear[30:50, 10:60] = clear[60:98, 10:12] = clear[60:62, 10:60] = True
    expected = np.zeros_like(clear)
    expected[10:12, 10:60] = True
    assert np.array_equal(strokes(clear, clear, 5, 20), expected)


def test_a_faint_patch_is_an_edit_and_a_faint_line_is_not() -> None:
    difference = np.zeros((60, 60), np.float32)
    difference[10:30, 10:30] = difference[40:42, 5:55] = 12
    assert np.array_equal(hysteresis(difference, 3.0, 15.0), (difference > 0) & (np.arange(60) < 35)[:, None])
    difference[41, 30] = 16
    assert np.array_equal(hysteresis(difference, 3.0, 15.0), difference > 0)


def test_lines_fainter_than_most_of_the_mask_go_and_faint_patches_and_other_lines_stay() -> None:
    difference = np.zeros((100, 100), np.float32)
    difference[10:40, 10:40] = 40
    difference[50:53, 10:90] = 35
    difference[60:75, 10:30] = 15
    expected = difference > 0
    difference[90:93, 10:90] = 15
    assert np.array_equal(without_faint_lines(difference > 0, difference), expected)
    faint = difference * (difference < 20)
    assert np.array_equal(without_faint_lines(faint > 0, faint), faint > 0)


def test_gaps_in_a_large_edit_are_filled_and_those_between_strokes_are_not() -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:120] = True
    gaps = mask.copy()
    gaps[60:68, 60:68] = gaps[150:160, 90:95] = False
    assert np.array_equal(gaps_filled(gaps), mask)
    ring = np.zeros_like(mask)
    ring[80:100, 150:164] = True
    ring[84:96, 154:160] = False
    assert np.array_equal(gaps_filled(ring), ring)
    window = mask.copy()
    window[50:90, 40:80] = False
    assert np.array_equal(gaps_filled(window), window)


def test_detail_is_lost_where_a_image_is_out_of_focus_and_not_where_it_is_redrawn() -> None:
    before = textured(3, 400, 300)
    blurred = np.asarray(cv2.GaussianBlur(before, (0, 0), 12), np.uint8)
    ground = ~box(before, 0.3, 0.3, 0.7, 0.7)
    lost = lost_detail(before, np.where(ground[..., None], blurred, redrawn(before)))
    assert not lost[~ground].any()
    assert lost.sum() > 0.6 * ground.sum()
    assert not lost_detail(before, redrawn(before)).any()


def test_what_touches_a_mask_joins_it_and_what_lies_apart_does_not() -> None:
    mask, more = np.zeros((2, 20, 20), bool)
    mask[2:5, 2:5] = True
    more[5:9, 5:9] = more[12:16, 12:16] = True
    expected = mask | more
    expected[12:16, 12:16] = False
    assert np.array_equal(joined(mask, more), expected)


def test_where_letters_give_way_to_letters_their_gaps_close_and_the_grounds_stay_open() -> None:
    before = np.full((60, 120, 3), (30, 60, 160), np.uint8)
    after = before.copy()
    before[20:40, 20:34] = after[20:40, 31:45] = 240
    before[20:40, 50:60] = after[20:40, 63:73] = 240
    changed = (before != after).any(axis=2)
    found = traded_gaps_closed(changed, before, after)
    assert found[22:38, 31:34].all()
    assert not found[:, 60:63].any()
    plain = np.full_like(before, 30)
    assert np.array_equal(traded_gaps_closed(changed, plain, after), changed)


def test_movement_by_half_a_pixel_is_no_edit() -> None:
    before = cv2.GaussianBlur(textured(10), (0, 0), 0.8).astype(np.uint8)
    after = moved(before, np.array([[1, 0, 0.5], [0, 1, -0.5], [0, 0, 1.0]]), (240, 180))
    assert in_place(before, after).area < 0.01


def test_outside_the_overlap_nothing_is_claimed() -> None:
    before = textured(11, 240, 180)
    after = np.ascontiguousarray(before[:, 60:])
    H = np.array([[1, 0, 60], [0, 1, 0], [0, 0, 1.0]])
    overlap = overlap_polygon(H, (180, 180), (240, 180))
    tone = masked(before, np.clip(after * 0.5, 0, 255).astype(np.uint8), H, overlap, SETTINGS, "global")
    assert tone.mask[:, 60:].all()
    assert not tone.mask[:, :60].any()
    patched = after.copy()
    patched[40:120, 80:140] = [250, 20, 20]
    local = masked(before, patched, H, overlap, SETTINGS, "local")
    assert not local.mask[:, :64].any()
    assert not local.difference[:, :60].any()
    assert iou(local.mask, np.pad(np.any(patched != after, axis=2), ((0, 0), (60, 0)))) > 0.9


def test_the_mask_has_the_inputs_size_whatever_the_sizes_are() -> None:
    before = textured(12, 400, 300)
    truth = box(before, 0.2, 0.2, 0.5, 0.6)
    after = cv2.resize(
        np.where(truth[..., None], np.array([10, 240, 90], np.uint8), before),
        (520, 360),
        interpolation=cv2.INTER_AREA,
    ).astype(np.uint8)
    config = MaskSettings(working_side_px=200)
    found = masked(before, after, resizing((520, 360), (400, 300)), frame((400, 300)), config, "local")
    assert found.mask.shape == found.difference.shape == (300, 400)
    assert iou(found.mask, truth) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (40, 30)])
@pytest.mark.parametrize("scope", ["local", "global", "geometric", ""])
def test_images_of_one_colour_give_an_empty_mask(size: tuple[int, int], scope: str) -> None:
    grey = np.full((size[1], size[0], 3), 77, np.uint8)
    found = in_place(grey, grey, scope)
    assert found.verdict == "nothing"
    assert not found.mask.any()
    assert np.isfinite([found.confidence, found.noise, found.area]).all()
    assert found.confidence <= 0.2 or scope == "geometric"


def test_no_overlap_gives_an_empty_mask_without_confidence() -> None:
    found = masked(textured(1), textured(2), np.eye(3), np.empty((0, 2)), SETTINGS, "global")
    assert (found.verdict, found.area, found.confidence) == ("nothing", 0, 0)
    assert not found.mask.any()


@given(
    pair=st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
        lambda size: st.tuples(*[npst.arrays(np.uint8, (*size, 3))] * 2)
    ),
    scope=st.sampled_from(["local", "global", "geometric", ""]),
)
@settings(deadline=None)
def test_any_two_images_give_finite_numbers(pair: tuple[RGB, RGB], scope: str) -> None:
    found = in_place(*pair, scope)
    assert found.mask.shape == pair[0].shape[:2]
    assert np.isfinite(found.difference).all()
    assert 0 <= found.confidence <= 1
    assert 0 <= found.area <= 1
    assert found.is_global == (found.verdict == "global")
    assert found.mask.any() == (found.verdict != "nothing")


def test_twice_gives_the_same() -> None:
    before = textured(13)
    after = redrawn(np.where(box(before, 0.1, 0.1, 0.4, 0.5)[..., None], textured(14), before))
    one, other = in_place(before, after), in_place(before, after)
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(one.difference, other.difference)
    assert (one.confidence, one.noise) == (other.confidence, other.noise)


def test_the_tone_fit_undoes_a_curve_and_is_not_pulled_by_an_edit() -> None:
    before = textured(15)
    truth = box(before, 0, 0, 0.4, 1)
    toned = np.clip(255 * (before / 255) ** 1.3 * [0.9, 1.0, 1.05] + 6, 0, 255).astype(np.uint8)
    after = np.where(truth[..., None], np.uint8(250), toned)
    tone = explain_tone(before, after, np.ones(truth.shape, bool))
    assert np.abs(tone.image.astype(np.int16) - before)[~truth].mean() < 2.5
    assert tone.unchanged[~truth].mean() > 0.9
    assert tone.unchanged[truth].mean() < 0.1


def test_the_outline_of_an_enlarged_mask_lies_between_pixels() -> None:
    width = 40
    edge = np.clip((np.arange(width) - 18.7) * 20 + 28, 0, 100).astype(np.float32)  # its level at 18.7
    difference = np.tile(edge, (20, 1))
    mask = difference >= 28
    large = enlarged(mask, difference, 3.0, (4 * width, 80))
    assert large.shape == (80, 160)
    assert np.abs(large.argmax(axis=1) - 4 * 19.2).max() <= 2
    assert not enlarged(np.zeros_like(mask), difference, 3.0, (160, 80)).any()


def test_confidence_falls_with_contrast_and_with_pieces() -> None:
    known = np.ones((100, 100), bool)
    mask = np.zeros_like(known)
    mask[20:60, 20:60] = True

    def confidence(contrast: float, components: int, mask: Mask = mask) -> float:
        difference = np.where(mask, np.float32(contrast), np.float32(0.5))
        return local_confidence(mask_evidence(mask, known, difference, 4.0, 0.7, components))

    assert confidence(40, 1) > 0.85
    assert confidence(40, 1) > confidence(6, 1)
    assert confidence(40, 1) > confidence(40, 30)
    specks = np.zeros_like(known)
    specks[::9, ::9] = True
    assert confidence(6, 144, specks) < 0.5


def test_hysteresis_keeps_weak_pixels_only_beside_strong_ones() -> None:
    difference = np.array([[5, 5, 12, 0, 5, 5, 0]], np.float32)
    assert hysteresis(difference, 4, 10).tolist() == [[True, True, True, False, False, False, False]]


def test_specks_go_and_the_rest_is_counted() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = mask[12:18, 12:18] = mask[0, 19] = True
    kept, count = without_specks(mask, 0.01)
    assert count == 2
    assert kept.sum() == 72


def test_closing_fills_only_what_is_above_the_noise() -> None:
    mask = np.ones((15, 15), bool)
    mask[7, 6:9] = False
    above = np.zeros_like(mask)
    above[7, 7] = True
    closed = opened_and_closed(mask, above, 1, 5)
    assert closed[7].tolist() == [True] * 6 + [False, True, False] + [True] * 6


def test_an_edit_that_reaches_the_ignored_border_goes_on_over_it() -> None:
    known = np.zeros((12, 20), bool)
    known[:, 4:] = True
    mask = known & (np.arange(12)[:, None] >= 6)
    whole = continued(mask, known, ~known)
    assert whole[6:].all()
    assert not whole[:6].any()


def test_thin_strokes_stay_thin_in_a_image_larger_than_the_working_size() -> None:
    before = textured(31, 1024, 768)
    letters = np.zeros(before.shape[:2], np.uint8)
    cv2.putText(letters, "Half price today", (200, 400), cv2.FONT_HERSHEY_SIMPLEX, 1.6, 255, 3)
    truth = letters > 127
    found = in_place(before, np.where(truth[..., None], np.array([250, 30, 200], np.uint8), before))
    assert found.verdict == "local"
    assert iou(found.mask, truth) > 0.8


def test_new_ground_of_the_old_colour_does_not_pass_for_the_old_in_another_light() -> None:
    before = textured(32, 320, 240)
    truth = box(before, 0.0, 0.0, 1.0, 0.55)
    lighter = np.clip(textured(33, 320, 240).astype(np.int16) + 12, 0, 255).astype(np.uint8)
    assert alike_detail(before, before, (64, 48)).min() > 0.99
    assert alike_detail(before, lighter, (64, 48)).mean() < 0.1
    found = in_place(before, np.where(truth[..., None], lighter, before))
    assert found.verdict == "local"
    assert iou(found.mask, truth) > 0.85
