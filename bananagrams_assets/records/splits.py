"""Source ids of photos, and the assignment of source ids to splits and shards."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
import urllib.parse
from collections.abc import Callable
from typing import TypeAlias

from ..config import SplitsSettings

ShardAssigner: TypeAlias = "Callable[[str], tuple[str, str]]"
"""A function `source_id` → (split, shard)."""

PLAIN_URL = re.compile(r"https?://[a-z0-9][a-z0-9.-]*/[!-\"$->@-~]*")
"""URLs that parsing and normalizing leave unchanged."""


def source_id(url: str) -> str:
    """Return 16 hex digits that identify a source photo by its URL, or by its local name if it has no URL.

    The digest ignores the case of scheme and host, the scheme's default port, and the fragment: a media
    fragment (`#xywh=…`, https://www.w3.org/TR/media-frags/) denotes a part of the same photo.
    """
    parts = urllib.parse.urlsplit(url) if not PLAIN_URL.fullmatch(url) else None
    if parts is not None and parts.netloc:
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        default_port = {"http": 80, "https": 443}.get(parts.scheme.lower())
        port = "" if parts.port in (None, default_port) else f":{parts.port}"
        path = parts.path or "/"
        url = urllib.parse.urlunsplit((parts.scheme.lower(), host + port, path, parts.query, ""))
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


def shard_assigner(splits: SplitsSettings) -> ShardAssigner:
    """Return the function that maps a `source_id` to its split and shard under these settings."""
    key = str(splits.seed).encode()
    used = [(name, split) for name, split in splits.by_name().items() if split.ratio > 0]
    upper_bounds = list(itertools.accumulate(split.ratio for _, split in used))

    def assign(source: str) -> tuple[str, str]:
        digest = hashlib.blake2b(source.encode(), digest_size=16, key=key).digest()
        # A float in [0, 1) holds exactly 53 bits.
        position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        name, split = used[min(bisect.bisect_right(upper_bounds, position), len(used) - 1)]
        return name, f"{name}-{int.from_bytes(digest[8:], 'big') % split.shards:05d}"

    return assign
