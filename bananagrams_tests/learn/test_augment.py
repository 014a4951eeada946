from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import AugmentSettings
from bananagrams_assets.learn.augment import Plane, augment, can_mirror, mirror_text, names_position

FLIP = AugmentSettings(flip=1, crop=0, color=0, blur=0)
CROP = AugmentSettings(flip=0, crop=0.5, color=0, blur=0)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Move it from the left to the right.", "Move it from the right to the left."),
        ("LEFT half, Right-hand side", "RIGHT half, Left-hand side"),
        ("the leftmost upright cleft bright thing", "the rightmost upright cleft bright thing"),
        ("rotate clockwise", "rotate counterclockwise"),
        ("Turn it anti-clockwise", "Turn it clockwise"),
        ("Remove the dog.", "Remove the dog."),
    ],
)
def test_mirror_text_swaps_sides(text: str, mirrored: str) -> None:
    assert mirror_text(text) == mirrored


@given(st.lists(st.sampled_from(["left", "Right", "LEFT", "clockwise", "counterclockwise", "dog", "the"])))
def test_mirroring_twice_restores_the_text(words: list[str]) -> None:
    text = " ".join(words)
    assert mirror_text(mirror_text(text)) == text


def planes(height: int = 8, width: int = 12) -> tuple[Plane, Plane, Plane]:
    columns = np.arange(width, dtype=np.uint8)
    image = np.broadcast_to(columns[None, :, None] * 20, (height, width, 3)).astype(np.uint8)
    mask = np.broadcast_to(columns < 4, (height, width)).astype(np.uint8)
    valid = np.broadcast_to(columns < 10, (height, width)).astype(np.uint8)
    return image, mask, valid


def test_flip_mirrors_image_mask_valid_and_text() -> None:
    image, mask, valid = planes()
    flipped = augment(image, mask, valid, "Tint the left third.", FLIP, np.random.default_rng(0))
    for before, after in zip((image, mask, valid), flipped[:3], strict=True):
        assert np.array_equal(after, before[:, ::-1])
    assert flipped[3] == "Tint the right third."


@pytest.mark.parametrize(
    "text",
    [
        'Change "left" to "right"',
        "Change \u2018OPEN\u2019 to shut",
        "make it 'stop'",
        "Write HELLO at the top",
        "Make the text in the top left red",
        "Change the sign to read OPEN",
        "Remove what is left of the cake",
        "Fix the lamp right above the table",
        "Take away the leftovers",
    ],
)
def test_no_flip_for_lettering_and_for_left_or_right_in_another_sense(text: str) -> None:
    image, mask, valid = planes()
    same = augment(image, mask, valid, text, FLIP, np.random.default_rng(0))
    assert np.array_equal(same[0], image)
    assert same[3] == text


@pytest.mark.parametrize(
    "text",
    [
        "Make the dog's collar red and the cats' tails blue",
        "Tint the left half of the signal tower",
        "Remove the dog that is left of the door",
    ],
)
def test_sides_and_apostrophes_allow_a_flip(text: str) -> None:
    assert can_mirror(text)


@pytest.mark.parametrize(
    "text", ["the top left", "left half", "in the centre", "the right-most cup", "corners"]
)
def test_no_crop_if_the_text_names_a_position(text: str) -> None:
    assert names_position(text)
    image, mask, valid = planes()
    same = augment(image, mask, valid, text, CROP, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip((image, mask, valid), same[:3], strict=True))


def test_image_and_mask_have_the_same_crop() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 20:40] = 1
    image = np.repeat(mask[..., None] * np.uint8(255), 3, 2)
    for seed in range(20):
        cut, cut_mask, valid, _ = augment(
            image, mask, np.ones_like(mask), "Remove the dog.", CROP, np.random.default_rng(seed)
        )
        assert cut.shape == (64, 64, 3)
        assert valid.all()
        disagree = (cut[..., 0] >= 128) != cut_mask.astype(bool)
        assert disagree.mean() < 0.05  # interpolated edges only


@given(
    st.integers(0, 60), st.integers(0, 60), st.integers(4, 64), st.integers(4, 64), st.integers(0, 2**32 - 1)
)
def test_crop_contains_the_mask(top: int, left: int, height: int, width: int, seed: int) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[top : top + height, left : left + width] = 255
    image = np.repeat(mask[..., None], 3, 2)
    _, cut, _, _ = augment(
        image, mask, np.ones_like(mask), "Remove the dog.", CROP, np.random.default_rng(seed)
    )
    shown = mask.any(1).sum() * mask.any(0).sum()
    # A crop is enlarged: a mask that fits in it grows, a larger one fills it.
    assert cut.sum() / 255 >= 0.8 * min(shown, 32 * 32)


def test_drop_words_empties_the_instruction() -> None:
    image, mask, valid = planes()
    settings = AugmentSettings(flip=0, crop=0, color=0, blur=0, drop_words=1)
    same = augment(image, mask, valid, "Tint the left half.", settings, np.random.default_rng(0))
    assert same[3] == ""
    assert np.array_equal(same[1], mask)


def test_color_changes_only_the_image() -> None:
    image, mask, valid = planes()
    settings = AugmentSettings(flip=0, crop=0, color=0.5, blur=1)
    changed = augment(image, mask, valid, "x", settings, np.random.default_rng(1))
    assert not np.array_equal(changed[0], image)
    assert changed[0].dtype == np.uint8
    assert changed[1] is mask
    assert changed[2] is valid


def test_same_seed_gives_the_same_sample() -> None:
    first, second = (
        augment(*planes(), "Remove the dog.", AugmentSettings(), np.random.default_rng(7)) for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
