"""One line of a manifest → its records, or the reasons why not.

A record's shape tells its kind: `files` makes it multi-turn, `rejected_images` preference, and what is
left is sft.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..config import SplitsSettings
from .edit_types import EditType, edit_type

if TYPE_CHECKING:
    from .open_images import Photos

REQUIRED = ("text", "output_image", "edit_type", "summarized_text")
LOCAL = "local:"
"""What a candidate that is a path on this machine begins with."""

Assign: TypeAlias = "Callable[[str], tuple[str, str]]"
"""(split, shard) of a `source_id`."""

_UNKNOWN = EditType("unknown", "unknown", "")
_SLUG_LENGTH = 48
_FIRST, _LAST = "original_input_image", "final_image"
_TURN = re.compile(r"edit_turn([1-9][0-9]{0,3})")
_PLAIN_URL = re.compile(r"https?://[a-z0-9][a-z0-9.-]*/[!-\"$->@-~]*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class Record(NamedTuple):
    """An edited pair as a manifest names it; the columns of `manifest/<shard>.parquet`, in order.

    The input comes from the first of `input_candidates` (`local:<path>` or a URL) that serves; the edited
    picture from `local_output` where that is not empty, else from `output_url`. `source_id` names the
    source photograph and alone decides `split` and `shard`. `turn` counts from 1 within a multi-turn
    chain and is 0 elsewhere. `rotation`: see `openimages.Photograph`.
    """

    key: str
    kind: str
    turn: int
    source_id: str
    split: str
    shard: str
    edit_type: str
    category: str
    scope: str
    text: str
    summary: str
    input_url: str
    output_url: str
    output_image: str
    local_input: str
    local_output: str
    line: int
    manifest: str
    attribution: str
    rotation: int | None
    input_candidates: list[str]


@dataclass(frozen=True, slots=True)
class Reject:
    """A line, or a turn of it, that gave no record, and why: what is wrong, then `: ` and the particulars."""

    manifest: str
    line: int
    reason: str
    output_image: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest: its name for people and, if it is a local file, the folder its paths are relative to."""

    name: str
    folder: Path | None
    cdn_prefix: str
    photos: Photos
    credit: Callable[[str], str] = lambda url: ""
    """The credit line that the manifest's own list has for a photograph's URL, or ""."""


class _Input(NamedTuple):
    """The picture before an edit, and what is known of the photograph at the chain's beginning."""

    url: str
    local: str
    candidates: list[str]
    source_id: str
    attribution: str
    rotation: int | None


class _LineError(ValueError):
    pass


def parse_line(data: bytes, line: int, source: Source, assign_to: Assign) -> list[Record | Reject]:
    """Read one line of a manifest; never raises. `line` counts from 1.

    A multi-turn line gives a record for each turn, in order; a turn without a usable prompt is a reject
    of its own, a chain without all its pictures is one reject.
    """
    output_image = ""
    try:
        content = _json_object(data)
        if isinstance(content.get("output_image"), str):
            output_image = content["output_image"].encode("utf-8", "replace").decode()
        if "files" in content or "metadata_edit_turn_prompts" in content:
            return _turns(content, line, source, assign_to)
        return [_single(content, line, source, assign_to)]
    except _LineError as error:
        return [Reject(source.name, line, str(error), output_image)]


def record_key(kind: str, output_image: str) -> str:
    """`<kind>-<slug of the name>-<8 hex digits>`: letters, digits, `-` and `_` only.

    The digits come from the whole of `output_image`, so that `a/1.png` and `b/1.png` differ.
    """
    name = output_image.rpartition("/")[2]
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name.rpartition(".")[0] or name)[:_SLUG_LENGTH].strip("-")
    digest = hashlib.blake2b(output_image.encode(), digest_size=4).hexdigest()
    return f"{kind}-{slug or 'picture'}-{digest}"


def source_id(url: str) -> str:
    """16 hex digits that name a source photograph by its URL (or, for one without, its local name).

    Scheme and host are lower-cased; the scheme's default port and the fragment are dropped: a media
    fragment (`#xywh=…`, https://www.w3.org/TR/media-frags/) names a part of the same photograph.
    """
    parts = urllib.parse.urlsplit(url) if not _PLAIN_URL.fullmatch(url) else None
    if parts is not None and parts.netloc:
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        default = {"http": 80, "https": 443}.get(parts.scheme.lower())
        port = "" if parts.port in (None, default) else f":{parts.port}"
        path = parts.path or "/"
        url = urllib.parse.urlunsplit((parts.scheme.lower(), host + port, path, parts.query, ""))
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


