"""The sample's closed vocabulary: places, regions, and the wordings of each family of edit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Centres, as shares of width and height, and how an instruction names them.
COLUMNS = (0.2, 0.5, 0.8)
ROWS = (0.2, 0.5, 0.8)
PLACES: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top": (1, 0),
    "top right": (2, 0),
    "left": (0, 1),
    "center": (1, 1),
    "right": (2, 1),
    "bottom left": (0, 2),
    "bottom": (1, 2),
    "bottom right": (2, 2),
}
IN_PLACE = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}

# Left, top, right, bottom, as shares of width and height.
_THIRD = 1 / 3
REGIONS: dict[str, tuple[float, float, float, float]] = {
    "left half": (0, 0, 0.5, 1),
    "right half": (0.5, 0, 1, 1),
    "top half": (0, 0, 1, 0.5),
    "bottom half": (0, 0.5, 1, 1),
    "left third": (0, 0, _THIRD, 1),
    "right third": (1 - _THIRD, 0, 1, 1),
    "top third": (0, 0, 1, _THIRD),
    "bottom third": (0, 1 - _THIRD, 1, 1),
    "top left quarter": (0, 0, 0.5, 0.5),
    "top right quarter": (0.5, 0, 1, 0.5),
    "bottom left quarter": (0, 0.5, 0.5, 1),
    "bottom right quarter": (0.5, 0.5, 1, 1),
}

WORDS = ("HELLO", "OPEN", "SALE", "STOP", "CAFE", "LOVE", "NEWS", "TAXI", "PARK", "HOTEL", "MUSIC", "EXIT")

ADD = "Add a new object to the scene"
REMOVE = "Remove an existing object"
REPLACE = "Replace one object category with another"
ATTRIBUTE = "Change an object's attribute (e.g., color/material)"
RELOCATE = "Relocate an object (change its position/spatial relation)"
RESIZE = "Change the size/shape/orientation of an object"
TONE = "Change overall color tone (warm ↔ cool)"
VINTAGE = "Add film grain or vintage filter"
SCENE = "Add new scene context/background"
SEASON = "Apply seasonal transformation (summer ↔ winter)"
WEATHER = "Change weather conditions (sunny/rainy/snowy)"
LIGHTING = "Adjust global lighting (golden hour/fluorescent)"
SKETCH = "Photo to cartoon/sketch/comic"
REPLACE_TEXT = "Replace text in signs/posters/billboards"
ADD_TEXT = "Add new (handwritten/printed/etc) text"
FONT = "Change font style or color of visible text if there is text"

# Family → (edit type, wordings of the instruction, wordings of the short form).
FAMILIES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "add": (
        ADD,
        (
            "Add {a_thing} {in_place}.",
            "Place {a_thing} {in_place} of the picture.",
            "Put {a_thing} {in_place}.",
            "Insert {a_thing} {in_place} of the image, matching the light of the scene.",
        ),
        ("{thing} added {in_place}.",),
    ),
    "remove": (
        REMOVE,
        (
            "Remove {the_thing}.",
            "Erase {the_thing} and fill in the background.",
            "Take {the_thing} out of the picture.",
            "Delete {the_thing}, restoring what is behind it.",
        ),
        ("{thing} removed.",),
    ),
    "replace": (
        REPLACE,
        (
            "Replace {the_thing} with {a_new}.",
            "Swap {the_thing} for {a_new}.",
            "Turn {the_thing} into {a_new}.",
            "Exchange {the_thing} for {a_new} of the same size.",
        ),
        ("{thing} replaced with {new}.",),
    ),
    "recolor": (
        ATTRIBUTE,
        (
            "Make {the_thing} {color}.",
            "Change the color of {the_thing} to {color}.",
            "Recolor {the_thing} so that it is {color}.",
            "Paint {the_thing} {color}.",
        ),
        ("{thing} recolored to {color}.",),
    ),
    "region color": (
        ATTRIBUTE,
        (
            "Turn the {region} of the picture {color}.",
            "Tint the {region} {color}.",
            "Change the color of the {region} to {color}.",
            "Give the {region} of the image a {color} tint.",
        ),
        ("{region} tinted {color}.",),
    ),
    "region material": (
        ATTRIBUTE,
        (
            "Cover the {region} with {material}.",
            "Change the {region} of the picture to {material}.",
            "Turn the {region} into {material}.",
            "Make the {region} of the image a {material} surface.",
        ),
        ("{region} covered with {material}.",),
    ),
    "relocate": (
        RELOCATE,
        (
            "Move {the_moved} from the {place} to the {to_place}.",
            "Shift {the_moved} from the {place} to the {to_place} of the picture.",
            "Relocate {the_moved} from the {place} to the {to_place}.",
            "Take {the_moved} from the {place} and bring it to the {to_place}.",
        ),
        ("{thing} moved to the {to_place}.",),
    ),
    "resize": (
        RESIZE,
        (
            "Make {the_thing} much {size}.",
            "Change {the_thing} so that it is {size}.",
            "Scale {the_thing} to a {size} size.",
            "Redraw {the_thing} {size}.",
        ),
        ("{thing} made {size}.",),
    ),
    "add text": (
        ADD_TEXT,
        (
            "Write {word} {in_place}.",
            "Add the word {word} {in_place} in {color} letters.",
            "Print {word} in {color} {in_place} of the picture.",
            "Put the text {word} {in_place}.",
        ),
        ("text {word} added {in_place}.",),
    ),
    "replace text": (
        REPLACE_TEXT,
        (
            "Replace the word {word} on the sign with {new_word}.",
            "Change the sign {in_place} to read {new_word}.",
            "Make the sign say {new_word} instead of {word}.",
            "Replace {word} with {new_word} on the sign {in_place}.",
        ),
        ("sign text changed to {new_word}.",),
    ),
    "font color": (
        FONT,
        (
            "Change the color of the word {word} to {color}.",
            "Make the text {in_place} {color}.",
            "Recolor the letters {in_place} to {color}.",
            "Make the word {word} {color}.",
        ),
        ("text {word} recolored to {color}.",),
    ),
    "region scene": (
        SCENE,
        (
            "Replace the {region} of the picture with a {scene}.",
            "Add a {scene} in the {region}.",
            "Turn the {region} into a {scene}.",
            "Put a {scene} background in the {region} of the image.",
        ),
        ("{scene} added in the {region}.",),
    ),
    "keep object": (
        SCENE,
        (
            "Replace the {region} with a {scene}, but keep {the_thing}.",
            "Put a {scene} behind {the_thing} in the {region}.",
            "Add a {scene} background in the {region}, keeping {the_thing}.",
        ),
        ("{scene} behind {thing}.",),
    ),
    "tone": (
        TONE,
        (
            "Shift the color tone of the whole image to {tone}.",
            "Give the whole picture a {tone} color tone.",
            "Make the overall colors {tone}.",
        ),
        ("overall {tone} tone.",),
    ),
    "vintage": (
        VINTAGE,
        (
            "Add film grain and a vintage look to the whole image.",
            "Apply a faded vintage filter with grain to the photo.",
            "Make the photo look like an old film print.",
        ),
        ("vintage film look.",),
    ),
    "lighting": (
        LIGHTING,
        (
            "Change the lighting of the whole scene to {lighting}.",
            "Light the entire picture as in {lighting}.",
            "Adjust the global lighting to {lighting}.",
        ),
        ("{lighting} lighting.",),
    ),
    "season": (
        SEASON,
        (
            "Transform the whole scene to {season}.",
            "Make the entire photo look like {season}.",
            "Change the season of the picture to {season}.",
        ),
        ("season changed to {season}.",),
    ),
    "weather": (
        WEATHER,
        (
            "Change the weather of the whole scene to {weather}.",
            "Make the entire picture {weather}.",
            "Show the whole scene in {weather} weather.",
        ),
        ("{weather} weather.",),
    ),
    "sketch": (
        SKETCH,
        (
            "Turn the whole photo into a {style}.",
            "Redraw the entire image as a {style}.",
            "Convert the picture to a {style}.",
        ),
        ("photo as a {style}.",),
    ),
}


def a(words: str) -> str:
    """`words` with its indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(family: str, rng: np.random.Generator, **names: str) -> tuple[str, str]:
    """An instruction and its short form, in one of the family's wordings, filled with `names`."""
    _, instructions, summaries = FAMILIES[family]
    instruction = instructions[int(rng.integers(len(instructions)))].format(**names)
    summary = summaries[int(rng.integers(len(summaries)))].format(**names)
    return instruction, summary[0].upper() + summary[1:]
