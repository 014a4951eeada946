"""Parse one line of a manifest into records and rejects.

The fields of a record determine its kind: multi-turn with `files`, preference with `rejected_images`, sft
otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .edit_types import EditType, edit_type
from .open_images import Photos
from .record import LOCAL, Record, Reject
from .splits import PLAIN_URL, ShardAssigner, source_id

REQUIRED = ("text", "output_image", "edit_type", "summarized_text")

_UNKNOWN = EditType("unknown", "unknown", "")
_SLUG_LENGTH = 48
_URL, _PROMPTS = "open_image_input_url", "metadata_edit_turn_prompts"
_FIRST, _LAST = "original_input_image", "final_image"
_MISSING = object()
"""The value of a field that a record lacks."""
_TURN = re.compile(r"edit_turn([1-9][0-9]{0,3})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest: its path or URL, and for a local file the folder that its paths are relative to."""

    name: str
    folder: Path | None
    cdn_prefix: str
    photos: Photos
    assign_shard: ShardAssigner
    attribution_of: Callable[[str], str] = lambda url: ""
    """Photo URL → attribution line from the manifest's own list, "" if unknown."""


class _Input(NamedTuple):
    """The image before an edit, and the properties of the source photo of the chain."""

    url: str
    local: str
    candidates: list[str]
    source_id: str
    attribution: str
    rotation: int | None


class _LineError(ValueError):
    pass


def parse_line(data: bytes, line: int, source: Source) -> list[Record | Reject]:
    """Parse one line of a manifest; never raises. `line` counts from 1.

    A multi-turn line gives one record per turn, in order. A turn without a usable prompt is one reject. A
    chain with missing images is one reject in total.
    """
    output_image = ""
    try:
        content = _json_object(data)
        if isinstance(content.get("output_image"), str):
            output_image = content["output_image"].encode("utf-8", "replace").decode()
        if "files" in content or _PROMPTS in content:
            return _parse_chain(content, line, source)
        return [_parse_single(content, line, source)]
    except _LineError as error:
        return [Reject(source.name, line, str(error), output_image)]


def record_key(kind: str, output_image: str) -> str:
    """Return `<kind>-<slug of the file name>-<8 hex digits>`, with letters, digits, `-` and `_` only.

    The digits are a digest of the complete `output_image`, so that `a/1.png` and `b/1.png` differ.
    """
    name = output_image.rpartition("/")[2]
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rpartition(".")[0] or name)[:_SLUG_LENGTH].strip("-")
    digest = hashlib.blake2b(output_image.encode(), digest_size=4).hexdigest()
    return f"{kind}-{slug or 'picture'}-{digest}"


def _parse_single(content: dict[str, Any], line: int, source: Source) -> Record:
    text, output_image, type_name, summary = (_text(name, content.get(name, _MISSING)) for name in REQUIRED)
    local = content.get("local_input_image") if source.folder else None
    before = _photo(source, _URL, content.get(_URL, _MISSING), local)
    kind = "preference" if "rejected_images" in content else "sft"
    name, type_ = _relative("output_image", output_image), edit_type(type_name)
    return _record(kind, 0, before, name, type_, text, summary, line, source)


def _parse_chain(content: dict[str, Any], line: int, source: Source) -> list[Record | Reject]:
    images = _chain_images(content)
    prompts = _list(_PROMPTS, content.get(_PROMPTS, _MISSING))
    if len(prompts) != len(images) - 1:
        raise _LineError(f"not one prompt per turn: {len(prompts)} {_PROMPTS} for {len(images) - 1} turns")
    first = images[0]
    is_local = bool(source.folder) and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", first)
    local = content.get("local_input_image") if source.folder else None
    before = _photo(source, _FIRST, None if is_local else first, local or (first if is_local else None))
    names = [_relative("url of an edited image", name) for name in images[1:]]
    parsed: list[Record | Reject] = []
    for turn, (name, prompt) in enumerate(zip(names, prompts, strict=True), start=1):
        try:
            text = _text("prompt of a turn", prompt)
        except _LineError as error:
            parsed.append(Reject(source.name, line, f"{error}: turn {turn}", name))
        else:
            # A prompt serves as its own summary, because prompts are as short as summaries.
            parsed.append(_record("multi-turn", turn, before, name, _UNKNOWN, text, text, line, source))
        before = _next_input(source, name, before)
    return parsed


def _chain_images(content: dict[str, Any]) -> list[str]:
    """Return the names of a multi-turn record's images: the photo, then the edited image of each turn."""
    urls: dict[str, str] = {}
    for file in _list("files", content.get("files", _MISSING)):
        if not isinstance(file, dict):
            raise _LineError(f"files has an entry that is not an object but a {type(file).__name__}")
        name = _text("id of a file", file.get("id", _MISSING))
        if name in urls:
            raise _LineError(f"files has an image twice: {name[:200]!r}")
        if name not in (_FIRST, _LAST) and not _TURN.fullmatch(name):
            raise _LineError(f"files has an image with an unknown id: {name[:200]!r}")
        urls[name] = _text(f"url of {name}", file.get("url", _MISSING))
    names = [_FIRST, *(f"edit_turn{number}" for number in range(1, len(urls) - 1)), _LAST]
    for name in names:
        if name not in urls:
            raise _LineError(f"files lacks an image: {name}")
    return [urls[name] for name in names]


