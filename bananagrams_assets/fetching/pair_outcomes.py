"""How fetching went: the row of a pair, and the numbers of a shard."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..storage.tables import reason_class
from .downloads import LOCAL, PARTS, DownloadedImage, origins, shown


def origins_digest(record: Mapping[str, Any]) -> str:
    """Changes when there is another place to get one of the pair's pictures from."""
    places = [origins(record, part) for part in PARTS]
    return hashlib.blake2b(json.dumps(places).encode(), digest_size=6).hexdigest()


def row_of(record: Mapping[str, Any], images: Sequence[DownloadedImage]) -> dict[str, Any]:
    """The row of a pair. Of two failures the one that is final is told."""
    before, after = images
    bad = sorted(
        (
            (image.fetched.retryable, part, image)
            for part, image in zip(PARTS, images, strict=True)
            if image.fetched.status != "ok"
        ),
        key=lambda found: found[0],
    )
    retryable, part, told = bad[0] if bad else (False, "", before)
    return {
        "key": record["key"],
        "status": told.fetched.status,
        "reason": f"{part}: {told.fetched.reason}" if bad else "",
        "part": part,
        "retryable": retryable,
        "http_status": told.fetched.http_status,
        "attempts": before.fetched.attempts + after.fetched.attempts,
        "bytes_input": before.fetched.bytes,
        "bytes_edited": after.fetched.bytes,
        "sha256_input": before.sha256,
        "sha256_edited": after.sha256,
        "seconds": round(max(before.fetched.seconds, after.fetched.seconds), 3),
        "from_input": shown(record, "input", before.origin),
        "from_edited": shown(record, "edited", after.origin),
        "width": before.width,
        "height": before.height,
        "edited_width": after.width,
        "edited_height": after.height,
        "candidates": origins_digest(record),
    }


def nobody_answered(images: Sequence[DownloadedImage]) -> bool:
    """Whether no server had so much as an answer for this pair."""
    remote = [image.fetched for image in images if not image.is_local]
    return bool(remote) and all(fetched.status == "failed" and fetched.http_status == 0 for fetched in remote)


def stats_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals of a shard, failures by reason and by host."""
    statuses = Counter(row["status"] for row in rows)
    lost = [row for row in rows if row["status"] != "ok"]
    return {
        "records": len(rows),
        "ok": statuses["ok"],
        "failed": statuses["failed"],
        "refused": statuses["refused"],
        "to_retry": sum(row["retryable"] for row in rows),
        "ok_share": round(statuses["ok"] / len(rows), 4) if rows else 1.0,
        "reasons": _counted(reason_class(row["reason"]) for row in lost),
        "failures_by_host": _counted(_host(row) for row in lost),
        "http_status": {
            str(status): count
            for status, count in sorted(Counter(row["http_status"] for row in rows).items())
            if status
        },
        "bytes": sum(row["bytes_input"] + row["bytes_edited"] for row in rows),
        "retries": sum(max(0, row["attempts"] - _remote(row)) for row in rows),
        "local": sum(2 - _remote(row) for row in rows),
    }


def content_of(rows: Sequence[Mapping[str, Any]], tar_digest: str) -> str:
    """Data version: what was stored and how each record fared, but not how long it took."""
    digest = hashlib.blake2b(tar_digest.encode(), digest_size=16)
    for row in rows:
        what = [
            row["key"],
            row["status"],
            reason_class(row["reason"]),
            row["sha256_input"],
            row["sha256_edited"],
        ]
        digest.update(json.dumps(what).encode())
    return digest.hexdigest()


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _host(row: Mapping[str, Any]) -> str:
    origin = row[f"from_{row['part']}"]
    return urllib.parse.urlsplit(origin).hostname or LOCAL if "://" in origin else LOCAL


def _remote(row: Mapping[str, Any]) -> int:
    return sum(not row[name].startswith(LOCAL) for name in ("from_input", "from_edited"))
