"""One line of a manifest → one record, or the reason why not."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..config import SplitsSettings
from .edit_types import edit_type

REQUIRED = ("text", "output_image", "edit_type", "summarized_text")
_SLUG_LENGTH = 48


@dataclass(frozen=True, slots=True)
class Record:
    """An edited pair as a manifest names it.

    A picture comes from its local path where that is not empty, else from its URL. `source_id` names the
    source photograph and alone decides `split` and `shard`.
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


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that gave no record, and why: what is wrong, then `: ` and the particulars."""

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


class _LineError(ValueError):
    pass


def parse_line(data: bytes, line: int, source: Source, splits: SplitsSettings) -> Record | Reject:
    """Read one line of a manifest; never raises. `line` counts from 1."""
    output_image = ""
    try:
        content = _json_object(data)
        if isinstance(content.get("output_image"), str):
            output_image = content["output_image"].encode("utf-8", "replace").decode()
        return _record(content, line, source, splits)
    except _LineError as error:
        return Reject(source.name, line, str(error), output_image)


def record_key(kind: str, output_image: str) -> str:
    """`<kind>-<slug of the name>-<8 hex digits>`: letters, digits, `-` and `_` only.

    The digits come from the whole of `output_image`, so that `a/1.png` and `b/1.png` differ.
    """
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(output_image).stem)[:_SLUG_LENGTH].strip("-")
    digest = hashlib.blake2b(output_image.encode(), digest_size=4).hexdigest()
    return f"{kind}-{slug or 'picture'}-{digest}"


def source_id(url: str) -> str:
    """16 hex digits that name a source photograph by its URL (or, for one without, its local name).

    Scheme and host are lower-cased; the scheme's default port and the fragment are dropped: a media
    fragment (`#xywh=…`, https://www.w3.org/TR/media-frags/) names a part of the same photograph.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.netloc:
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        default = {"http": 80, "https": 443}.get(parts.scheme.lower())
        port = "" if parts.port in (None, default) else f":{parts.port}"
        path = parts.path or "/"
        url = urllib.parse.urlunsplit((parts.scheme.lower(), host + port, path, parts.query, ""))
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


def assign(source: str, splits: SplitsSettings) -> tuple[str, str]:
    """(split, shard) of a source photograph, from its `source_id` and the splits' settings alone."""
    key = str(splits.seed).encode()
    digest = hashlib.blake2b(source.encode(), digest_size=16, key=key).digest()
    # 53 bits: what a float in [0, 1) holds exactly.
    position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    used = {name: split for name, split in splits.by_name().items() if split.ratio > 0}
    upper, chosen = 0.0, ""
    for name, split in used.items():
        upper += split.ratio
        chosen = name
        if position < upper:
            break
    bucket = int.from_bytes(digest[8:], "big") % used[chosen].shards
    return chosen, f"{chosen}-{bucket:05d}"


def _record(content: dict[str, Any], line: int, source: Source, splits: SplitsSettings) -> Record:
    if "files" in content or "metadata_edit_turn_prompts" in content:
        raise _LineError("multi-turn record: this kind of record is not supported as sft")
    fields = {name: _text(content, name) for name in REQUIRED}
    kind = "preference" if "rejected_images" in content else "sft"
    output_image = _relative("output_image", fields["output_image"])
    local_output = _local(source, output_image)
    input_url, local_input = _input(content, source)
    known = edit_type(fields["edit_type"])
    photo = source_id(input_url or content["local_input_image"])
    split, shard = assign(photo, splits)
    return Record(
        key=record_key(kind, output_image),
        kind=kind,
        turn=0,
        source_id=photo,
        split=split,
        shard=shard,
        edit_type=known.name,
        category=known.category,
        scope=known.scope,
        text=fields["text"],
        summary=fields["summarized_text"],
        input_url=input_url,
        output_url=source.cdn_prefix + urllib.parse.quote(output_image, safe="/~"),
        output_image=output_image,
        local_input=local_input,
        local_output=local_output,
        line=line,
        manifest=source.name,
    )


def _input(content: dict[str, Any], source: Source) -> tuple[str, str]:
    """(URL or "", local path or "") of the source photograph."""
    has_local = source.folder is not None and content.get("local_input_image") not in (None, "")
    has_url = content.get("open_image_input_url") not in (None, "")
    url = _url(_text(content, "open_image_input_url")) if has_url or not has_local else ""
    if not has_local:
        return url, ""
    name = _relative("local_input_image", _text(content, "local_input_image"))
    path = _local(source, name)
    # Where the file is not there the URL serves as well, unless it names a tile of a larger photograph.
    if not path and (not url or "#xywh=" in url):
        raise _LineError(f"local_input_image does not exist: {name!r} in {source.folder}")
    return url, path


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


def _text(content: dict[str, Any], name: str) -> str:
    if name not in content:
        raise _LineError(f"{name} is missing")
    value = content[name]
    if value is None:
        raise _LineError(f"{name} is null")
    if not isinstance(value, str):
        raise _LineError(f"{name} is not a string but a {type(value).__name__}")
    if not value.strip():
        raise _LineError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _LineError(f"{name} holds half a character (a lone surrogate)") from None
    return value.strip()


def _url(url: str) -> str:
    name = "open_image_input_url"
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
    path = source.folder / name
    try:
        return str(path) if path.is_file() else ""
    except (OSError, ValueError):  # a name too long for the file system
        return ""
