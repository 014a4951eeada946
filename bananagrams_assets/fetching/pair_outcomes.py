"""Table row of a pair, and statistics of a shard."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..storage.tables import reason_class
from .downloads import LOCAL, PAIR_PARTS, DownloadedImage, candidate_urls, table_url


def candidates_digest(record: Mapping[str, Any]) -> str:
    """Return a digest of the candidate URLs of both images of a record."""
    candidates = [candidate_urls(record, part) for part in PAIR_PARTS]
    return hashlib.blake2b(json.dumps(candidates).encode(), digest_size=6).hexdigest()


def row_of(record: Mapping[str, Any], images: Sequence[DownloadedImage]) -> dict[str, Any]:
    """Return the table row of a pair. If both images failed, it reports a final failure before a retryable
    one, and the input before the edited image."""
    before, after = images
    failures = [
        (part, image.result)
        for part, image in zip(PAIR_PARTS, images, strict=True)
        if image.result.status != "ok"
    ]
    part, reported = min(failures, key=lambda failure: failure[1].retryable, default=("", before.result))
    return {
        "key": record["key"],
        "status": reported.status,
        "reason": f"{part}: {reported.reason}" if failures else "",
        "part": part,
        "retryable": reported.retryable,
        "http_status": reported.http_status,
        "attempts": before.result.attempts + after.result.attempts,
        "bytes_input": before.result.bytes,
        "bytes_edited": after.result.bytes,
        "sha256_input": before.sha256,
        "sha256_edited": after.sha256,
        "seconds": round(max(before.result.seconds, after.result.seconds), 3),
        "from_input": table_url(record, "input", before.url),
        "from_edited": table_url(record, "edited", after.url),
        "width": before.width,
        "height": before.height,
        "edited_width": after.width,
        "edited_height": after.height,
        "candidates": candidates_digest(record),
    }


def no_server_answered(images: Sequence[DownloadedImage]) -> bool:
    """Return whether a pair has remote images and none of them got an HTTP response."""
    remote = [image.result for image in images if not image.is_local]
    return bool(remote) and all(result.status == "failed" and result.http_status == 0 for result in remote)


def stats_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return totals of a shard, and its failures by reason and by host."""
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
        "http_status": _counted(str(row["http_status"]) for row in rows if row["http_status"]),
        "bytes": sum(row["bytes_input"] + row["bytes_edited"] for row in rows),
        "retries": sum(max(0, row["attempts"] - _remote(row)) for row in rows),
        "local": sum(2 - _remote(row) for row in rows),
    }


def content_of(rows: Sequence[Mapping[str, Any]], tar_digest: str) -> str:
    """Return the data version of a shard: a digest of the tar and of the rows without their timings."""
    digest = hashlib.blake2b(tar_digest.encode(), digest_size=16)
    for row in rows:
        reason = reason_class(row["reason"])
        outcome = [row["key"], row["status"], reason, row["sha256_input"], row["sha256_edited"]]
        digest.update(json.dumps(outcome).encode())
    return digest.hexdigest()


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _host(row: Mapping[str, Any]) -> str:
    """Return the host that the failed image of a row came from."""
    url = row[f"from_{row['part']}"]
    return urllib.parse.urlsplit(url).hostname or LOCAL if "://" in url else LOCAL


def _remote(row: Mapping[str, Any]) -> int:
    """Return how many of a row's two images are remote."""
    return sum(not row[name].startswith(LOCAL) for name in ("from_input", "from_edited"))