def assign(source: str, splits: SplitsSettings) -> tuple[str, str]:
    """(split, shard) of a source photograph, from its `source_id` and the splits' settings alone."""
    return assigning(splits)(source)


def assigning(splits: SplitsSettings) -> Assign:
    """`assign` with these settings, for many photographs."""
    key = str(splits.seed).encode()
    used = [(name, split) for name, split in splits.by_name().items() if split.ratio > 0]
    ends = list(itertools.accumulate(split.ratio for _, split in used))

    def chosen(source: str) -> tuple[str, str]:
        digest = hashlib.blake2b(source.encode(), digest_size=16, key=key).digest()
        # 53 bits: what a float in [0, 1) holds exactly.
        position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        name, split = used[min(bisect.bisect_right(ends, position), len(used) - 1)]
        return name, f"{name}-{int.from_bytes(digest[8:], 'big') % split.shards:05d}"

    return chosen


def _single(content: dict[str, Any], line: int, source: Source, assign_to: Assign) -> Record:
    text, output_image, kind_of_edit, summary = (_text(content, name) for name in REQUIRED)
    before = _photo(
        source, content, "open_image_input_url", content.get("local_input_image") if source.folder else None
    )
    kind = "preference" if "rejected_images" in content else "sft"
    name, known = _relative("output_image", output_image), edit_type(kind_of_edit)
    return _record(kind, 0, before, name, known, text, summary, line, source, assign_to)


def _turns(content: dict[str, Any], line: int, source: Source, assign_to: Assign) -> list[Record | Reject]:
    images = _chain(content)
    prompts = content.get("metadata_edit_turn_prompts")
    if not isinstance(prompts, list):
        raise _LineError(f"metadata_edit_turn_prompts is {_lack(content, 'metadata_edit_turn_prompts')}")
    if len(prompts) != len(images) - 1:
        raise _LineError(
            f"not one prompt a turn: {len(prompts)} metadata_edit_turn_prompts for {len(images) - 1} turns"
        )
    first = images[0]
    is_local = bool(source.folder) and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", first)
    local = content.get("local_input_image") if source.folder else None
    before = _photo(
        source, {_FIRST: None if is_local else first}, _FIRST, local or (first if is_local else None)
    )
    names = [_relative("url of an edited picture", name) for name in images[1:]]
    found: list[Record | Reject] = []
    for turn, (name, prompt) in enumerate(zip(names, prompts, strict=True), start=1):
        try:
            text = _text({"prompt of a turn": prompt}, "prompt of a turn")
        except _LineError as error:
            found.append(Reject(source.name, line, f"{error}: turn {turn}", name))
        else:
            # The prompts are as short as summaries are.
            found.append(
                _record("multi-turn", turn, before, name, _UNKNOWN, text, text, line, source, assign_to)
            )
        before = _edited(source, name, before)
    return found


def _chain(content: dict[str, Any]) -> list[str]:
    """The pictures of a multi-turn record in order: the photograph, each turn's, the last of them final."""
    files = content.get("files")
    if not isinstance(files, list):
        raise _LineError(f"files is {_lack(content, 'files')}")
    found: dict[str, str] = {}
    for file in files:
        if not isinstance(file, dict):
            raise _LineError(f"files holds what is no object but a {type(file).__name__}")
        name = _text(file, "id", "id of a file")
        if name in found:
            raise _LineError(f"files names a picture twice: {name[:200]!r}")
        if name not in (_FIRST, _LAST) and not _TURN.fullmatch(name):
            raise _LineError(f"files names a picture of unknown id: {name[:200]!r}")
        found[name] = _text(file, "url", f"url of {name}")
    turns = [f"edit_turn{number}" for number in range(1, len(found) - 1)]
    for name in (_FIRST, *turns, _LAST):
        if name not in found:
            raise _LineError(f"files lacks a picture: {name}")
    return [found[name] for name in (_FIRST, *turns, _LAST)]


def _record(
    kind: str, turn: int, before: _Input, output_image: str, known: EditType, text: str, summary: str,
    line: int, source: Source, assign_to: Assign,
) -> Record:  # fmt: skip
    split, shard = assign_to(before.source_id)
    return Record(
        record_key(kind, output_image), kind, turn, before.source_id, split, shard, known.name,
        known.category, known.scope, text, summary, before.url, _cdn(source, output_image), output_image,
        before.local, _local(source, output_image), line, source.name, before.attribution, before.rotation,
        before.candidates,
    )  # fmt: skip


