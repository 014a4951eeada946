"""The 35 edit types of pico-banana-400k, their categories and scopes.

The names are those of the dataset's manifest (https://github.com/apple/pico-banana-400k); the paper
(arXiv:2510.19808, table 1) words some of them differently, so names are matched tolerantly.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from ..config import ConfigError


@dataclass(frozen=True)
class EditType:
    """An edit type. `scope` is "local", "global", "geometric", or "" where it is not known."""

    name: str
    category: str
    scope: str
    short: str = ""


EDIT_TYPES = tuple(
    EditType(name, category, scope, short)
    for category, scope, short, name in (
        ("Object", "local", "add-object", "Add a new object to the scene"),
        ("Object", "local", "remove-object", "Remove an existing object"),
        ("Object", "local", "replace-object", "Replace one object category with another"),
        ("Object", "local", "change-attribute", "Change an object's attribute (e.g., color/material)"),
        ("Object", "local", "relocate-object", "Relocate an object (change its position/spatial relation)"),
        ("Object", "local", "resize-object", "Change the size/shape/orientation of an object"),
        ("Photometric", "global", "color-tone", "Change overall color tone (warm ↔ cool)"),
        ("Photometric", "global", "film-grain", "Add film grain or vintage filter"),
        # The background is replaced and the subject stays: a mask over it says something.
        ("Scene", "local", "background", "Add new scene context/background"),
        ("Scene", "global", "season", "Apply seasonal transformation (summer ↔ winter)"),
        ("Scene", "global", "weather", "Change weather conditions (sunny/rainy/snowy)"),
        ("Scene", "global", "lighting", "Adjust global lighting (golden hour/fluorescent)"),
        ("Style", "global", "style-transfer", "Strong artistic style transfer (e.g., Van Gogh/anime/etc.)"),
        ("Style", "global", "cartoon", "Photo to cartoon/sketch/comic"),
        ("Style", "global", "historical", "Modern ↔ historical style/look"),
        ("Text", "local", "replace-text", "Replace text in signs/posters/billboards"),
        ("Text", "local", "add-text", "Add new (handwritten/printed/etc) text"),
        ("Text", "local", "font", "Change font style or color of visible text if there is text"),
        ("Text", "local", "translate-text", "Translate written text into other languages"),
        ("Human", "local", "accessories", "Add/Remove/Replace accessories (glasses, hats, jewelry, masks)"),
        ("Human", "local", "clothing", "Clothing edit (change color/outfit)"),
        ("Human", "local", "pose", "Pose tweak (minor plausible change)"),
        ("Human", "local", "expression", "Modify expressions (smile, frown, neutral)"),
        ("Human", "local", "age-gender", "Change age / gender"),
        ("Human", "global", "anime", "Convert person to 2D anime/manga style (identity-preserving)"),
        ("Human", "global", "pixar", "Convert person to Pixar/Disney-like 3D cartoon look"),
        ("Human", "global", "western-comic", "Convert person to Western comic cel-shaded style"),
        ("Human", "global", "ink-sketch", "Line-art ink sketch of the person"),
        ("Human", "global", "sticker", "Sticker-ify the person with bold outline and white border"),
        ("Human", "global", "caricature", "Caricature with mild feature exaggeration (keep identity)"),
        ("Human", "global", "funko-pop", "Funko-Pop–style toy figure of the person"),  # noqa: RUF001
        ("Human", "global", "lego", "LEGO-minifigure rendition of the person"),
        ("Human", "global", "simpsonize", "Simpsonize the person (yellow-skin cartoon style)"),
        ("Geometric", "geometric", "zoom-in", "Zoom in"),
        ("Geometric", "geometric", "outpainting", "Outpainting (extend canvas beyond boundaries)"),
    )
)
SCOPES = ("local", "global", "geometric")

_FILLERS = frozenset({"a", "an", "and", "existing", "for", "is", "of", "or", "s", "the", "to", "with"})
_SPELLINGS = {"colour": "color", "colours": "colors", "jewellery": "jewelry", "stickerify": "sticker ify"}


def edit_type(name: str) -> EditType:
    """The edit type that `name` means; one of category "unknown" and scope "" where none does.

    Case, accents, punctuation, arrows, quotes, small words and what stands in brackets do not matter;
    a name may be cut short, go on, or order its words otherwise, as long as one type alone fits.
    """
    known = _lookup(name)
    return known if known is not None else EditType(" ".join(name.split()), "unknown", "")


def allowed_names(names: Iterable[str]) -> frozenset[str]:
    """The types of a `source.edit_types` filter by their names; short names (`zoom-in`) will do.

    Raises ConfigError that names the entry and the closest types.
    """
    return frozenset(_known(name).name for name in names)


def _known(name: str) -> EditType:
    found = _lookup(name)
    if found is not None:
        return found
    by_words = {_words(form): kind for kind in EDIT_TYPES for form in (kind.name, kind.short)}
    close = difflib.get_close_matches(_words(name), by_words, n=4, cutoff=0.3)
    kinds = dict.fromkeys(by_words[words] for words in close)
    if not kinds:
        raise ConfigError(
            f"source.edit_types: {name!r} is no known edit type; "
            f"known: {', '.join(kind.short for kind in EDIT_TYPES)}"
        )
    listed = "; ".join(f"{kind.short} ({kind.name})" for kind in kinds)
    raise ConfigError(f"source.edit_types: {name!r} is no known edit type; close ones: {listed}")


@functools.lru_cache(maxsize=4096)
def _lookup(name: str) -> EditType | None:
    exact, without_brackets, by_short = _tables()
    words = _words(name)
    if not words:
        return None
    for table in (exact, by_short):
        if words in table:
            return table[words]
    core = _core(name)
    if core in without_brackets:
        return without_brackets[core]
    fitting = [
        kind
        for known, kind in without_brackets.items()
        if known and core and (f"{core} ".startswith(f"{known} ") or f"{known} ".startswith(f"{core} "))
    ]
    if not fitting:
        asked = set(_plain(name).split())
        fitting = [kind for kind in EDIT_TYPES if asked <= set(_plain(kind.name).split())]
    # One word alone ("change", "text") would fit by accident.
    return fitting[0] if len(fitting) == 1 and " " in core else None


@functools.cache
def _tables() -> tuple[dict[str, EditType], dict[str, EditType], dict[str, EditType]]:
    return (
        {_words(kind.name): kind for kind in EDIT_TYPES},
        {_core(kind.name): kind for kind in EDIT_TYPES},
        {_words(kind.short): kind for kind in EDIT_TYPES},
    )


def _core(name: str) -> str:
    return _plain(re.sub(r"\([^)]*\)?", " ", name))


def _plain(name: str) -> str:
    return " ".join(word for word in _words(name).split() if word not in _FILLERS)


def _words(name: str) -> str:
    """Lower-case words alone: letters and digits of any script, one space between."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    words = re.sub(r"[^\w]+|_", " ", re.sub("['`\u2018\u2019]", "", plain)).split()
    return " ".join(_SPELLINGS.get(word, word) for word in words)
