"""The 35 edit types of pico-banana-400k, their categories and scopes.

The names are those in the dataset's manifest (https://github.com/apple/pico-banana-400k). The paper
(arXiv:2510.19808, table 1) uses other wordings for some of them, so names are matched tolerantly.
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
    """An edit type. `scope` is "local", "global", "geometric", or "" if unknown."""

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
        # The background changes and the subject stays, so a mask is informative.
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

_STOP_WORDS = frozenset({"a", "an", "and", "existing", "for", "is", "of", "or", "s", "the", "to", "with"})
_SPELLINGS = {"colour": "color", "colours": "colors", "jewellery": "jewelry", "stickerify": "sticker ify"}


def edit_type(name: str) -> EditType:
    """Return the edit type that matches `name`, or one of category "unknown" and scope "" if none does.

    Case, accents, punctuation, arrows, quotes, stop words and text in brackets are ignored. The name may be
    shorter or longer than the type's, or have another word order, as long as exactly one type matches.
    """
    return _lookup(name) or EditType(" ".join(name.split()), "unknown", "")


def allowed_names(names: Iterable[str]) -> frozenset[str]:
    """Return the full names of the types in a `source.edit_types` filter, which may use short names.

    Raises ConfigError with the entry and the closest types if an entry matches no type.
    """
    return frozenset(_lookup_or_raise(name).name for name in names)


def _lookup_or_raise(name: str) -> EditType:
    match = _lookup(name)
    if match is not None:
        return match
    by_words, _ = _tables()
    close = difflib.get_close_matches(_words(name), by_words, n=4, cutoff=0.3)
    types = dict.fromkeys(by_words[words] for words in close)
    if not types:
        raise ConfigError(
            f"source.edit_types: {name!r} is not an edit type; "
            f"expected: {', '.join(type_.short for type_ in EDIT_TYPES)}"
        )
    listed = "; ".join(f"{type_.short} ({type_.name})" for type_ in types)
    raise ConfigError(f"source.edit_types: {name!r} is not an edit type; similar ones: {listed}")


@functools.lru_cache(maxsize=4096)
def _lookup(name: str) -> EditType | None:
    by_words, by_core = _tables()
    words, core = _words(name), _core(name)
    if not words:
        return None
    if match := by_words.get(words) or by_core.get(core):
        return match
    matches = [
        type_
        for other, type_ in by_core.items()
        if other and core and (f"{core} ".startswith(f"{other} ") or f"{other} ".startswith(f"{core} "))
    ]
    if not matches:
        significant = set(_significant(name).split())
        matches = [type_ for type_ in EDIT_TYPES if significant <= set(_significant(type_.name).split())]
    # A single word ("change", "text") would match by accident.
    return matches[0] if len(matches) == 1 and " " in core else None


@functools.cache
def _tables() -> tuple[dict[str, EditType], dict[str, EditType]]:
    """Return the types by the words of the name or of the short name, and by the core of the name."""
    by_words = {_words(form): type_ for type_ in EDIT_TYPES for form in (type_.name, type_.short)}
    return by_words, {_core(type_.name): type_ for type_ in EDIT_TYPES}


def _core(name: str) -> str:
    """Return the significant words outside brackets."""
    return _significant(re.sub(r"\([^)]*\)?", " ", name))


def _significant(name: str) -> str:
    """Return the words of a name without stop words."""
    return " ".join(word for word in _words(name).split() if word not in _STOP_WORDS)


def _words(name: str) -> str:
    """Return the lower-case words (letters and digits of any script), separated by one space."""
    folded = unicodedata.normalize("NFKD", name).casefold()
    folded = "".join(letter for letter in folded if not unicodedata.combining(letter))
    words = re.sub(r"[^\w]+|_", " ", re.sub("['`\u2018\u2019]", "", folded)).split()
    return " ".join(_SPELLINGS.get(word, word) for word in words)
