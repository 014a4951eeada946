from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import ConfigError
from bananagrams_assets.records.edit_types import EDIT_TYPES, EditType, allowed_names, edit_type

TABLE = """
Object, local:
    Add a new object to the scene
    Remove an existing object
    Replace one object category with another
    Change an object's attribute (e.g., color/material)
    Relocate an object (change its position/spatial relation)
    Change the size/shape/orientation of an object
Photometric, global:
    Change overall color tone (warm ↔ cool)
    Add film grain or vintage filter
Scene, local:
    Add new scene context/background
Scene, global:
    Apply seasonal transformation (summer ↔ winter)
    Change weather conditions (sunny/rainy/snowy)
    Adjust global lighting (golden hour/fluorescent)
Style, global:
    Strong artistic style transfer (e.g., Van Gogh/anime/etc.)
    Photo to cartoon/sketch/comic
    Modern ↔ historical style/look
Text, local:
    Replace text in signs/posters/billboards
    Add new (handwritten/printed/etc) text
    Change font style or color of visible text if there is text
    Translate written text into other languages
Human, local:
    Add/Remove/Replace accessories (glasses, hats, jewelry, masks)
    Clothing edit (change color/outfit)
    Pose tweak (minor plausible change)
    Modify expressions (smile, frown, neutral)
    Change age / gender
Human, global:
    Convert person to 2D anime/manga style (identity-preserving)
    Convert person to Pixar/Disney-like 3D cartoon look
    Convert person to Western comic cel-shaded style
    Line-art ink sketch of the person
    Sticker-ify the person with bold outline and white border
    Caricature with mild feature exaggeration (keep identity)
    Funko-Pop\u2013style toy figure of the person
    LEGO-minifigure rendition of the person
    Simpsonize the person (yellow-skin cartoon style)
Geometric, geometric:
    Zoom in
    Outpainting (extend canvas beyond boundaries)
"""
"""Categories, scopes and names in the manifest of pico-banana-400k."""


def test_names_are_those_of_the_public_manifest() -> None:
    expected, group = [], ["", ""]
    for line in TABLE.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            group = line[:-1].split(", ")
        elif line:
            expected.append((*group, line.strip()))
    assert [(type_.category, type_.scope, type_.name) for type_ in EDIT_TYPES] == expected


def test_there_are_35_distinct_types() -> None:
    assert len(EDIT_TYPES) == 35
    assert len({type_.name for type_ in EDIT_TYPES}) == len({type_.short for type_ in EDIT_TYPES}) == 35
    assert {type_.scope for type_ in EDIT_TYPES} == {"local", "global", "geometric"}
    assert len({type_.category for type_ in EDIT_TYPES}) == 7


@pytest.mark.parametrize("type_", EDIT_TYPES, ids=lambda type_: type_.short)
def test_spelling_is_ignored(type_: EditType) -> None:
    for arrow in ("↔", "<->", "→", "to"):
        assert edit_type(type_.name.replace("↔", arrow)) is type_
    variants = [
        type_.name.upper(), f"  {type_.name}. ", type_.name.replace(" ", "  "), type_.short,
        type_.name.replace("-", "\u2011").replace("\u2013", "-"), type_.name.replace("'", "\u2019"),
        type_.name.replace("/", " / "), type_.name.replace("e.g.,", "e.g."),
    ]  # fmt: skip
    assert [edit_type(variant) for variant in variants] == [type_] * len(variants)


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
        ("Adjust lighting (golden hour/fluorescent)", "lighting"),
        ("Add new handwritten/printed text", "add-text"),
        ("Change font/style or color of visible text", "font"),
        ("Change age or gender", "age-gender"),
        ("Sticker-ify the person (bold outline & white border)", "sticker"),
        ("Simpsonize the person", "simpsonize"),
        ("change weather (Sunny/Rainy/Snowy)", "weather"),
        ("add / remove / replace accessories", "accessories"),
    ],
)
def test_other_wordings_match(name: str, short: str) -> None:
    assert edit_type(name).short == short


@pytest.mark.parametrize(
    "name",
    [
        "Zoom out",
        "Change",
        "Add new",
        "Convert person to",
        "Rotate",
        "",
        "★",
        "Change color",
        "Add object text",
    ],
)
def test_a_name_that_matches_no_or_several_types_is_unknown(name: str) -> None:
    assert edit_type(name) == EditType(name, "unknown", "")


def test_a_filter_accepts_names_and_short_names() -> None:
    names = {"Zoom in", "Remove an existing object"}
    assert allowed_names(["zoom-in", "REMOVE an existing object"]) == names
    assert allowed_names([]) == frozenset()


def test_a_filter_with_an_unknown_type_raises_with_similar_ones() -> None:
    with pytest.raises(ConfigError, match=r"source\.edit_types: 'remove-objcet'.*remove-object"):
        allowed_names(["zoom-in", "remove-objcet"])
    with pytest.raises(ConfigError, match=r"source\.edit_types: 'qqq'.*outpainting"):
        allowed_names(["qqq"])


@given(st.text())
def test_any_name_returns_a_type(name: str) -> None:
    type_ = edit_type(name)
    assert type_ in EDIT_TYPES or (type_.category, type_.scope) == ("unknown", "")
