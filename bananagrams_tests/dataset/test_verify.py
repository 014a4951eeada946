"""Tests of `verify`, which reports the shard, sample and bytes of each fault."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from bananagrams_assets.cli import main
from bananagrams_assets.dataset.extract import extract_shard
from bananagrams_assets.dataset.verify import Fault, verify
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import Sample, read_samples, sample_writer
from bananagrams_assets.storage.store import StoreError
from bananagrams_assets.storage.tables import read_table

from ..photos import local_pairs, profile_of, quiet
from ..stages.building import build_all


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    folder = tmp_path_factory.mktemp("verify")
    store = LocalStore(folder / "store")
    profile = profile_of(local_pairs(folder, 10), overlays={"max_samples": 1})
    build_all(store, profile)
    return store


@pytest.fixture
def store(intact: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the intact store to damage."""
    shutil.copytree(intact.folder, tmp_path / "copy")
    return LocalStore(tmp_path / "copy")


def faults(store: LocalStore) -> list[Fault]:
    return list(verify(store, 2, quiet).faults)


def largest_shard(store: LocalStore) -> str:
    tars = [name for name in store.list("shards/") if name.endswith(".tar")]
    return max(tars, key=store.size)


def samples_of(store: LocalStore, name: str) -> dict[str, tuple[int, int]]:
    """Return the byte range (first, end) of each sample of a tar from its table, by key."""
    rows = [row for row in read_table(store, name.replace(".tar", ".parquet")) if row["status"] == "written"]
    ends = [*(row["offset"] for row in rows[1:]), store.size(name)]
    return {row["key"]: (row["offset"], end) for row, end in zip(rows, ends, strict=True)}


def flip(store: LocalStore, name: str, position: int) -> None:
    path = store.folder / name
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def rewrite(store: LocalStore, name: str, change: Callable[[list[Sample]], list[Sample]]) -> None:
    with store.open(name) as file:
        samples = change(list(read_samples(file)))
    with sample_writer(store, name) as tar:
        for sample in samples:
            for part, data in sample.parts.items():
                tar.add(sample.key, part, data)


def test_an_intact_dataset_has_no_faults(intact: LocalStore) -> None:
    report = verify(intact, 2, quiet)
    assert report.faults == []
    assert (report.shards, report.samples) == (4, 10)


def test_a_flipped_byte_is_reported_with_shard_sample_and_bytes(store: LocalStore) -> None:
    name = largest_shard(store)
    generator = random.Random(0)
    content = (store.folder / name).read_bytes()
    for key, (first, end) in samples_of(store, name).items():
        last = next(i for i in range(end - 1, first, -1) if content[i])
        for position in (first, first + 700, *(generator.randrange(first, last) for _ in range(12))):
            flip(store, name, position)
            found = faults(store)
            assert {fault.place for fault in found} == {store.describe(name)}
            located = [fault for fault in found if fault.first is not None and fault.last is not None]
            assert any(
                fault.first <= position <= fault.last or fault.key == key  # type: ignore[operator]
                for fault in located
            ), (position, found)
            assert {fault.key for fault in found} <= {key, ""}
            assert any("in its receipt" in fault.what for fault in found)
            assert any("in its index" in fault.what for fault in found)
            (store.folder / name).write_bytes(content)


def test_a_flipped_byte_of_an_image_that_still_decodes_is_reported(store: LocalStore) -> None:
    name = largest_shard(store)
    key, (first, _) = next(iter(samples_of(store, name).items()))
    flip(store, name, first + 512 + 6000)
    fault = next(fault for fault in faults(store) if fault.key)
    assert fault.key == key
    assert fault.what == "input.jpg: the SHA-256 does not match the table"
    assert fault.first == first + 512


@pytest.mark.parametrize("cut", [1, 700, 1024, 20_000])
def test_a_truncated_tar_is_reported(store: LocalStore, cut: int) -> None:
    name = largest_shard(store)
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-cut])
    assert any(fault.place == store.describe(name) for fault in faults(store))


def test_missing_files_are_reported(store: LocalStore) -> None:
    tar, mask = (
        largest_shard(store),
        next(name for name in store.list("edit_masks/") if name.endswith(".tar")),
    )
    for name in (tar, mask):
        store.delete(name)
    assert sorted(str(fault) for fault in faults(store)) == sorted(
        f"{store.describe(name)}: the file is missing" for name in (tar, mask)
    )


def test_a_damaged_file_of_an_earlier_stage_is_reported(store: LocalStore) -> None:
    name = max((name for name in store.list("image_pairs/") if name.endswith(".tar")), key=store.size)
    flip(store, name, 3000)
    [fault] = faults(store)
    assert fault.place == store.describe(name)
    assert "in its receipt" in fault.what


