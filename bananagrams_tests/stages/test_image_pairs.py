from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pytest
from PIL import Image

from bananagrams_assets.config import Profile
from bananagrams_assets.fetching.client import FetchError
from bananagrams_assets.fetching.spool import Member, ResumableTar
from bananagrams_assets.graph import IMAGE_PAIRS, MANIFEST
from bananagrams_assets.stages.stage import StageResult
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.digests import file_digest
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import Sample, read_samples, sample_writer
from bananagrams_assets.storage.store import StoreError
from bananagrams_assets.storage.tables import read_table
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, local_pairs, make_photo, one_shard, png, record, write_manifest
from ..servers import Answer, Server, body, endless, failing_first, status
from .building import call

SHARD = "train-00000"
BEFORE, AFTER = encode_jpeg(make_photo(1), 95), png(edited(make_photo(1)))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def fetch(store: LocalStore, profile: Profile) -> StageResult:
    call(MANIFEST, store, profile)
    return call(IMAGE_PAIRS, store, profile, SHARD)


def table(store: LocalStore) -> list[dict[str, Any]]:
    return read_table(store, paths.pairs_table(SHARD))


def stored(store: LocalStore) -> list[Sample]:
    with store.open(paths.pairs_tar(SHARD)) as file:
        return list(read_samples(file))


def served(server: Server, folder: Path, answers: dict[int, tuple[Answer, Answer]], **fetch: Any) -> Profile:
    """Return a profile of remote pairs. `answers` maps a record to those for its input and edited image."""
    records = []
    for number, (before, after) in answers.items():
        server.answers[f"/{number}_o.jpg"] = before
        server.answers[f"/nb/images/{number}.png"] = after
        records.append(
            record(
                number,
                open_image_input_url=f"{server.url}/{number}_o.jpg",
                output_image=f"images/{number}.png",
            )
        )
    source = {"cdn_prefix": f"{server.url}/nb/"}
    return one_shard(write_manifest(folder / "remote", records), source=source, fetch=fetch)


def test_images_are_stored_as_received_in_key_order(store: LocalStore, tmp_path: Path) -> None:
    result = fetch(store, one_shard(local_pairs(tmp_path, 7)))
    samples, rows = stored(store), table(store)
    assert (
        [sample.key for sample in samples]
        == [row["key"] for row in rows]
        == sorted(row["key"] for row in rows)
    )
    assert len(rows) == 7
    for sample, row in zip(samples, rows, strict=True):
        assert list(sample.parts) == ["input.jpg", "edited.png"]
        number = sample.key.split("-")[1]
        assert sample.parts["input.jpg"] == (tmp_path / f"photos/{number}.jpg").read_bytes()
        assert row["sha256_edited"] == hashlib.sha256(sample.parts["edited.png"]).hexdigest()
        assert (row["status"], row["reason"], row["part"]) == ("ok", "", "")
        assert row["from_input"] == f"local:{tmp_path}/photos/{number}.jpg"
        assert (row["width"], row["height"], row["edited_width"], row["edited_height"]) == (
            192,
            144,
            192,
            144,
        )
    assert (result.stats["ok"], result.stats["local"], result.stats["failed"]) == (7, 14, 0)


