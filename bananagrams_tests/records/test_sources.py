"""Manifests that did not change are neither sent nor read again."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.config import FetchSettings, Profile
from bananagrams_assets.records import sources
from bananagrams_assets.records.sources import SourceError, fingerprint, latest
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.stages.stage import UNPARTITIONED, run_stage, why_stale
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.store import Store, StoreError

from ..photos import profile_of, quiet, record, write_manifest
from ..servers import Server, body, conditional, cut_first, failing_first, status

SETTINGS = FetchSettings(attempts=3, timeout_s=2.0, backoff_s=0.01)
VALIDATORS = [{"ETag": '"v1"'}, {"Last_Modified": "Sat, 21 Nov 2026 07:28:00 GMT"}]
TEXT = "".join(f"{json.dumps(record(number))}\n" for number in range(20)).encode()


def run(store: Store, profile: Profile) -> list[str]:
    def build(store: Store, profile: Profile, partition: str, log: Any) -> Any:
        return build_manifest(store, profile, log)[""]

    return run_stage(store, profile, "manifest", UNPARTITIONED, build, quiet).reasons


@pytest.mark.parametrize("validators", VALIDATORS, ids=["etag", "last-modified"])
def test_an_unchanged_manifest_is_sent_once_and_keeps_its_version(
    server: Server, tmp_path: Path, validators: dict[str, str]
) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, **validators)
    profile, store = profile_of(f"{server.url}/sft.jsonl"), LocalStore(tmp_path / "store")
    assert run(store, profile) == ["never built"]
    asked = server.asked["/sft.jsonl"]
    assert run(store, profile) == []
    assert why_stale(store, profile, "manifest", UNPARTITIONED) == []
    assert server.asked["/sft.jsonl"] > asked
    assert server.sent["/sft.jsonl"] == len(TEXT)


def test_a_changed_manifest_is_sent_again_and_makes_the_stage_stale(server: Server, tmp_path: Path) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    url = f"{server.url}/sft.jsonl"
    profile, store = profile_of(url), LocalStore(tmp_path / "store")
    run(store, profile)
    more = TEXT + json.dumps(record(99)).encode()
    server.answers["/sft.jsonl"] = conditional(more, ETag='"v2"')
    assert run(store, profile) == [f"{url} changed"]
    assert latest(url, SETTINGS, quiet)[0].read_bytes() == more
    assert server.sent["/sft.jsonl"] == len(TEXT) + len(more)


def test_a_server_without_validators_that_sends_the_same_changes_nothing(
    server: Server, tmp_path: Path
) -> None:
    server.answers["/sft.jsonl"] = body(TEXT)
    profile, store = profile_of(f"{server.url}/sft.jsonl"), LocalStore(tmp_path / "store")
    run(store, profile)
    assert run(store, profile) == []


def test_a_lost_download_is_fetched_again(server: Server) -> None:
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    url = f"{server.url}/sft.jsonl"
    path, digest = latest(url, SETTINGS, quiet)
    path.write_bytes(b"cut")
    assert latest(url, SETTINGS, quiet) == (path, digest)
    assert path.read_bytes() == TEXT
    path.with_suffix(".json").write_text("{broken")
    assert latest(url, SETTINGS, quiet) == (path, digest)
    assert server.sent["/sft.jsonl"] == 3 * len(TEXT)


def test_a_broken_download_leaves_the_one_before(server: Server) -> None:
    url = f"{server.url}/sft.jsonl"
    server.answers["/sft.jsonl"] = conditional(TEXT, ETag='"v1"')
    path, _ = latest(url, SETTINGS, quiet)
    server.answers["/sft.jsonl"] = cut_first(9, TEXT * 2)
    with pytest.raises(SourceError, match=r"sft\.jsonl: .*cut.*after 3 tries"):
        latest(url, SETTINGS, quiet)
    assert path.read_bytes() == TEXT
    assert [found.name for found in path.parent.iterdir() if found.name.startswith(".tmp")] == []


@pytest.mark.parametrize("code", [503, 429, 408])
def test_what_is_retryable_is_asked_for_again(server: Server, code: int) -> None:
    server.answers["/a"] = failing_first(2, code, TEXT)
    assert latest(f"{server.url}/a", SETTINGS, quiet)[0].read_bytes() == TEXT
    assert server.asked["/a"] == 3


@pytest.mark.parametrize("code", [404, 403, 410])
def test_what_will_not_pass_is_asked_for_once(server: Server, code: int) -> None:
    server.answers["/a"] = status(code)
    with pytest.raises(SourceError, match=f"{server.url}/a: HTTP {code}"):
        latest(f"{server.url}/a", SETTINGS, quiet)
    assert server.asked["/a"] == 1


def test_it_names_itself(server: Server) -> None:
    server.answers["/a"] = body(TEXT)
    fingerprint(f"{server.url}/a", SETTINGS)
    assert server.agents == {SETTINGS.user_agent}


def test_nobody_there_is_said(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError, match=r"/a: .*refused.*after 3 tries"):
        latest(f"{server.url}/a", SETTINGS, quiet)


def test_a_full_disk_is_no_network_fault(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.answers["/a"] = body(TEXT)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        latest(f"{server.url}/a", SETTINGS, quiet)
    assert server.asked["/a"] == 1


def aged(path: Path) -> Path:
    """As if written a minute ago: what was written just now may change within one tick of the clock."""
    then = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(then, then))
    return path


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(write_manifest(tmp_path, [record(1)]))
    before = fingerprint(str(path), SETTINGS)

    def never(file: object) -> str:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "_sha256", never)
        assert fingerprint(str(path), SETTINGS) == before
    path.write_bytes(path.read_bytes().replace(b"red", b"wet"))
    assert fingerprint(str(path), SETTINGS) != before


def test_a_file_that_was_just_written_is_not_trusted(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, [record(1)])
    status = path.stat()
    before = fingerprint(str(path), SETTINGS)
    path.write_bytes(path.read_bytes().replace(b"red", b"wet"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(str(path), SETTINGS) != before


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.jsonl: cannot be read"):
        fingerprint(str(tmp_path / "none.jsonl"), SETTINGS)
