from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.storage.hashed_files import hashing_writer, write_file
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import MissingObject, StoreError, check_name


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def files(store: LocalStore) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_an_object_is_visible_only_when_complete(store: LocalStore) -> None:
    with store.create("a/b.bin") as file:
        file.write(b"half")
        file.flush()
        assert not store.exists("a/b.bin")
        assert store.list("") == []
    assert store.read("a/b.bin") == b"half"
    assert store.list("") == ["a/b.bin"]
    assert [path.name for path in files(store)] == ["b.bin"]


def test_an_exception_writes_nothing(store: LocalStore) -> None:
    with pytest.raises(KeyError), store.create("a.bin") as file:
        raise KeyError(file.write(b"half"))
    assert files(store) == []


def test_an_exception_keeps_the_previous_object(store: LocalStore) -> None:
    store.write("a.bin", b"whole")
    with pytest.raises(KeyError), store.create("a.bin") as file:
        raise KeyError(file.write(b"half"))
    assert store.read("a.bin") == b"whole"


def test_a_full_disk_raises_store_error_and_writes_nothing(store: LocalStore) -> None:
    with pytest.raises(StoreError, match=r"a\.bin.*No space left") as caught, store.create("a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(caught.value)
    assert files(store) == []


def test_two_writers_of_the_same_bytes_leave_one_object(store: LocalStore) -> None:
    with store.create("a.bin") as first, store.create("a.bin") as second:
        first.write(b"same")
        second.write(b"same")
    assert store.read("a.bin") == b"same"
    assert len(files(store)) == 1


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb", "a\0b", ".tmp-x"]
)
def test_names_outside_the_store_raise(store: LocalStore, name: str) -> None:
    for use in (store.read, store.exists, store.size, store.delete, store.describe):
        with pytest.raises(StoreError):
            use(name)
    with pytest.raises(StoreError):
        store.create(name)
    with pytest.raises(StoreError):
        store.write(name, b"")


@given(st.text())
def test_accepted_names_lie_under_the_root(name: str) -> None:
    try:
        check_name(name)
    except StoreError:
        return
    assert Path(os.path.normpath(Path("/root") / name)) == Path("/root") / name


def test_a_missing_object_error_gives_its_path(store: LocalStore) -> None:
    for read in (store.read, store.size):
        with pytest.raises(MissingObject, match=r"store/a/b\.bin"):
            read("a/b.bin")
    with pytest.raises(LookupError), store.open("a/b.bin"):
        pass
    store.delete("a/b.bin")


def test_list_is_sorted_and_filtered_by_prefix(store: LocalStore) -> None:
    for name in ("b/2", "b/1", "a", "bc/1", "b/x/3"):
        store.write(name, b"")
    assert store.list("") == ["a", "b/1", "b/2", "b/x/3", "bc/1"]
    assert store.list("b/") == ["b/1", "b/2", "b/x/3"]
    assert store.list("b") == ["b/1", "b/2", "b/x/3", "bc/1"]
    assert store.list("none/") == []


def test_written_objects_read_back(store: LocalStore) -> None:
    store.write("a.bin", b"12345")
    assert store.size("a.bin") == 5
    with store.open("a.bin") as file:
        assert (file.read(2), file.read()) == (b"12", b"345")
    with store.local_path("a.bin") as path:
        assert path.read_bytes() == b"12345"
    store.delete("a.bin")
    assert not store.exists("a.bin")


def test_a_file_in_place_of_the_folder_raises_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store/a\.bin: cannot be written") as caught:
        open_store(str(tmp_path / "file" / "store")).write("a.bin", b"")
    assert "\n" not in str(caught.value)


def test_open_store_accepts_paths_and_file_urls(tmp_path: Path) -> None:
    for url in (str(tmp_path), tmp_path.as_uri()):
        store = open_store(url)
        store.write("a", b"1")
        assert store.describe("a") == str(tmp_path / "a")
    for bad in ("gs://bucket/a", "s3://", "", "file://host/a"):
        with pytest.raises(StoreError):
            open_store(bad)


def test_writers_return_length_and_sha256(store: LocalStore) -> None:
    with hashing_writer(store, "a") as file:
        file.write(b"ab")
        file.write(memoryview(b"c"))
    assert file.info == write_file(store, "b", b"abc")
    assert file.info.bytes == 3
    assert file.info.sha256.startswith("ba7816bf")
