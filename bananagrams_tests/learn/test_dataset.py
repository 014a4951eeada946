from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bananagrams_assets.config import AugmentSettings
from bananagrams_assets.learn.dataset import (
    DatasetError,
    StepSampler,
    TrainingSet,
    data_loader,
    decode_sample,
    open_split,
    step_indices,
)
from bananagrams_assets.learn.stream import stream_split
from bananagrams_assets.storage.tables import SHARDS_COLUMNS, write_table

from .tiny import HALVES, HEIGHT, WIDTH, make_dataset, profile, sample_parts, write_shard


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_every_epoch_has_each_sample_once(samples: int, share: int, world_size: int, seed: int) -> None:
    batch_size, epochs = share * world_size, 3
    pairs = []
    for step in range(-(-samples * epochs // batch_size)):
        parts = [
            step_indices(samples, batch_size, seed, step, rank, world_size) for rank in range(world_size)
        ]
        assert {len(part) for part in parts} == {share}
        pairs += [part[i] for i in range(share) for part in parts]
    for epoch in range(epochs):
        assert sorted(index for number, index in pairs if number == epoch) == list(range(samples))
    assert [number for number, _ in pairs] == sorted(number for number, _ in pairs)


def test_ranks_divide_the_samples_of_a_step() -> None:
    alone = step_indices(100, 8, 3, 20, 0, 1)
    shared = [step_indices(100, 8, 3, 20, rank, 2) for rank in range(2)]
    assert sorted(shared[0] + shared[1]) == sorted(alone)


def test_sample_order_differs_between_epochs_and_seeds() -> None:
    orders = [
        [index for _, index in step_indices(50, 50, seed, step, 0, 1)] for seed in (0, 1) for step in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_split_returns_the_stored_samples(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    with open_split(store, "train") as split:
        assert len(split) == 24
        sample = split[13]  # in the second tar
        assert sample.key == "train-013"
        assert sample.text == split.text(13) == "Tint the right half."
        assert sample.image.shape == (HEIGHT, WIDTH, 3)
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[HALVES["right"]] = 1
        assert np.array_equal(sample.mask, expected)
        assert np.array_equal(split.mask(13), expected)
        assert sample.valid.all()


def test_pixels_outside_the_overlap_are_invalid() -> None:
    for overlap in ([10, 5, 30, 5, 30, 20, 10, 20], [[10, 5], [30, 5], [30, 20], [10, 20]]):
        parts = sample_parts(0, np.random.default_rng(0), overlap)
        valid = decode_sample("shard", "key", parts).valid
        assert valid.shape == (HEIGHT, WIDTH)
        assert valid[5:21, 10:31].all()
        assert valid.sum() == 16 * 21


def test_training_samples_are_selected_by_confidence_and_verdict(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    with open_split(store, "train") as split:
        assert len(split.select(profile().train)) == 24
        sure = split.select(profile(train__min_confidence=0.7).train)
        assert [sample.meta["mask"]["confidence"] for sample in sure] == [0.9] * 12
        local = split.select(profile(train__include_global=False).train)
        assert len(local) == 21


def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    with open_split(store, "train") as split:
        data = TrainingSet(split, 32, AugmentSettings(), seed=5, cache=False)
        serial = list(data_loader(data, StepSampler(24, 8, 5, range(2, 5)), workers=0))
        parallel = list(data_loader(data, StepSampler(24, 8, 5, range(2, 5)), workers=2))
    assert len(serial) == 3
    for one, other in zip(serial, parallel, strict=True):
        assert one.images.shape == (8, 3, 32, 32)
        assert one.mask.shape == one.valid.shape == (8, 1, 32, 32)
        assert one.images.dtype == one.mask.dtype == one.valid.dtype == torch.uint8
        assert one.keys == other.keys
        assert one.texts == other.texts
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.mask, other.mask)


def test_cached_samples_equal_uncached_ones(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    with open_split(store, "train") as split:
        cached, plain = (TrainingSet(split, 32, AugmentSettings(), 0, cache) for cache in (True, False))
        for _ in range(2):
            one, other = cached[(1, 4)], plain[(1, 4)]
            assert (one[:2], one[5]) == (other[:2], other[5])
            assert all(np.array_equal(a, b) for a, b in zip(one[2:5], other[2:5], strict=True))


def test_missing_split_error_says_to_build_first(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    with (
        pytest.raises(DatasetError, match=r"'dev' has no index in .*dev.json: build the dataset first"),
        open_split(store, "dev"),
    ):
        pass


def test_empty_split_error_gives_the_reason(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4, "dev": 0})
    with (
        pytest.raises(DatasetError, match=r"'dev' holds no samples.*splits.dev.ratio"),
        open_split(store, "dev"),
    ):
        pass


def test_error_names_a_shard_that_does_not_match_its_index(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    index = json.loads(store.read("index/train.json"))
    index["shards"][0]["samples"] = 3
    store.write("index/train.json", json.dumps(index).encode())
    with (
        pytest.raises(DatasetError, match=r"train-00000.tar: has 2 samples, but 3 according to its index"),
        open_split(store, "train"),
    ):
        pass


def test_error_names_a_table_without_offsets(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    columns = {name: kind for name, kind in SHARDS_COLUMNS.items() if name != "part_bytes"}
    write_table(store, "shards/train/train-00000.parquet", columns, [])
    with (
        pytest.raises(DatasetError, match=r"train-00000.parquet: sample offsets are missing; rebuild"),
        open_split(store, "train"),
    ):
        pass


@pytest.mark.parametrize("part", ["input.jpg", "mask.png", "text.txt", "meta.json"])
def test_damaged_byte_error_names_shard_sample_and_part(tmp_path: Path, part: str) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    damage(tmp_path / "shards/train/train-00000.tar", f"train-001.{part}")
    with open_split(store, "train") as split:
        assert split[0].key == "train-000"
        with pytest.raises(DatasetError, match=rf"train-00000.tar, sample train-001: {part} is damaged"):
            split[1]


def test_error_names_a_shard_of_the_wrong_length(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    with (tmp_path / "shards/train/train-00001.tar").open("ab") as file:
        file.write(bytes(512))
    with (
        pytest.raises(DatasetError, match=r"train-00001.tar: has \d+ bytes, but \d+ according to its index"),
        open_split(store, "train"),
    ):
        pass


def test_undecodable_image_error_names_the_sample(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 4})
    parts = {f"train-{index:03d}": sample_parts(index, np.random.default_rng(0)) for index in range(2)}
    parts["train-001"]["input.jpg"] = b"no picture"
    entry = write_shard(store, "train-00000", parts)
    index = json.loads(store.read("index/train.json"))
    index["shards"][0] = entry
    store.write("index/train.json", json.dumps(index).encode())
    with (
        open_split(store, "train") as split,
        pytest.raises(DatasetError, match="sample train-001: cannot be read"),
    ):
        split[1]


def test_samples_are_selected_without_reading_them(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    for tar in (tmp_path / "shards/train").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with open_split(store, "train") as split:
        assert len(split.where(verdicts=["global"])) == 3
        assert len(split.where(min_confidence=0.7).where(verdicts=["local"])) == 9
        assert len(split.where(edit_types=["Change an object's attribute"], scopes=["local"])) == 24
        assert len(split.where(edit_types=["Remove an object"])) == 0


def test_stream_and_random_access_return_the_same_samples(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    with open_split(store, "train") as split:
        for samples, stream in (
            (split, stream_split(store, "train")),
            (split.where(min_confidence=0.7), stream_split(store, "train", min_confidence=0.7)),
            (split.where(verdicts=["global"]), stream_split(store, "train", verdicts=["global"])),
        ):
            streamed = list(stream)
            assert [sample.key for sample in streamed] == [sample.key for sample in samples]
            for one, other in zip(streamed, samples, strict=True):
                assert one.text == other.text
                assert one.meta == other.meta
                for name in ("image", "mask", "valid"):
                    assert np.array_equal(getattr(one, name), getattr(other, name))


def test_shuffled_stream_has_each_sample_once_in_a_new_order_per_epoch(tmp_path: Path) -> None:
    stream = stream_split(make_dataset(tmp_path), "train", shuffle=24, seed=1)
    epochs = [[sample.key for sample in stream] for _ in range(2)]
    assert [sorted(keys) for keys in epochs] == [[f"train-{number:03d}" for number in range(24)]] * 2
    assert epochs[0] != epochs[1] != sorted(epochs[1])


def test_stream_divides_its_shards_among_workers(tmp_path: Path) -> None:
    stream = stream_split(make_dataset(tmp_path), "train")
    keys = [sample.key for sample in DataLoader(stream, batch_size=None, num_workers=2)]
    assert sorted(keys) == [f"train-{number:03d}" for number in range(24)]


def test_undecoded_stream_yields_webdataset_samples(tmp_path: Path) -> None:
    stream = stream_split(make_dataset(tmp_path), "dev", decoded=False).compose(
        webdataset.to_tuple("text.txt")
    )
    assert next(iter(stream)) == (b"Tint the left half.",)


def test_stream_names_a_damaged_sample_before_yielding_it(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 8})
    damage(tmp_path / "shards/train/train-00001.tar", "train-006.mask.png")
    stream, keys = stream_split(store, "train"), []
    with pytest.raises(DatasetError, match=r"train-00001.tar, sample train-006: mask.png is damaged"):
        keys += [sample.key for sample in stream]
    damage(tmp_path / "shards/train/train-00000.tar", "train-001.text.txt", -512)
    with pytest.raises(DatasetError, match=r"train-00000.tar, sample train-001: does not match its table"):
        list(stream_split(store, "train"))


def test_stream_detects_damage_outside_the_parts(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 8})
    path = tmp_path / "shards/train/train-00000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = tar.getmember("train-000.text.txt")
    data[member.offset_data + member.size + 3] ^= 1  # padding
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"train-00000.tar: its SHA-256 is not that of its index"):
        list(stream_split(store, "train"))


def damage(tar_file: Path, member: str, offset: int = 0) -> None:
    """Flip one bit in the middle of a member, or `offset` bytes after its start."""
    data = bytearray(tar_file.read_bytes())
    with tarfile.open(tar_file) as tar:
        info = tar.getmember(member)
    data[info.offset_data + (offset or info.size // 2)] ^= 1
    tar_file.write_bytes(data)
