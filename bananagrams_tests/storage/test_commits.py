"""Concurrent writers, dead writers and damaged bytes, on a folder and on a bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananagrams_assets.storage import s3
from bananagrams_assets.storage.digests import MEMBERS, file_digest
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.sample_tar import end_of_tar, tar_member
from bananagrams_assets.storage.store import (
    Conflict,
    DamagedObject,
    FileInfo,
    MissingObject,
    Store,
    StoreError,
)

from ..weed import BUCKET, Weed

LARGE = 3 * s3.PART_BYTES + 5
"""Larger than one part."""


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    weed: Weed = request.getfixturevalue("weed")
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    return open_store(f"s3://{BUCKET}/{name}", weed.client())


@pytest.fixture(params=[10, LARGE], ids=["small", "large"])
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def write_overtaken(store: Store, ours: bytes, theirs: bytes) -> None:
    """Write `ours` while another writer commits `theirs` to the same name."""
    with store.create("a.bin") as file:
        file.write(ours)
        store.write("a.bin", theirs)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_two_writers_may_commit_the_same_bytes(store: Store, size: int) -> None:
    with store.create("a.bin") as first, store.create("a.bin") as second:
        first.write(bytes(size))
        second.write(bytes(size))
    assert store.read("a.bin") == bytes(size)


def test_a_conflict_describes_both_objects(store: Store, size: int) -> None:
    ours, theirs = b"o" * size, b"t" * size
    with pytest.raises(Conflict) as caught:
        write_overtaken(store, ours, theirs)
    for part in (store.describe("a.bin"), sha256(ours), sha256(theirs), f"process {os.getpid()}", "UTC"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.read("a.bin") == theirs


def test_a_writer_replaces_the_version_at_its_start(store: Store, size: int) -> None:
    store.write("a.bin", b"stale")
    store.write("a.bin", bytes(size))
    assert store.read("a.bin") == bytes(size)


def test_a_name_deleted_during_the_write_is_written(store: Store, size: int) -> None:
    store.write("a.bin", b"stale")
    with store.create("a.bin") as file:
        file.write(bytes(size))
        store.delete("a.bin")
    assert store.read("a.bin") == bytes(size)


def test_an_overtaken_run_replaces_nothing(store: Store) -> None:
    store.write("p/s.tar", b"stale")
    orphan, retry = (store.for_run(("p/s.", "r/"), {}) for _ in range(2))
    for name in ("p/s.tar", "p/s.parquet", "r/s.json"):
        retry.write(name, b"of newer records")
    for name in ("p/s.tar", "p/s.parquet", "r/s.json"):
        with pytest.raises(Conflict):
            orphan.write(name, b"of older records")
        assert store.read(name) == b"of newer records"
    retry.write("p/s.tar", b"its own it may replace")
    store.for_run(("p/s.",), {}).write("p/s.tar", b"as the next run may")


def test_bytes_with_another_digest_raise(store: Store) -> None:
    store.write("a.bin", b"what was written")
    right = store.for_run((), {"a.bin": sha256(b"what was written")})
    wrong = store.for_run((), {"a.bin": sha256(b"what was to be there")})
    assert right.read("a.bin") == b"what was written"
    with right.local_path("a.bin") as path:
        assert path.read_bytes() == b"what was written"
    with pytest.raises(DamagedObject, match=r"a\.bin: its bytes are not those"):
        wrong.read("a.bin")
    with pytest.raises(DamagedObject), wrong.local_path("a.bin"):
        pass
    with wrong.open("a.bin") as file:
        assert file.read(4) == b"what"
        with pytest.raises(DamagedObject):
            file.read()


@pytest.mark.slow
def test_a_bucket_verifies_the_digest_in_its_metadata(weed: Weed) -> None:
    store = open_store(f"s3://{BUCKET}/damage", weed.client())
    store.write("a.bin", b"1234")
    metadata = weed.client().head_object(Bucket=BUCKET, Key="damage/a.bin")["Metadata"]
    weed.client().put_object(Bucket=BUCKET, Key="damage/a.bin", Body=b"1235", Metadata=metadata)
    for read in (store.read, lambda name: store.open(name).__enter__().read()):
        with pytest.raises(DamagedObject):
            read("a.bin")


def test_temporary_files_of_dead_writers_only_are_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    program = f"""
import sys, time
from bananagrams_assets.storage.open_store import open_store
with open_store({store.url!r}).create("p/s.tar") as file:
    file.write(bytes(100_000))
    file.flush()
    print("begun", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    [left] = (store.folder / "p").iterdir()
    store.for_run(("p/s.",), {})
    assert left.exists()
    process.kill()
    process.wait()
    with store.create("p/s.tar") as file:
        file.write(b"alive")
        store.for_run(("p/s.",), {})
        assert not left.exists()
        assert len(list((store.folder / "p").iterdir())) == 1
    assert store.list("") == ["p/s.tar"]


def test_temporary_files_of_other_machines_are_deleted_after_a_day(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.write("p/s.tar", b"")
    old, young = (store.folder / "p" / f".tmp-elsewhere-{age}" for age in ("old", "young"))
    for path in (old, young):
        path.touch()
    day_ago = time.time() - 25 * 3600
    os.utime(old, (day_ago, day_ago))
    store.for_run(("p/s.",), {})
    assert (old.exists(), young.exists()) == (False, True)


@pytest.fixture
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None


@pytest.mark.slow
def test_uploads_of_dead_writers_only_are_aborted(weed: Weed, own_tmpdir: Path) -> None:
    program = f"""
import sys, time
from bananagrams_assets.storage import s3
request = s3.S3Store._request
def stop(self, name, operation, **arguments):
    if operation == "complete_multipart_upload":
        print("begun", flush=True)
        time.sleep(600)
    return request(self, name, operation, **arguments)
s3.S3Store._request = stop
s3.S3Store({BUCKET!r}, "dead").write("p/s.tar", bytes({LARGE}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ, **weed.variables}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"

    def uploads() -> int:
        return len(weed.client().list_multipart_uploads(Bucket=BUCKET, Prefix="dead/").get("Uploads", []))

    store = open_store(f"s3://{BUCKET}/dead", weed.client())
    assert store.list("") == []
    store.for_run(("p/s.",), {})
    assert uploads() == 1
    process.kill()
    process.wait()
    store.for_run(("q/s.",), {})
    assert uploads() == 1
    store.for_run(("p/s.",), {})
    assert uploads() == 0
    assert list(own_tmpdir.glob("bananagrams-uploads-*/*")) == []


@pytest.mark.slow
def test_a_failed_upload_is_aborted(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.S3Store(BUCKET, "failing", weed.client())
    request = store._request

    def refuse(name: str, operation: str, **arguments: object) -> object:
        if operation == "upload_part" and arguments["PartNumber"] == 3:
            raise StoreError("no")
        return request(name, operation, **arguments)

    monkeypatch.setattr(store, "_request", refuse)
    with pytest.raises(StoreError, match="no"):
        store.write("a.bin", bytes(LARGE))
    assert "Uploads" not in weed.client().list_multipart_uploads(Bucket=BUCKET, Prefix="failing/")
    assert store.list("") == []


@pytest.mark.slow
def test_a_server_without_conditional_requests_is_checked_before_a_write(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    client = weed.client()
    put = client.put_object

    def refuse(**arguments: object) -> object:
        if "IfMatch" in arguments or "IfNoneMatch" in arguments:
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, "PutObject")
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", refuse)
    store = open_store(f"s3://{BUCKET}/old", client)
    store.write("a.bin", b"1")
    store.write("a.bin", b"2")
    with pytest.raises(Conflict):
        write_overtaken(store, b"ours", b"theirs")
    assert store.read("a.bin") == b"theirs"
    with pytest.raises(MissingObject):
        store.read("b")


def local_file(folder: Path, data: bytes) -> tuple[Path, FileInfo]:
    path = folder / "local_file"
    path.write_bytes(data)
    return path, FileInfo(len(data), sha256(data))


def test_adopt_stores_a_file(store: Store, size: int, tmp_path: Path) -> None:
    store.write("p/a.bin", b"stale")
    path, info = local_file(tmp_path, bytes(size))
    for _ in range(2):
        store.adopt("p/a.bin", path, info)
        assert store.read("p/a.bin") == bytes(size)
        assert store.list("") == ["p/a.bin"]
        assert path.read_bytes() == bytes(size)
    if isinstance(store, LocalStore):
        assert not list(store.folder.rglob(".tmp-*"))
        assert (store.folder / "p/a.bin").samefile(path)


def test_an_adopted_tar_is_verified_by_its_members_digest(store: Store, size: int, tmp_path: Path) -> None:
    blocks = [bytes(block) for block in tar_member("a", "bin", bytes(size))]
    path, _ = local_file(tmp_path, b"".join(blocks) + end_of_tar(sum(map(len, blocks))))
    with path.open("rb") as file:
        info = FileInfo(path.stat().st_size, file_digest(file, MEMBERS))
    for _ in range(2):
        store.adopt("p/a.tar", path, info)
    run = store.for_run(["q/"], {"p/a.tar": info.sha256})
    assert run.read("p/a.tar") == store.read("p/a.tar") == path.read_bytes()
    with run.local_path("p/a.tar") as whole:
        assert whole.read_bytes() == path.read_bytes()
    other = store.for_run(["q/"], {"p/a.tar": f"{MEMBERS}{64 * '0'}"})
    with pytest.raises(DamagedObject, match=info.sha256):
        other.read("p/a.tar")
    with pytest.raises(DamagedObject, match=info.sha256), other.local_path("p/a.tar"):
        pass


def test_adopt_copies_a_file_of_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def link(path: Path, other: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    store = LocalStore(tmp_path / "store")
    path, info = local_file(tmp_path, bytes(size))
    store.adopt("p/a.bin", path, info)
    assert store.read("p/a.bin") == bytes(size)
    assert not (store.folder / "p/a.bin").samefile(path)


def test_adopt_does_not_replace_a_version_newer_than_its_run(store: Store, tmp_path: Path) -> None:
    store.write("p/a.bin", b"stale")
    slow = store.for_run(["p/"], {})
    store.write("p/a.bin", b"theirs")
    path, info = local_file(tmp_path, b"ours")
    with pytest.raises(Conflict, match=info.sha256):
        slow.adopt("p/a.bin", path, info)
    assert store.read("p/a.bin") == b"theirs"
    path, info = local_file(tmp_path, b"theirs")
    slow.adopt("p/a.bin", path, info)