def _record(
    kind: str, turn: int, before: _Input, output_image: str, type_: EditType, text: str, summary: str,
    line: int, source: Source,
) -> Record:  # fmt: skip
    split, shard = source.assign_shard(before.source_id)
    return Record(
        record_key(kind, output_image), kind, turn, before.source_id, split, shard, type_.name,
        type_.category, type_.scope, text, summary, before.url, _cdn_url(source, output_image), output_image,
        before.local, _local_path(source, output_image), line, source.name, before.attribution,
        before.rotation, before.candidates,
    )  # fmt: skip


def _photo(source: Source, url_field: str, url_value: Any, local_value: Any) -> _Input:
    """Return the source photo, given by its URL in `url_field`, its file beside the manifest, or both."""
    has_local = local_value not in (None, "")
    has_url = url_value not in (None, "", _MISSING)
    url = _url(url_field, _text(url_field, url_value)) if has_url or not has_local else ""
    name = path = ""
    if has_local:
        name = _relative("local_input_image", _text("local_input_image", local_value))
        path = _local_path(source, name)
        # The URL can replace a missing file, unless it denotes a tile of a larger photo.
        if not path and (not url or "#xywh=" in url):
            raise _LineError(f"local_input_image does not exist: {name!r} in {source.folder}")
    photo = source.photos.lookup(url, name)
    candidates = source.photos.candidates(url, path, photo)
    if not candidates:
        raise _LineError(f"no location in source.photos_from has the photo: {(url or name)[:200]!r}")
    photo_url = url.partition("#")[0]
    return _Input(
        url,
        path,
        candidates,
        photo.image_id if photo else source_id(url or name),
        source.attribution_of(photo_url)
        or (photo.attribution if photo else "")
        or (f"photograph: {photo_url}" if photo_url else "photograph: local file"),
        photo.rotation if photo else None,
    )


def _next_input(source: Source, name: str, before: _Input) -> _Input:
    """Return the edited image `name` as the input of the next turn."""
    url, path = _cdn_url(source, name), _local_path(source, name)
    return before._replace(url=url, local=path, candidates=[LOCAL + path if path else url])


def _cdn_url(source: Source, name: str) -> str:
    return source.cdn_prefix + urllib.parse.quote(name, safe="/~")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data.decode("utf-8").strip("\ufeff \t\r\n"))
    except UnicodeDecodeError:
        raise _LineError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _LineError("broken JSON: a number is too long or brackets are nested too deeply") from None
    if not isinstance(content, dict):
        raise _LineError(f"not a JSON object but a {type(content).__name__}")
    return content


def _checked_type(name: str, value: Any, kind: type, kind_name: str) -> Any:
    """Return the value of a field if it has this type; error messages call the field `name`."""
    if value is _MISSING:
        raise _LineError(f"{name} is missing")
    if value is None:
        raise _LineError(f"{name} is null")
    if not isinstance(value, kind):
        raise _LineError(f"{name} is not a {kind_name} but a {type(value).__name__}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    return list(_checked_type(name, value, list, "list"))


def _text(name: str, value: Any) -> str:
    """Return the stripped text of a field."""
    text = str(_checked_type(name, value, str, "string")).strip()
    if not text:
        raise _LineError(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _LineError(f"{name} has an unpaired surrogate") from None
    return text


def _url(name: str, url: str) -> str:
    if PLAIN_URL.fullmatch(url):
        return url
    if not url.isprintable() or " " in url:
        raise _LineError(f"{name} has spaces or control characters: {url[:200]!r}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _LineError(f"{name} is not a URL: {url[:200]!r}: {error}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise _LineError(f"{name} must be an http or https URL: {url[:200]!r}")
    if not host:
        raise _LineError(f"{name} has no host: {url[:200]!r}")
    if parts.username is not None or parts.password is not None:
        raise _LineError(f"{name} has a user name or a password")
    return url


def _relative(name: str, path: str) -> str:
    if _PLAIN_NAME.fullmatch(path):
        return path
    parts = path.split("/")
    if path.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
        raise _LineError(f"{name} must be a relative name: {path[:200]!r}")
    if "\\" in path or not path.isprintable():
        raise _LineError(f"{name} has backslashes or control characters: {path[:200]!r}")
    if any(part in ("", ".", "..") for part in parts):
        raise _LineError(f"{name} must not have empty, `.` or `..` parts: {path[:200]!r}")
    return path


def _local_path(source: Source, name: str) -> str:
    """Return the path of the file `name` beside a local manifest, "" if there is no such file."""
    if source.folder is None:
        return ""
    path = f"{source.folder}{os.sep}{name}"
    return path if os.path.isfile(path) else ""  # noqa: PTH113, three times as fast as pathlib
