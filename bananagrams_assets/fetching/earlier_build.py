"""Reuse of the pairs that an earlier build of the same shard stored."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import FetchSettings
from ..storage import paths
from ..storage.digests import file_digest
from ..storage.sample_tar import Sample, SampleCursor, SampleError, read_samples
from ..storage.store import Store
from ..storage.tables import by_key, read_metadata, read_table
from .downloads import PAIR_PARTS, candidate_urls, local_path, table_url
from .pair_outcomes import candidates_digest

_SETTINGS = "fetch"
_ALLOWED_HOSTS = "allowed"


class EarlierBuild:
    """Rows and images of an earlier build of a shard. `kept` counts the reused pairs."""

    def __init__(
        self, rows: dict[str, dict[str, Any]], samples: Iterator[Sample], same_allowed_hosts: bool
    ) -> None:
        self.kept, self.has_rows = 0, bool(rows)
        self._rows, self._samples = rows, SampleCursor(samples)
        self._same_allowed_hosts = same_allowed_hosts

    def row(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the row of a record if it is still current."""
        row = self._rows.get(record["key"])
        return row if row is not None and is_current(record, row, self._same_allowed_hosts) else None

    def sample(self, key: str) -> Sample | None:
        """Return the stored images of a pair, or None if the tar lacks them. Keys must ascend."""
        try:
            return self._samples.find(key)
        except SampleError:
            # The rest of a damaged tar is downloaded again.
            return None


@contextlib.contextmanager
def open_earlier_build(store: Store, shard: str, settings: FetchSettings) -> Iterator[EarlierBuild]:
    """Open what the store holds of this shard; the build is empty if it has other fetch settings."""
    table, tar = paths.pairs_table(shard), paths.pairs_tar(shard)
    metadata = read_metadata(store, table) if store.exists(table) and store.exists(tar) else {}
    # Tables without the columns that `is_current` needs lack the second key.
    if metadata.get(_SETTINGS) != settings.digest() or _ALLOWED_HOSTS not in metadata:
        yield EarlierBuild({}, iter(()), False)
        return
    rows = by_key(read_table(store, table))
    with store.open(tar) as file:
        yield EarlierBuild(rows, read_samples(file), metadata[_ALLOWED_HOSTS] == _allowed_hosts_digest())


def table_metadata(settings: FetchSettings) -> dict[str, str]:
    """Return the metadata of a table of pairs. Later builds use it to decide whether rows are current."""
    return {_SETTINGS: settings.digest(), _ALLOWED_HOSTS: _allowed_hosts_digest()}


def is_current(record: Mapping[str, Any], row: Mapping[str, Any], same_allowed_hosts: bool) -> bool:
    """Return whether fetching a record again would give the same row."""
    if row["status"] != "ok":
        return same_allowed_hosts and _is_final_failure(record, row)
    for part in PAIR_PARTS:
        urls = candidate_urls(record, part)
        used = next((url for url in urls if table_url(record, part, url) == row[f"from_{part}"]), None)
        if used is None:
            return False
        path = local_path(used)
        if path is not None and _sha256_of_file(path) != row[f"sha256_{part}"]:
            return False
    return True


def _is_final_failure(record: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether a failure is final: not retryable, with the same candidate URLs, none of them local."""
    urls = [url for part in PAIR_PARTS for url in candidate_urls(record, part)]
    return (
        not row["retryable"]
        and row["candidates"] == candidates_digest(record)
        and all(local_path(url) is None for url in urls)
    )


def _allowed_hosts_digest() -> str:
    """Return a digest of the allow list: a change may turn a refusal into a success."""
    from .addresses import ALLOW_VARIABLE

    return hashlib.blake2b(os.environ.get(ALLOW_VARIABLE, "").encode(), digest_size=6).hexdigest()


def _sha256_of_file(path: Path) -> str:
    """Return a file's SHA-256, "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file)
    except OSError:
        return ""
