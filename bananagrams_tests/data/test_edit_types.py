from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import ConfigError
from bananagrams_assets.data.edit_types import EDIT_TYPES, SCOPES, EditType, allowed_names, edit_type


def test_all_35_are_there_and_distinct() -> None:
    assert len(EDIT_TYPES) == 35
    assert len({kind.name for kind in EDIT_TYPES}) == len({kind.short for kind in EDIT_TYPES}) == 35
    assert {kind.scope for kind in EDIT_TYPES} == set(SCOPES)
    assert len({kind.category for kind in EDIT_TYPES}) == 7


@pytest.mark.parametrize("kind", EDIT_TYPES, ids=lambda kind: kind.short)
def test_spelling_does_not_matter(kind: EditType) -> None:
    for arrow in ("↔", "<->", "→", "to"):
        assert edit_type(kind.name.replace("↔", arrow)) is kind
    variants = [
        kind.name.upper(), f"  {kind.name}. ", kind.name.replace(" ", "  "), kind.short,
        kind.name.replace("-", "\u2011").replace("\u2013", "-"), kind.name.replace("'", "\u2019"),
        kind.name.replace("/", " / "), kind.name.replace("e.g.,", "e.g."),
    ]  # fmt: skip
    assert [edit_type(variant) for variant in variants] == [kind] * len(variants)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Photo → cartoon/sketch/comic", "cartoon"),
        ("Add new text", "add-text"),
        ("Adjust global lighting", "lighting"),
        ("Change font style or color of visible text", "font"),
        ("Change age/gender", "age-gender"),
        ("Remove an object", "remove-object"),
        ("Change overall colour tone", "color-tone"),
        ("Sticker-ify the person with a bold outline", "sticker"),
        ("Outpainting", "outpainting"),
        ("Zoom in on the subject", "zoom-in"),
    ],
)
def test_other_wordings_are_known(name: str, short: str) -> None:
    assert edit_type(name).short == short


@pytest.mark.parametrize("name", ["Zoom out", "Change", "Add new", "Convert person to", "Rotate", "", "★"])
def test_what_fits_none_or_several_is_kept_as_unknown(name: str) -> None:
    assert edit_type(name) == EditType(name, "unknown", "")


def test_a_filter_takes_names_and_short_names() -> None:
    names = {"Zoom in", "Remove an existing object"}
    assert allowed_names(["zoom-in", "REMOVE an existing object"]) == names
    assert allowed_names([]) == frozenset()


def test_a_filter_of_an_unknown_type_is_refused_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"source\.edit_types: 'remove-objcet'.*remove-object"):
        allowed_names(["zoom-in", "remove-objcet"])
    with pytest.raises(ConfigError, match=r"source\.edit_types: 'qqq'.*outpainting"):
        allowed_names(["qqq"])


@given(st.text())
def test_any_name_gives_a_type(name: str) -> None:
    kind = edit_type(name)
    assert kind in EDIT_TYPES or (kind.category, kind.scope) == ("unknown", "")
