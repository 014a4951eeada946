"""Vocabulary of the sample: places, regions, and the instructions of each family of edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from .photos import Rng

Family: TypeAlias = "tuple[str, ...]"
"""Edit type, template of the summary, templates of the instruction."""

# Centres of the places, as shares of width and height.
COLUMNS = (0.2, 0.5, 0.8)
ROWS = (0.2, 0.5, 0.8)
# Place → column and row of its centre.
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

_THIRD = 1 / 3
# Left, top, right, bottom, as shares of width and height.
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
SCENE = "Add new scene context/background"
ADD_TEXT = "Add new (handwritten/printed/etc) text"
FONT = "Change font style or color of visible text if there is text"

# Edits with drawn content, see drawn_edits.py.
FAMILIES: Mapping[str, Family] = {
    "add": (
        ADD,
        "{thing} added {in_place}.",
        "Add {a_thing} {in_place}.",
        "Place {a_thing} {in_place} of the picture.",
        "Put {a_thing} {in_place}.",
        "Insert {a_thing} {in_place} of the image, matching the light of the scene.",
    ),
    "remove": (
        REMOVE,
        "{thing} removed.",
        "Remove {the_thing}.",
        "Erase {the_thing} and fill in the background.",
        "Take {the_thing} out of the picture.",
        "Delete {the_thing}, restoring what is behind it.",
    ),
    "replace": (
        REPLACE,
        "{thing} replaced with {new}.",
        "Replace {the_thing} with {a_new}.",
        "Swap {the_thing} for {a_new}.",
        "Turn {the_thing} into {a_new}.",
        "Exchange {the_thing} for {a_new} of the same size.",
    ),
    "recolor": (
        ATTRIBUTE,
        "{thing} recolored to {color}.",
        "Make {the_thing} {color}.",
        "Change the color of {the_thing} to {color}.",
        "Recolor {the_thing} so that it is {color}.",
        "Paint {the_thing} {color}.",
    ),
    "region color": (
        ATTRIBUTE,
        "{region} tinted {color}.",
        "Turn the {region} of the picture {color}.",
        "Tint the {region} {color}.",
        "Change the color of the {region} to {color}.",
        "Give the {region} of the image a {color} tint.",
    ),
    "region material": (
        ATTRIBUTE,
        "{region} covered with {material}.",
        "Cover the {region} with {material}.",
        "Change the {region} of the picture to {material}.",
        "Turn the {region} into {material}.",
        "Make the {region} of the image a {material} surface.",
    ),
    "relocate": (
        RELOCATE,
        "{thing} moved to the {to_place}.",
        "Move {the_moved} from the {place} to the {to_place}.",
        "Shift {the_moved} from the {place} to the {to_place} of the picture.",
        "Relocate {the_moved} from the {place} to the {to_place}.",
        "Take {the_moved} from the {place} and bring it to the {to_place}.",
    ),
    "resize": (
        RESIZE,
        "{thing} made {size}.",
        "Make {the_thing} much {size}.",
        "Change {the_thing} so that it is {size}.",
        "Scale {the_thing} to a {size} size.",
        "Redraw {the_thing} {size}.",
    ),
    "add text": (
        ADD_TEXT,
        "text {word} added {in_place}.",
        "Write {word} {in_place}.",
        "Add the word {word} {in_place} in {color} letters.",
        "Print {word} in {color} {in_place} of the picture.",
        "Put the text {word} {in_place}.",
    ),
    "replace text": (
        "Replace text in signs/posters/billboards",
        "sign text changed to {new_word}.",
        "Replace the word {word} on the sign with {new_word}.",
        "Change the sign {in_place} to read {new_word}.",
        "Make the sign say {new_word} instead of {word}.",
        "Replace {word} with {new_word} on the sign {in_place}.",
    ),
    "font color": (
        FONT,
        "text {word} recolored to {color}.",
        "Change the color of the word {word} to {color}.",
        "Make the text {in_place} {color}.",
        "Recolor the letters {in_place} to {color}.",
        "Make the word {word} {color}.",
    ),
    "region scene": (
        SCENE,
        "{scene} added in the {region}.",
        "Replace the {region} of the picture with a {scene}.",
        "Add a {scene} in the {region}.",
        "Turn the {region} into a {scene}.",
        "Put a {scene} background in the {region} of the image.",
    ),
    "keep object": (
        SCENE,
        "{scene} behind {thing}.",
        "Replace the {region} with a {scene}, but keep {the_thing}.",
        "Put a {scene} behind {the_thing} in the {region}.",
        "Add a {scene} background in the {region}, keeping {the_thing}.",
    ),
    "tone": (
        "Change overall color tone (warm ↔ cool)",
        "overall {tone} tone.",
        "Shift the color tone of the whole image to {tone}.",
        "Give the whole picture a {tone} color tone.",
        "Make the overall colors {tone}.",
    ),
    "vintage": (
        "Add film grain or vintage filter",
        "vintage film look.",
        "Add film grain and a vintage look to the whole image.",
        "Apply a faded vintage filter with grain to the photo.",
        "Make the photo look like an old film print.",
    ),
    "lighting": (
        "Adjust global lighting (golden hour/fluorescent)",
        "{lighting} lighting.",
        "Change the lighting of the whole scene to {lighting}.",
        "Light the entire picture as in {lighting}.",
        "Adjust the global lighting to {lighting}.",
    ),
    "season": (
        "Apply seasonal transformation (summer ↔ winter)",
        "season changed to {season}.",
        "Transform the whole scene to {season}.",
        "Make the entire photo look like {season}.",
        "Change the season of the picture to {season}.",
    ),
    "weather": (
        "Change weather conditions (sunny/rainy/snowy)",
        "{weather} weather.",
        "Change the weather of the whole scene to {weather}.",
        "Make the entire picture {weather}.",
        "Show the whole scene in {weather} weather.",
    ),
    "sketch": (
        "Photo to cartoon/sketch/comic",
        "photo as a {style}.",
        "Turn the whole photo into a {style}.",
        "Redraw the entire image as a {style}.",
        "Convert the picture to a {style}.",
    ),
}

UNTOUCHED = "No edit"

# Edits of a photo's own content, see photo_edits.py.
PHOTO_FAMILIES: Mapping[str, Family] = {
    "add object": (
        ADD,
        "{thing} added {where}.",
        "Add {a_thing} {where}.",
        "Place {a_thing} {where}, matching the light of the scene.",
        "Insert {a_thing} {where}.",
    ),
    "remove object": (
        REMOVE,
        "{name} removed.",
        "Remove {the}.",
        "Erase {the} and fill in the background.",
        "Take {the} out of the picture, extending what is behind.",
    ),
    "replace object": (
        REPLACE,
        "{name} replaced with {new}.",
        "Replace {the} with {a_new}.",
        "Swap {the} for {a_new}.",
        "Turn {the} into {a_new}.",
    ),
    "recolor object": (
        ATTRIBUTE,
        "{name} recolored to {color}.",
        "Make {the} {color}.",
        "Change the color of {the} to {color}.",
        "Recolor {the} in {color}.",
    ),
    "object material": (
        ATTRIBUTE,
        "{name} with {material} texture.",
        "Make {the} look as if it were of {material}.",
        "Change the material of {the} to {material}.",
        "Give {the} a {material} texture.",
    ),
    "move object": (
        RELOCATE,
        "{name} moved to the {way}.",
        "Move {the} to the {way}.",
        "Shift {the} further {way}.",
        "Relocate {the} a little to the {way}.",
    ),
    "resize object": (
        RESIZE,
        "{name} made {size}.",
        "Make {the} {size}.",
        "Scale {the} to be {size}.",
        "Change the size of {the}: {size}.",
    ),
    "turn object": (
        RESIZE,
        "{name} tilted to the {way}.",
        "Tilt {the} to the {way}.",
        "Rotate {the} a little to the {way}.",
        "Lean {the} to the {way}.",
    ),
    "pose": (
        "Pose tweak (minor plausible change)",
        "{name} leans {way}.",
        "Let {the} lean to the {way}.",
        "Tweak the pose of {the}: leaning {way}.",
    ),
    "replace background": (
        SCENE,
        "background changed to a {scene}.",
        "Replace the background behind {the} with a {scene}.",
        "Put {the} in front of a {scene}.",
        "Change the background to a {scene}, keeping {the} as it is.",
    ),
    "blur background": (
        SCENE,
        "background blurred.",
        "Blur the background behind {the}.",
        "Put everything but {the} strongly out of focus.",
    ),
    "clothing": (
        "Clothing edit (change color/outfit)",
        "clothes recolored to {color}.",
        "Change the clothes of {the} to {color}.",
        "Recolor what {the} wears to {color}.",
        "Give {the} an outfit in {color}.",
    ),
    "accessory": (
        "Add/Remove/Replace accessories (glasses, hats, jewelry, masks)",
        "{thing} added to {name}.",
        "Add {a_thing} to {the}.",
        "Put {a_thing} on {the}.",
        "Give {the} {a_thing}.",
    ),
    "caption": (
        ADD_TEXT,
        "caption added {where}.",
        'Write "{word}" {where} in {color} {font} letters.',
        'Add the caption "{word}" {where}.',
        'Print the text "{word}" {where} in {color}.',
    ),
    "restyle text": (
        FONT,
        "text in {font} letters.",
        'Set the text "{word}" in {color} {font} letters.',
        'Change the font of "{word}" to {font}.',
        'Make the caption "{word}" {font} and {color}.',
    ),
    "translate text": (
        "Translate written text into other languages",
        "sign translated to {language}.",
        'Translate the sign "{word}" into {language}.',
        'Change the sign from "{word}" to its {language} translation.',
    ),
    "art": (
        "Strong artistic style transfer (e.g., Van Gogh/anime/etc.)",
        "photo as {style}.",
        "Turn the whole photo into {style}.",
        "Repaint the entire picture as {style}.",
    ),
    "historical": (
        "Modern ↔ historical style/look",
        "photo as {style}.",
        "Make the photo look like {style}.",
        "Restyle the whole picture as {style}.",
    ),
    "anime": (
        "Convert person to 2D anime/manga style (identity-preserving)",
        "anime style.",
        "Convert the picture to anime style.",
        "Redraw it all as a manga frame.",
    ),
    "cel": (
        "Convert person to Western comic cel-shaded style",
        "cel-shaded comic.",
        "Convert everything to a cel-shaded Western comic.",
        "Redraw it with flat comic shading and ink.",
    ),
    "ink": (
        "Line-art ink sketch of the person",
        "ink sketch.",
        "Turn it into a line-art ink sketch.",
        "Redraw the picture in ink lines.",
    ),
    "zoom in": (
        "Zoom in",
        "zoomed in.",
        "Zoom in on the {place} of the picture.",
        "Crop closer to what is at the {place}.",
    ),
    "outpaint": (
        "Outpainting (extend canvas beyond boundaries)",
        "canvas extended.",
        "Extend the canvas beyond its borders.",
        "Outpaint the scene to show more of its surroundings.",
    ),
    "untouched": (UNTOUCHED, "no edit.", "Change nothing.", "Leave the picture as it is."),
}

FONTS = {
    "bold sans": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "typewriter": "DejaVuSansMono.ttf",
    "italic": "DejaVuSerif-Italic.ttf",
    "thin": "DejaVuSans.ttf",
    "bookish": "STIXGeneral.ttf",
}
CAPTIONS = (
    "Summer 2019", "Thank you!", "Grand opening", "No. 42", "Made by hand", "Follow me", "Tuesday morning",
    "Best of all", "Coming soon", "Half price today", "Where are we?", "Hello from here",
)  # fmt: skip
# English word, language, translation.
SIGNS = (
    ("OPEN", "French", "OUVERT"), ("EXIT", "German", "AUSGANG"), ("BREAD", "Italian", "PANE"),
    ("HOTEL", "Finnish", "HOTELLI"), ("SALE", "Spanish", "REBAJAS"), ("MUSIC", "Polish", "MUZYKA"),
    ("STATION", "Dutch", "HALTE"), ("MARKET", "Swedish", "TORG"), ("WATER", "Portuguese", "ÁGUA"),
    ("BOOKS", "Czech", "KNIHY"),
)  # fmt: skip


def family_of(name: str) -> Family:
    """Return the family `name` of FAMILIES or PHOTO_FAMILIES. Raises KeyError."""
    return FAMILIES[name] if name in FAMILIES else PHOTO_FAMILIES[name]


def with_article(noun: str) -> str:
    """Return `noun` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def word_edit(family: str, rng: Rng, /, **values: str) -> tuple[str, str]:
    """Return an instruction, from a random template, and its summary; `values` fill the templates."""
    _, summary_template, *templates = family_of(family)
    summary = summary_template.format(**values)
    return templates[int(rng.integers(len(templates)))].format(**values), summary[0].upper() + summary[1:]


def word_global_edit(family: str, rng: Rng, style: str) -> tuple[str, str]:
    """Return an instruction and its summary for a global edit; `style` is a key of filters.GLOBAL_FILTERS."""
    return word_edit(family, rng, tone=style, lighting=style, season=style, weather=style, style=style)
