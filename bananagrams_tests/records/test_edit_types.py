from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import ConfigError
from bananagrams_assets.records.edit_types import EDIT_TYPES, SCOPES, EditType, allowed_names, edit_type

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
"""Categories, scopes and names as the manifest of pico-banana-400k words them."""


def test_each_is_as_the_public_manifest_names_it() -> None:
    expected, group = [], ["", ""]
    for line in TABLE.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            group = line[:-1].split(", ")
        elif line:
            expected.append((*group, line.strip()))
    assert [(kind.category, kind.scope, kind.name) for kind in EDIT_TYPES] == expected


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
def test_other_wordings_are_known(name: str, short: str) -> None:
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
