"""A split on a real S3 server: downloaded once, verified by its index, equal to one in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bananagrams_assets.learn.dataset import DatasetError, open_split
from bananagrams_assets.learn.stream import stream_split
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store
from bananagrams_tests.weed import BUCKET, Weed, serving

from .tiny import make_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with serving(tmp_path_factory.mktemp("s3")) as weed:
        yield weed


@pytest.fixture
def store(
    weed: Weed, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """Return the dataset of `make_dataset` in a bucket; the folder `local` has a copy."""
    for name, value in weed.variables.items():
        monkeypatch.setenv(name, value)
    local, store = make_dataset(tmp_path / "local"), open_store(f"s3://{BUCKET}/{request.node.name}")
    for name in local.list(""):
        store.write(name, local.read(name))
    return store


def test_split_in_a_bucket_equals_the_one_in_a_folder(store: Store, tmp_path: Path) -> None:
    with open_split(store, "train") as far, open_split(open_store(str(tmp_path / "local")), "train") as near:
        assert far.digest == near.digest
        for one, other in zip(far, near, strict=True):
            assert (one.key, one.text, one.meta) == (other.key, other.text, other.meta)
            assert np.array_equal(one.image, other.image)
        streamed = list(stream_split(store, "train", min_confidence=0.7))
        assert [sample.key for sample in streamed] == [
            sample.key for sample in near.where(min_confidence=0.7)
        ]


def test_shard_is_downloaded_once_and_old_copies_are_deleted(store: Store, own_home: Path) -> None:
    with open_split(store, "train") as split:
        first = split[0].image
    copies = sorted((own_home / "cache").rglob("*.tar"))
    assert len(copies) == 2
    times = [path.stat().st_mtime_ns for path in copies]
    store.delete("shards/train/train-00000.tar")  # from now on only the local copy is read
    with open_split(store, "train") as split:
        assert np.array_equal(split[0].image, first)
    assert [path.stat().st_mtime_ns for path in copies] == times
    copies[0].rename(copies[0].with_name("train-00000-0123456789abcdef.tar"))
    store.write(
        "shards/train/train-00000.tar", copies[0].with_name("train-00000-0123456789abcdef.tar").read_bytes()
    )
    with open_split(store, "train"):
        assert sorted((own_home / "cache").rglob("*.tar")) == copies


def test_error_names_a_damaged_shard_in_a_bucket(store: Store, own_home: Path) -> None:
    data = bytearray(store.read("shards/train/train-00001.tar"))
    data[1000] ^= 1
    store.delete("shards/train/train-00001.tar")
    store.write("shards/train/train-00001.tar", bytes(data))
    with (
        pytest.raises(DatasetError, match=r"s3://.*/train-00001.tar: its SHA-256 is not that of its index"),
        open_split(store, "train"),
    ):
        pass
    assert not list((own_home / "cache").rglob("train-00001*.tar"))
    with pytest.raises(
        DatasetError, match=r"s3://.*/train-00001.tar, sample train-012: input.jpg is damaged"
    ):
        list(stream_split(store, "train"))


def test_files_in_a_bucket_have_their_content_type(weed: Weed, store: Store) -> None:
    kinds = {"index.html": "text/html", "a/1.jpg": "image/jpeg", "a/summary.js": "text/javascript"}
    for name, kind in kinds.items():
        store.write(f"overlays/{name}", b"x")
        prefix = store.url.partition(f"{BUCKET}/")[2]
        head = weed.client().head_object(Bucket=BUCKET, Key=f"{prefix}/overlays/{name}")
        assert head["ContentType"] == kind
