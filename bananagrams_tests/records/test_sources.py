"""Unchanged manifests are neither downloaded nor read again."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from bananagrams_assets.config import FetchSettings, Profile
from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.records import sources
from bananagrams_assets.records.sources import SourceError, local_copy, source_digest
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.stage import UNPARTITIONED
from bananagrams_assets.stages.staleness import why_stale
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.store import Store, StoreError

from ..photos import profile_of, quiet, record, write_manifest
from ..servers import Server, body, conditional, cut_first, failing_first, status

SETTINGS = FetchSettings(attempts=3, timeout_s=2.0, backoff_s=0.01)
VALIDATORS = [{"ETag": '"v1"'}, {"Last_Modified": "Sat, 21 Nov 2026 07:28:00 GMT"}]
TEXT = "".join(f"{json.dumps(record(number))}\n" for number in range(20)).encode()


def run(store: Store, profile: Profile) -> list[str]:
    return build_partition(store, profile, MANIFEST, UNPARTITIONED, quiet).reasons


@pytest.mark.parametrize("validators", VALIDATORS, ids=["etag", "last-modified"])
def test_an_unchanged_url_is_downloaded_once_and_keeps_its_version(
    server: Server, tmp_path: Path, validators: dict[str, str]
) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, **validators)
    profile, store = profile_of(f"{server.url}/sft.jsonl"), LocalStore(tmp_path / "store")
    assert run(store, profile) == ["never built"]
    requests = server.requests["/sft.jsonl"]
    assert run(store, profile) == []
    assert why_stale(store, profile, MANIFEST, UNPARTITIONED) == []
    assert server.requests["/sft.jsonl"] > requests
    assert server.sent_bytes["/sft.jsonl"] == len(TEXT)


def test_a_changed_url_is_downloaded_again_and_makes_the_stage_stale(server: Server, tmp_path: Path) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    url = f"{server.url}/sft.jsonl"
    profile, store = profile_of(url), LocalStore(tmp_path / "store")
    run(store, profile)
    more = TEXT + json.dumps(record(99)).encode()
    server.answers["/sft.jsonl"] = conditional(more, ETag='"v2"')
    assert run(store, profile) == [f"{url} changed"]
    assert local_copy(url, SETTINGS, quiet)[0].read_bytes() == more
    assert server.sent_bytes["/sft.jsonl"] == len(TEXT) + len(more)


def test_the_same_content_without_validators_is_not_stale(server: Server, tmp_path: Path) -> None:
    server.answers["/sft.jsonl"] = body(TEXT)
    profile, store = profile_of(f"{server.url}/sft.jsonl"), LocalStore(tmp_path / "store")
    run(store, profile)
    assert run(store, profile) == []


def test_a_damaged_cache_is_downloaded_again(server: Server) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    url = f"{server.url}/sft.jsonl"
    path, digest = local_copy(url, SETTINGS, quiet)
    path.write_bytes(b"cut")
    assert local_copy(url, SETTINGS, quiet) == (path, digest)
    assert path.read_bytes() == TEXT
    path.with_suffix(".json").write_text("{broken")
    assert local_copy(url, SETTINGS, quiet) == (path, digest)
    assert server.sent_bytes["/sft.jsonl"] == 3 * len(TEXT)


def test_a_failed_download_keeps_the_previous_one(server: Server) -> None:
    url = f"{server.url}/sft.jsonl"
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    path, _ = local_copy(url, SETTINGS, quiet)
    server.answers["/sft.jsonl"] = cut_first(9, TEXT * 2)
    with pytest.raises(SourceError, match=r"sft\.jsonl: .*cut.*after 3 attempts"):
        local_copy(url, SETTINGS, quiet)
    assert path.read_bytes() == TEXT
    assert list(path.parent.glob(".tmp*")) == []


@pytest.mark.parametrize("code", [503, 429, 408])
def test_retryable_errors_are_retried(server: Server, code: int) -> None:
    server.answers["/a"] = failing_first(2, code, TEXT)
    assert local_copy(f"{server.url}/a", SETTINGS, quiet)[0].read_bytes() == TEXT
    assert server.requests["/a"] == 3


@pytest.mark.parametrize("code", [404, 403, 410])
def test_other_errors_are_not_retried(server: Server, code: int) -> None:
    server.answers["/a"] = status(code)
    with pytest.raises(SourceError, match=f"{server.url}/a: HTTP {code}"):
        local_copy(f"{server.url}/a", SETTINGS, quiet)
    assert server.requests["/a"] == 1


def test_requests_have_the_user_agent(server: Server) -> None:
    server.answers["/a"] = body(TEXT)
    source_digest(f"{server.url}/a", SETTINGS)
    assert server.agents == {SETTINGS.user_agent}


def test_a_refused_connection_raises_source_error(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError, match=r"/a: .*refused.*after 3 attempts"):
        local_copy(f"{server.url}/a", SETTINGS, quiet)


def test_a_full_disk_raises_store_error_without_retries(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.answers["/a"] = body(TEXT)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        local_copy(f"{server.url}/a", SETTINGS, quiet)
    assert server.requests["/a"] == 1


def aged(path: Path) -> Path:
    """Set the file's times back by a minute, because the digest of a new file is not cached."""
    then = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(then, then))
    return path


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(write_manifest(tmp_path, [record(1)]))
    before = source_digest(str(path), SETTINGS)

    def fail(file: object) -> str:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "file_digest", fail)
        assert source_digest(str(path), SETTINGS) == before
    path.write_bytes(path.read_bytes().replace(b"red", b"wet"))
    assert source_digest(str(path), SETTINGS) != before


def test_the_digest_of_a_new_file_is_not_cached(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [record(1)])
    status = path.stat()
    before = source_digest(str(path), SETTINGS)
    path.write_bytes(path.read_bytes().replace(b"red", b"wet"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source_digest(str(path), SETTINGS) != before


def test_a_missing_file_raises_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.jsonl: cannot be read"):
        source_digest(str(tmp_path / "none.jsonl"), SETTINGS)