def _photo(source: Source, content: dict[str, Any], url_name: str, local_name: Any) -> _Input:
    """The source photograph: its URL in `content`, the name of its file beside the manifest, or both."""
    has_local = local_name not in (None, "")
    has_url = content.get(url_name) not in (None, "")
    url = _url(url_name, _text(content, url_name)) if has_url or not has_local else ""
    name = path = ""
    if has_local:
        name = _relative("local_input_image", _text({"local_input_image": local_name}, "local_input_image"))
        path = _local(source, name)
        # Where the file is not there the URL serves as well, unless it names a tile of a larger photograph.
        if not path and (not url or "#xywh=" in url):
            raise _LineError(f"local_input_image does not exist: {name!r} in {source.folder}")
    known = source.photos.known(url, name)
    candidates = source.photos.candidates(url, path, known)
    if not candidates:
        raise _LineError(f"no place in source.photos_from has the photograph: {(url or name)[:200]!r}")
    whole = url.partition("#")[0]
    return _Input(
        url,
        path,
        candidates,
        known.image_id if known else source_id(url or name),
        source.credit(whole)
        or (known.attribution if known else "")
        or (f"photograph: {whole}" if whole else "photograph: local file"),
        known.rotation if known else None,
    )


def _edited(source: Source, name: str, before: _Input) -> _Input:
    """An edited picture as the input of the next turn."""
    url, path = _cdn(source, name), _local(source, name)
    return before._replace(url=url, local=path, candidates=[LOCAL + path if path else url])


def _cdn(source: Source, name: str) -> str:
    return source.cdn_prefix + urllib.parse.quote(name, safe="/~")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data.decode("utf-8").strip("\ufeff \t\r\n"))
    except UnicodeDecodeError:
        raise _LineError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _LineError("broken JSON: a number too long or brackets too deep") from None
    if not isinstance(content, dict):
        raise _LineError(f"not a JSON object but a {type(content).__name__}")
    return content


def _lack(content: dict[str, Any], name: str) -> str:
    """Why a list is none, in words."""
    if name not in content:
        return "missing"
    return "null" if content[name] is None else f"not a list but a {type(content[name]).__name__}"


def _text(content: dict[str, Any], field: str, name: str = "") -> str:
    """The text of a field, which messages call `name`."""
    name = name or field
    if field not in content:
        raise _LineError(f"{name} is missing")
    value = content[field]
    if value is None:
        raise _LineError(f"{name} is null")
    if not isinstance(value, str):
        raise _LineError(f"{name} is not a string but a {type(value).__name__}")
    text = value.strip()
    if not text:
        raise _LineError(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _LineError(f"{name} holds half a character (a lone surrogate)") from None
    return text


def _url(name: str, url: str) -> str:
    if _PLAIN_URL.fullmatch(url):
        return url
    if not url.isprintable() or " " in url:
        raise _LineError(f"{name} holds spaces or control characters: {url[:200]!r}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _LineError(f"{name} is not a URL: {url[:200]!r}: {error}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise _LineError(f"{name} must be an http or https URL: {url[:200]!r}")
    if not host:
        raise _LineError(f"{name} names no host: {url[:200]!r}")
    if parts.username is not None or parts.password is not None:
        raise _LineError(f"{name} carries a user name or a password")
    return url


def _relative(name: str, path: str) -> str:
    if _PLAIN_NAME.fullmatch(path):
        return path
    parts = path.split("/")
    if path.startswith("/") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
        raise _LineError(f"{name} must be a relative name: {path[:200]!r}")
    if "\\" in path or not path.isprintable():
        raise _LineError(f"{name} holds backslashes or control characters: {path[:200]!r}")
    if any(part in ("", ".", "..") for part in parts):
        raise _LineError(f"{name} must hold no empty, `.` or `..` parts: {path[:200]!r}")
    return path


def _local(source: Source, name: str) -> str:
    """The file of this name beside a local manifest, or "" where there is none."""
    if source.folder is None:
        return ""
    path = f"{source.folder}{os.sep}{name}"
    return path if os.path.isfile(path) else ""  # noqa: PTH113, for every record: three times as fast