def test_remote_images_and_their_failures(store: LocalStore, server: Server, tmp_path: Path) -> None:
    good, page = (body(BEFORE), body(AFTER)), b"<!doctype html><title>Not found</title>"
    profile = served(
        server, tmp_path,
        {
            1: good,
            2: (status(404), good[1]),
            3: (good[0], status(200, page, Content_Type="image/png")),
            4: (good[0], body(AFTER[: len(AFTER) // 2])),
            5: (body(b""), good[1]),
            6: (failing_first(1, 503, BEFORE), good[1]),
            7: (endless, good[1]),
            8: (status(302, Location="http://10.0.0.1/private.jpg"), good[1]),
            9: (body(encode_jpeg(make_photo(2, (600, 400)), 80)), good[1]),
        },
        max_bytes=200_000, max_pixels=200_000,
    )  # fmt: skip
    result = fetch(store, profile)
    rows = {int(row["key"].split("-")[1]): row for row in table(store)}
    assert {number: (row["status"], row["part"]) for number, row in rows.items()} == {
        1: ("ok", ""), 2: ("failed", "input"), 3: ("failed", "edited"), 4: ("failed", "edited"),
        5: ("failed", "input"), 6: ("ok", ""), 7: ("refused", "input"), 8: ("refused", "input"),
        9: ("refused", "input"),
    }  # fmt: skip
    for number, words in {
        2: "HTTP 404", 3: "not a picture", 4: "broken PNG", 5: "the file is empty", 7: "file too large",
        8: "not on the public internet", 9: "too large",
    }.items():  # fmt: skip
        assert words in rows[number]["reason"]
    assert (rows[2]["http_status"], rows[6]["attempts"]) == (404, 3)
    assert rows[1]["from_edited"] == f"{server.url}/nb/images/1.png"
    assert [sample.key for sample in stored(store)] == sorted(rows[number]["key"] for number in (1, 6))
    assert (result.stats["ok"], result.stats["failed"], result.stats["refused"]) == (2, 4, 3)
    assert result.stats["reasons"]["input: HTTP 404"] == 1


def test_the_data_version_is_independent_of_timing(server: Server, tmp_path: Path) -> None:
    versions = []
    for name in ("a", "b"):
        store = LocalStore(tmp_path / name)
        answers = {1: (failing_first(1, 503, BEFORE), body(AFTER)), 2: (status(404), body(AFTER))}
        result = fetch(store, served(server, tmp_path, answers))
        versions.append((result.content, result.files[paths.pairs_tar(SHARD)]))
    assert versions[0] == versions[1]


def test_a_changed_image_changes_the_data_version(store: LocalStore, tmp_path: Path) -> None:
    profile = one_shard(local_pairs(tmp_path, 2))
    before = fetch(store, profile)
    (tmp_path / "photos/1.jpg").write_bytes(encode_jpeg(make_photo(5), 95))
    assert fetch(store, profile).content != before.content


def test_a_rebuild_requests_new_and_failed_pairs_only(
    store: LocalStore, server: Server, tmp_path: Path
) -> None:
    answers: dict[int, tuple[Answer, Answer]] = {
        number: (body(encode_jpeg(make_photo(number), 95)), body(AFTER)) for number in range(8)
    }
    few = {number: answers[number] for number in (0, 2, 3, 5)}
    first = fetch(store, served(server, tmp_path, {**few, 3: (status(503), body(AFTER))}))
    assert (first.stats["ok"], first.stats["kept"]) == (3, 0)
    server.requests.clear()
    again = fetch(store, served(server, tmp_path, answers))
    assert (again.stats["ok"], again.stats["kept"]) == (8, 3)
    assert {path.split("_")[0] for path in server.requests if path.endswith("_o.jpg")} == {
        f"/{number}" for number in (1, 3, 4, 6, 7)
    }
    fresh = fetch(LocalStore(tmp_path / "fresh"), served(server, tmp_path, answers))
    assert again.content == fresh.content
    assert again.files[paths.pairs_tar(SHARD)] == fresh.files[paths.pairs_tar(SHARD)]


def test_changed_settings_or_a_damaged_tar_cause_new_downloads(
    store: LocalStore, server: Server, tmp_path: Path
) -> None:
    answers = {number: (body(BEFORE), body(AFTER)) for number in range(3)}
    first = fetch(store, served(server, tmp_path, answers))
    smaller = fetch(store, served(server, tmp_path, answers, largest_side_px=96))
    assert smaller.stats["kept"] == 0
    assert fetch(store, served(server, tmp_path, answers)).content == first.content
    tar = store.folder / paths.pairs_tar(SHARD)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    mended = fetch(store, served(server, tmp_path, answers))
    assert mended.content == first.content
    assert mended.stats["kept"] < 3


def test_only_missing_pairs_of_an_earlier_build_are_downloaded_again(
    store: LocalStore, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[int, tuple[Answer, Answer]] = {number: (body(BEFORE), body(AFTER)) for number in range(5)}
    answers[3] = (status(404), body(AFTER))
    few = {number: answers[number] for number in range(4)}
    fetch(store, served(server, tmp_path, few))
    samples = stored(store)
    with sample_writer(store, paths.pairs_tar(SHARD)) as tar:
        for sample in samples:
            for part, data in sample.parts.items() if "-1-" not in sample.key else ():
                tar.add(sample.key, part, data)
    server.requests.clear()
    append = ResumableTar.append

    def slow(tar: ResumableTar, row: dict[str, Any], members: Sequence[Member]) -> None:
        # While pair 0 is written, the others become ready and form one batch.
        time.sleep(0.2 if "-0-" in row["key"] else 0)
        append(tar, row, members)

    monkeypatch.setattr(ResumableTar, "append", slow)
    # One connection has two slots for bodies. Pair 4 must not hold both while pair 1 is downloaded.
    again = fetch(store, served(server, tmp_path, answers, concurrency=1))
    assert set(server.requests) == {path for n in (1, 4) for path in (f"/{n}_o.jpg", f"/nb/images/{n}.png")}
    assert (again.stats["ok"], again.stats["kept"], again.stats["fetched"]) == (4, 2, 4)
    fresh = fetch(LocalStore(tmp_path / "fresh"), served(server, tmp_path, answers))
    assert again.files[paths.pairs_tar(SHARD)] == fresh.files[paths.pairs_tar(SHARD)]


def test_large_images_are_resized_if_configured(tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 2)
    contents = set()
    for side in (None, 500, 96):
        store = LocalStore(tmp_path / f"store-{side}")
        contents.add(fetch(store, one_shard(manifest, fetch={"largest_side_px": side})).content)
        for sample, row in zip(stored(store), table(store), strict=True):
            if side == 96:
                assert list(sample.parts) == ["input.jpg", "edited.jpg"]
                assert Image.open(io.BytesIO(sample.parts["edited.jpg"])).size == (96, 72)
                assert (row["width"], row["edited_height"]) == (96, 72)
                number = sample.key.split("-")[1]
                received = (tmp_path / f"photos/{number}.jpg").read_bytes()
                assert row["sha256_input"] == hashlib.sha256(received).hexdigest()
            else:
                assert list(sample.parts) == ["input.jpg", "edited.png"]
    assert len(contents) == 2


def test_the_image_format_is_detected_from_the_bytes(store: LocalStore, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 1)
    (tmp_path / "photos/0.jpg").write_bytes(AFTER)
    Image.fromarray(make_photo(3)).save(tmp_path / "images/positive-edit/0.png", "WEBP")
    fetch(store, one_shard(manifest))
    assert list(stored(store)[0].parts) == ["input.png", "edited.webp"]


def test_a_deleted_local_image_is_a_failed_row(store: LocalStore, tmp_path: Path) -> None:
    profile = one_shard(local_pairs(tmp_path, 2), source={"photos_from": ("local",)})
    call(MANIFEST, store, profile)
    (tmp_path / "photos/1.jpg").unlink()
    call(IMAGE_PAIRS, store, profile, SHARD)
    assert [row["status"] for row in table(store)] == ["ok", "failed"]
    assert "1.jpg" in table(store)[1]["reason"]


def test_an_empty_shard_is_written(store: LocalStore, tmp_path: Path) -> None:
    profile = one_shard(local_pairs(tmp_path, 2))
    call(MANIFEST, store, profile)
    result = call(IMAGE_PAIRS, store, profile, "dev-00000")
    assert result.stats["records"] == 0
    assert store.exists(paths.pairs_tar("dev-00000"))


def test_no_shard_is_written_without_a_network(store: LocalStore, server: Server, tmp_path: Path) -> None:
    profile = served(server, tmp_path, {1: (body(BEFORE), body(AFTER)), 2: (body(BEFORE), body(AFTER))})
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match=f"{SHARD}: no network: none of 2 pairs could be reached"):
        fetch(store, profile)
    assert not store.list("image_pairs/")


def test_a_server_without_any_image_is_no_network_failure(
    store: LocalStore, server: Server, tmp_path: Path
) -> None:
    fetch(store, served(server, tmp_path, {1: (status(404), status(404))}))
    assert [row["status"] for row in table(store)] == ["failed"]


class FullDisk(LocalStore):
    """A store whose every file has a size limit."""

    limit_bytes = 30_000

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with super().create(name) as file:
            yield cast(BinaryIO, LimitedFile(file, self.limit_bytes))


class LimitedFile:
    def __init__(self, file: IO[bytes], remaining: int) -> None:
        self.file, self.remaining = file, remaining
        self.closed, self.flush = False, file.flush

    def write(self, data: bytes) -> int:
        self.remaining -= len(data)
        if self.remaining < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


def test_a_full_spool_disk_ends_the_stage_and_leaves_no_files(
    store: LocalStore, server: Server, tmp_path: Path
) -> None:
    answers = {number: (body(BEFORE), body(AFTER)) for number in range(100)}
    profile = served(server, tmp_path, answers)
    call(MANIFEST, store, profile)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * len(AFTER), limits[1]))
    try:
        with pytest.raises(StoreError, match=f"{SHARD}.*File too large"):
            call(IMAGE_PAIRS, store, profile, SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.list("image_pairs/") == []
    # Downloads ahead of the failed write are cancelled.
    assert sum(server.requests.values()) < 200
    before = sum(server.requests.values())
    stats = call(IMAGE_PAIRS, store, profile, SHARD).stats
    assert stats["ok"] == 100
    assert stats["fetched"] == sum(server.requests.values()) - before < 200


def test_a_full_store_disk_ends_the_stage_and_keeps_the_images(
    store: LocalStore, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(path: Path, other: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    # Simulate a store on another file system than the spool.
    monkeypatch.setattr(os, "link", link)
    profile = served(server, tmp_path, {number: (body(BEFORE), body(AFTER)) for number in range(9)})
    call(MANIFEST, store, profile)
    with pytest.raises(StoreError, match="No space left"):
        call(IMAGE_PAIRS, FullDisk(store.folder), profile, SHARD)
    assert store.list("image_pairs/") == []
    assert not [path for path in store.folder.rglob(".tmp-*") if path.is_file()]
    requests = sum(server.requests.values())
    result = call(IMAGE_PAIRS, store, profile, SHARD)
    assert (result.stats["resumed"], sum(server.requests.values())) == (18, requests)
    with store.open(paths.pairs_tar(SHARD)) as file:
        digest = result.files[paths.pairs_tar(SHARD)].sha256
        assert file_digest(file, digest) == digest
