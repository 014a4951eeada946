"""A change rebuilds only the partitions that depend on it, with its reasons; on both kinds of store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import ALIGNED_PAIRS, DATASET_STAGES
from bananagrams_assets.stages.shards import dataset_digest
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.sample_tar import read_samples
from bananagrams_assets.storage.store import DamagedObject, Store
from bananagrams_assets.storage.tables import read_table

from ..photos import local_pairs, profile_of
from ..weed import BUCKET, Weed
from .building import build_all


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    weed: Weed = request.getfixturevalue("weed")
    name = "".join(letter for letter in request.node.name if letter.isalnum())
    return open_store(f"s3://{BUCKET}/{name}", weed.client())


def write_stamps(store: Store) -> dict[str, str]:
    """Return a value for each object that changes with every write: inode and mtime, or ETag and time."""
    if isinstance(store, LocalStore):
        return {
            path.relative_to(store.folder).as_posix(): f"{path.stat().st_ino} {path.stat().st_mtime_ns}"
            for path in store.folder.rglob("*")
            if path.is_file()
        }
    stamps = {}
    for name in store.list(""):
        head = store._head(name)  # type: ignore[attr-defined]
        stamps[name] = f"{head['ETag']} {head['LastModified']}"
    return stamps


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the names of the objects that were written, added or deleted."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def output_prefixes(*partitions: str) -> tuple[str, ...]:
    """Return the prefixes of all files of these partitions, named `stage/partition`, except manifests."""
    stages = {stage.name: stage for stage in DATASET_STAGES}
    built = (name.split("/") for name in partitions if not name.startswith("manifest/"))
    return tuple(prefix for name, part in built for prefix in stages[name].output_prefixes(part))


def profile(manifest: Path, **sections: dict[str, object]) -> Profile:
    return profile_of(manifest, overlays={"max_samples": 1}, **sections)


def test_a_changed_record_rebuilds_only_its_shard_and_split(store: Store, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 8)
    build_all(store, profile(manifest))
    assert build_all(store, profile(manifest)) == {}
    lines = manifest.read_text().splitlines()
    record = json.loads(lines[3]) | {"text": "Remove the blue flag."}
    manifest.write_text("\n".join([*lines[:3], json.dumps(record), *lines[4:]]) + "\n")
    before = write_stamps(store)
    built = build_all(store, profile(manifest))

    [shard] = [name.split("/")[1] for name in built if name.startswith("shards/")]
    split = paths.split_of(shard)
    # The images are unchanged, so the alignment, which reads nothing else, is current.
    assert set(built) == {
        "manifest/whole", f"image_pairs/{shard}", f"edit_masks/{shard}", f"shards/{shard}",
        f"validation_overlays/{shard}", f"split_index/{split}",
    }  # fmt: skip
    assert f"manifest/{shard} changed" in built[f"shards/{shard}"]
    assert built[f"split_index/{split}"] == [f"shards/{shard} changed"]
    whole = {paths.manifest_table(shard), *(paths.receipt("manifest", name) for name in (shard, "whole"))}
    for name in changed(before, write_stamps(store)) - whole:
        assert name.startswith(output_prefixes(*built)), name
    assert any(row["text"] == record["text"] for row in read_table(store, paths.manifest_table(shard)))


def test_a_mask_setting_rebuilds_only_masks_and_downstream_stages(store: Store, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 6)
    build_all(store, profile(manifest))
    before = write_stamps(store)
    other = profile(manifest, mask={"border_px": 9})
    built = build_all(store, other)
    assert {name.split("/")[0] for name in built} == {
        "edit_masks", "shards", "split_index", "validation_overlays",
    }  # fmt: skip
    for name, reasons in built.items():
        if not name.startswith("split_index"):
            assert "mask.border_px: 4 → 9" in reasons
    assert all(name.startswith(output_prefixes(*built)) for name in changed(before, write_stamps(store)))


def test_a_code_version_rebuilds_only_its_stage_if_the_result_is_equal(store: Store, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 6)
    build_all(store, profile(manifest))
    before = write_stamps(store)
    newer = replace(ALIGNED_PAIRS, version="next")
    stages = [newer if stage is ALIGNED_PAIRS else stage for stage in DATASET_STAGES]
    built = build_all(store, profile(manifest), stages=stages)
    assert set(built) == {f"aligned_pairs/{shard}" for shard in profile(manifest).shard_keys()}
    assert set(map(tuple, built.values())) == {(f"code version {ALIGNED_PAIRS.version} → next",)}
    assert changed(before, write_stamps(store)) == {
        paths.receipt("aligned_pairs", shard) for shard in profile(manifest).shard_keys()
    }


def test_the_digest_in_a_sample_follows_every_setting(store: Store, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 6)
    build_all(store, profile(manifest))
    # This setting does not change the alignment of these pairs.
    other = profile(manifest, align={"max_scale": 3.5})
    built = build_all(store, other)
    assert "align.max_scale: 4.0 → 3.5" in built["shards/train-00000"]
    fresh = LocalStore(tmp_path / "fresh")
    build_all(fresh, other)
    for shard in other.shard_keys():
        assert store.read(paths.shard_tar(shard)) == fresh.read(paths.shard_tar(shard))
        with store.open(paths.shard_tar(shard)) as file:
            for sample in read_samples(file):
                assert json.loads(sample.parts["meta.json"])["config_digest"] == dataset_digest(other)
    for split in ("train", "dev", "test"):
        assert json.loads(store.read(paths.index_json(split)))["config_digest"] == dataset_digest(other)


def test_a_damaged_input_file_is_an_error(store: Store, tmp_path: Path) -> None:
    manifest = local_pairs(tmp_path, 6)
    build_all(store, profile(manifest))
    shard = max(profile(manifest).shard_keys(), key=lambda key: store.size(paths.pairs_tar(key)))
    data = bytearray(store.read(paths.pairs_tar(shard)))
    data[3000] ^= 1
    store.write(paths.pairs_tar(shard), bytes(data))
    before = write_stamps(store)
    with pytest.raises(DamagedObject, match=f"{shard}.tar: its bytes are not those that were written"):
        build_all(store, profile(manifest, shards={"jpeg_quality": 90}))
    after = write_stamps(store)
    assert not [name for name in changed(before, after) if name.startswith(paths.shard_tar(shard))]
