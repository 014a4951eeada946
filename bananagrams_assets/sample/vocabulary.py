"""Vocabulary of the sample: places, regions, and the instructions of each family of edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from .photos import Rng

Family: TypeAlias = "tuple[str, tuple[str, ...], tuple[str, ...]]"
"""Edit type, templates of the instruction, templates of the summary."""

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

# Edits with drawn content, see drawn_edits.py.
FAMILIES: Mapping[str, Family] = {
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

STYLE = "Strong artistic style transfer (e.g., Van Gogh/anime/etc.)"
HISTORICAL = "Modern ↔ historical style/look"
TRANSLATE = "Translate written text into other languages"
ACCESSORY = "Add/Remove/Replace accessories (glasses, hats, jewelry, masks)"
CLOTHING = "Clothing edit (change color/outfit)"
POSE = "Pose tweak (minor plausible change)"
ANIME = "Convert person to 2D anime/manga style (identity-preserving)"
CEL = "Convert person to Western comic cel-shaded style"
INK = "Line-art ink sketch of the person"
ZOOM = "Zoom in"
OUTPAINT = "Outpainting (extend canvas beyond boundaries)"
UNTOUCHED = "No edit"

# Edits of a photo's own content, see photo_edits.py.
PHOTO_FAMILIES: Mapping[str, Family] = {
    "add object": (
        ADD,
        (
            "Add {a_thing} {where}.",
            "Place {a_thing} {where}, matching the light of the scene.",
            "Insert {a_thing} {where}.",
        ),
        ("{thing} added {where}.",),
    ),
    "remove object": (
        REMOVE,
        (
            "Remove {the}.",
            "Erase {the} and fill in the background.",
            "Take {the} out of the picture, extending what is behind.",
        ),
        ("{name} removed.",),
    ),
    "replace object": (
        REPLACE,
        ("Replace {the} with {a_new}.", "Swap {the} for {a_new}.", "Turn {the} into {a_new}."),
        ("{name} replaced with {new}.",),
    ),
    "recolor object": (
        ATTRIBUTE,
        ("Make {the} {color}.", "Change the color of {the} to {color}.", "Recolor {the} in {color}."),
        ("{name} recolored to {color}.",),
    ),
    "object material": (
        ATTRIBUTE,
        (
            "Make {the} look as if it were of {material}.",
            "Change the material of {the} to {material}.",
            "Give {the} a {material} texture.",
        ),
        ("{name} with {material} texture.",),
    ),
    "move object": (
        RELOCATE,
        ("Move {the} to the {way}.", "Shift {the} further {way}.", "Relocate {the} a little to the {way}."),
        ("{name} moved to the {way}.",),
    ),
    "resize object": (
        RESIZE,
        ("Make {the} {size}.", "Scale {the} to be {size}.", "Change the size of {the}: {size}."),
        ("{name} made {size}.",),
    ),
    "turn object": (
        RESIZE,
        ("Tilt {the} to the {way}.", "Rotate {the} a little to the {way}.", "Lean {the} to the {way}."),
        ("{name} tilted to the {way}.",),
    ),
    "pose": (
        POSE,
        ("Let {the} lean to the {way}.", "Tweak the pose of {the}: leaning {way}."),
        ("{name} leans {way}.",),
    ),
    "replace background": (
        SCENE,
        (
            "Replace the background behind {the} with a {scene}.",
            "Put {the} in front of a {scene}.",
            "Change the background to a {scene}, keeping {the} as it is.",
        ),
        ("background changed to a {scene}.",),
    ),
    "blur background": (
        SCENE,
        ("Blur the background behind {the}.", "Put everything but {the} strongly out of focus."),
        ("background blurred.",),
    ),
    "clothing": (
        CLOTHING,
        (
            "Change the clothes of {the} to {color}.",
            "Recolor what {the} wears to {color}.",
            "Give {the} an outfit in {color}.",
        ),
        ("clothes recolored to {color}.",),
    ),
    "accessory": (
        ACCESSORY,
        ("Add {a_thing} to {the}.", "Put {a_thing} on {the}.", "Give {the} {a_thing}."),
        ("{thing} added to {name}.",),
    ),
    "caption": (
        ADD_TEXT,
        (
            'Write "{word}" {where} in {color} {font} letters.',
            'Add the caption "{word}" {where}.',
            'Print the text "{word}" {where} in {color}.',
        ),
        ("caption added {where}.",),
    ),
    "restyle text": (
        FONT,
        (
            'Set the text "{word}" in {color} {font} letters.',
            'Change the font of "{word}" to {font}.',
            'Make the caption "{word}" {font} and {color}.',
        ),
        ("text in {font} letters.",),
    ),
    "translate text": (
        TRANSLATE,
        (
            'Translate the sign "{word}" into {language}.',
            'Change the sign from "{word}" to its {language} translation.',
        ),
        ("sign translated to {language}.",),
    ),
    "art": (
        STYLE,
        ("Turn the whole photo into {style}.", "Repaint the entire picture as {style}."),
        ("photo as {style}.",),
    ),
    "historical": (
        HISTORICAL,
        ("Make the photo look like {style}.", "Restyle the whole picture as {style}."),
        ("photo as {style}.",),
    ),
    "anime": (
        ANIME,
        ("Convert the picture to anime style.", "Redraw it all as a manga frame."),
        ("anime style.",),
    ),
    "cel": (
        CEL,
        ("Convert everything to a cel-shaded Western comic.", "Redraw it with flat comic shading and ink."),
        ("cel-shaded comic.",),
    ),
    "ink": (
        INK,
        ("Turn it into a line-art ink sketch.", "Redraw the picture in ink lines."),
        ("ink sketch.",),
    ),
    "zoom in": (
        ZOOM,
        ("Zoom in on the {place} of the picture.", "Crop closer to what is at the {place}."),
        ("zoomed in.",),
    ),
    "outpaint": (
        OUTPAINT,
        ("Extend the canvas beyond its borders.", "Outpaint the scene to show more of its surroundings."),
        ("canvas extended.",),
    ),
    "untouched": (UNTOUCHED, ("Change nothing.", "Leave the picture as it is."), ("no edit.",)),
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
    """Return an instruction and its summary, from random templates of the family filled with `values`."""
    _, instructions, summaries = family_of(family)
    instruction = instructions[int(rng.integers(len(instructions)))].format(**values)
    summary = summaries[int(rng.integers(len(summaries)))].format(**values)
    return instruction, summary[0].upper() + summary[1:]


def word_global_edit(family: str, rng: Rng, style: str) -> tuple[str, str]:
    """Return an instruction and its summary for a global edit; `style` is a key of filters.GLOBAL_FILTERS."""
    return word_edit(family, rng, tone=style, lighting=style, season=style, weather=style, style=style)