def replace_parts(**parts: bytes | None) -> Callable[[list[Sample]], list[Sample]]:
    """Return a function that replaces (`a_b` for `a.b`) or, if None, removes parts of the first sample."""

    def change(samples: list[Sample]) -> list[Sample]:
        first = dict(samples[0].parts)
        for name, data in parts.items():
            part = name.replace("_", ".")
            if data is None:
                del first[part]
            else:
                first[part] = data
        return [Sample(samples[0].key, first), *samples[1:]]

    return change


def mask(mode: str, size: tuple[int, int], value: int) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (replace_parts(mask_png=None), "mask.png missing"),
        (replace_parts(mask_png=mask("L", (5, 5), 0)), "sizes disagree"),
        (replace_parts(mask_png=mask("L", (192, 144), 7)), "not single-channel 0/255"),
        (replace_parts(text_txt=b"\xff"), "text.txt is not UTF-8"),
        (replace_parts(meta_json=b"{"), "meta.json cannot be read"),
        (replace_parts(input_jpg=b"<html>"), "input.jpg cannot be decoded"),
        (lambda samples: samples[::-1], "not in key order"),
        (lambda samples: samples[1:], "in the table, but not in the tar"),
    ],
)
def test_an_invalid_sample_is_reported(
    store: LocalStore, change: Callable[[list[Sample]], list[Sample]], what: str
) -> None:
    name = largest_shard(store)
    keys = list(samples_of(store, name))
    rewrite(store, name, change)
    assert any(what in fault.what and fault.key in keys for fault in faults(store))


def with_meta(sample: Sample, **changes: Any) -> Sample:
    meta = json.loads(sample.parts["meta.json"])
    return Sample(sample.key, {**sample.parts, "meta.json": json.dumps(meta | changes).encode()})


def test_a_photo_in_two_splits_and_a_key_in_two_tars_are_reported(intact: LocalStore, tmp_path: Path) -> None:
    with intact.open(largest_shard(intact)) as file:
        sample = next(read_samples(file))
    other = Sample("other", with_meta(sample, key="other", split="test").parts)
    store = LocalStore(tmp_path / "tars")
    for name, samples in {"a.tar": [sample], "b.tar": [sample, other]}.items():
        with sample_writer(store, name) as tar:
            for member in samples:
                for part, data in member.parts.items():
                    tar.add(member.key, part, data)
    found = {fault.key: fault.what for fault in faults(store)}
    assert "is in train and in test" in found["other"] or "is in dev and in test" in found["other"]
    assert "duplicate key, also in" in found[sample.key]


def test_tars_in_any_folder_and_extracted_samples_are_verified(intact: LocalStore, tmp_path: Path) -> None:
    tar = intact.folder / largest_shard(intact)
    (tmp_path / "usb").mkdir()
    shutil.copy(tar, tmp_path / "usb")
    assert verify(LocalStore(tmp_path / "usb"), 1, quiet).faults == []
    extract_shard(tar, tmp_path / "plain")
    plain = LocalStore(tmp_path / "plain")
    assert verify(plain, 1, quiet).samples == len(samples_of(intact, largest_shard(intact)))
    path = next((tmp_path / "plain").glob("*.mask.png"))
    path.write_bytes(path.read_bytes()[:50])
    [fault] = faults(plain)
    assert (fault.key, fault.first) == (path.name.partition(".")[0], None)
    with pytest.raises(StoreError, match="no dataset found"):
        verify(LocalStore(tmp_path / "nothing"), 1, quiet)


def test_the_command_exits_with_1_if_there_are_faults(store: LocalStore) -> None:
    done = CliRunner().invoke(main, ["verify", store.url])
    assert done.exit_code == 0, done.output
    assert "4 shards, 10 samples" in done.output
    assert "nothing is broken" in done.output
    flip(store, largest_shard(store), 3000)
    done = CliRunner().invoke(main, ["verify", store.url])
    assert done.exit_code == 1
    key = next(iter(samples_of(store, largest_shard(store))))
    assert f"{store.describe(largest_shard(store))}: sample {key}: bytes 512-" in done.output


def test_the_table_of_a_shard_holds_the_offsets_in_its_tar(intact: LocalStore) -> None:
    name = largest_shard(intact)
    with intact.open(name) as file:
        data = file.read()
    for key, (first, _) in samples_of(intact, name).items():
        assert data[first:].startswith(f"{key}.input.jpg\0".encode())
    assert paths.split_of(Path(name).stem) == name.split("/")[1]
