from __future__ import annotations

import numpy as np
import pytest

from bananagrams_assets.sample.drawn_edits import make_drawn_edit, refer_to, visible_change
from bananagrams_assets.sample.drawn_objects import DrawnObject
from bananagrams_assets.sample.edit import Edit
from bananagrams_assets.sample.photos import RGB, cut_tile, packaged_photos, read_photo
from bananagrams_assets.sample.visibility import Invisible
from bananagrams_assets.sample.vocabulary import COLUMNS, FAMILIES, IN_PLACE, PLACES, REGIONS, ROWS

GLOBAL = {"tone", "vintage", "lighting", "season", "weather", "sketch"}
REGIONAL = ["region color", "region material", "region scene"]


@pytest.fixture(scope="module")
def tile() -> RGB:
    china = next(photo for photo in packaged_photos() if photo.name == "china")
    return cut_tile(read_photo(china.path), (0, 0, 640, 427), 240)


def _make_edits(family: str, tile: RGB, count: int = 6) -> list[Edit]:
    edits: list[Edit] = []
    for seed in range(200):
        try:
            edits.append(make_drawn_edit(family, tile, np.random.default_rng(seed)))
        except Invisible:
            continue
        if len(edits) == count:
            break
    return edits


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_pixels_are_identical_outside_the_mask_and_change_inside_it(family: str, tile: RGB) -> None:
    edits = _make_edits(family, tile)
    assert len(edits) == 6
    for edit in edits:
        assert edit.before.shape == edit.after.shape == tile.shape
        assert edit.before.dtype == edit.after.dtype == np.uint8
        assert edit.mask.shape == tile.shape[:2]
        assert edit.mask.dtype == np.bool_
        assert edit.is_global == (family in GLOBAL)
        if edit.is_global:
            assert edit.mask.all()
            assert visible_change(edit.before, edit.after).mean() > 0.75
        else:
            assert np.array_equal(edit.before[~edit.mask], edit.after[~edit.mask])
            # Small holes are filled; the rest of the mask changes visibly.
            assert visible_change(edit.before, edit.after)[edit.mask].mean() > 0.93
            assert 0.005 < edit.mask.mean() < 0.6


@pytest.mark.parametrize("family", ["add", "add text"])
def test_an_added_object_is_at_the_named_place(family: str, tile: RGB) -> None:
    for edit in _make_edits(family, tile, 12):
        place = next(name for name in sorted(PLACES, key=len, reverse=True) if IN_PLACE[name] in edit.text)
        rows, columns = np.nonzero(edit.mask)
        center = columns.mean() / tile.shape[1], rows.mean() / tile.shape[0]
        nearest = (
            int(np.argmin(np.abs(np.array(COLUMNS) - center[0]))),
            int(np.argmin(np.abs(np.array(ROWS) - center[1]))),
        )
        assert nearest == PLACES[place], edit.text


@pytest.mark.parametrize("family", REGIONAL)
def test_a_region_edit_fills_only_the_named_region(family: str, tile: RGB) -> None:
    for edit in _make_edits(family, tile, 12):
        name = next(name for name in REGIONS if f"the {name}" in edit.text)
        left, top, right, bottom = REGIONS[name]
        height, width = tile.shape[:2]
        inside = np.zeros((height, width), bool)
        inside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = (
            True
        )
        assert not np.any(edit.mask & ~inside)
        assert edit.mask[inside].mean() > 0.8


def test_a_relocated_object_leaves_its_place_and_appears_at_the_other(tile: RGB) -> None:
    for edit in _make_edits("relocate", tile):
        _, _, rest = edit.text.partition(" from the ")
        start, _, end = rest.partition(" to the ")
        places = [
            next(name for name in sorted(PLACES, key=len, reverse=True) if words.startswith(name))
            for words in (start, end or rest.partition(" bring it to the ")[2])
        ]
        assert places[0] != places[1]
        for place in places:
            column, row = PLACES[place]
            y, x = round(ROWS[row] * tile.shape[0]), round(COLUMNS[column] * tile.shape[1])
            assert edit.mask[max(y - 25, 0) : y + 25, max(x - 25, 0) : x + 25].any()


def test_an_object_with_an_ambiguous_name_is_named_by_place(tile: RGB) -> None:
    ball = DrawnObject("ball", "red", "left", 0.4, 0)
    twin = DrawnObject("ball", "red", "right", 0.4, 1)
    names = {refer_to(ball, [twin], np.random.default_rng(seed)) for seed in range(20)}
    assert names == {"the red ball on the left"}
    unique = {refer_to(ball, [], np.random.default_rng(seed)) for seed in range(20)}
    assert unique == {"the red ball", "the red ball on the left"}


def test_an_invisible_change_has_an_empty_mask(tile: RGB) -> None:
    almost = np.clip(tile.astype(int) + 2, 0, 255).astype(np.uint8)
    assert not visible_change(tile, almost).any()
    assert not visible_change(tile, tile).any()


def test_the_same_seed_gives_the_same_edit(tile: RGB) -> None:
    first, second = (make_drawn_edit("add", tile, np.random.default_rng(3)) for _ in range(2))
    assert first.text == second.text
    assert np.array_equal(first.after, second.after)
    assert np.array_equal(first.mask, second.mask)
