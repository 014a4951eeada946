"""A stage function reads and writes only what its declaration lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import DATASET_STAGES, EDIT_MASKS, IMAGE_PAIRS, MANIFEST, SHARDS, STAGES
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.stages.access import declared_run, declared_settings
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.stage import UNPARTITIONED, Stage, StageResult, StageRun, UndeclaredAccess
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore

from ..photos import local_pairs, one_shard
from .building import build_all

SHARD, OTHER = "train-00000", "dev-00000"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Profile]:
    folder = tmp_path_factory.mktemp("declared")
    store, profile = LocalStore(folder / "store"), one_shard(local_pairs(folder, 3))
    build_all(store, profile)
    return store, profile


def run_of(stage: Stage, built: tuple[LocalStore, Profile], partition: str = SHARD) -> StageRun:
    store, profile = built
    return declared_run(stage, store, profile, partition, ignore_progress)


@pytest.mark.parametrize("stage", DATASET_STAGES, ids=lambda stage: stage.name)
def test_every_dataset_stage_builds_with_only_its_declared_access(
    built: tuple[LocalStore, Profile], stage: Stage
) -> None:
    store, profile = built
    partition = {"none": UNPARTITIONED, "shard": SHARD, "split": "train"}[stage.partitioning]
    outcome = build_partition(store, profile, stage, partition, ignore_progress, rebuild=True)
    assert outcome.reasons == ["rebuild requested"]


@pytest.mark.parametrize("stage", [stage for stage in DATASET_STAGES if stage.inputs], ids=lambda s: s.name)
def test_a_stage_without_one_of_its_inputs_declared_fails(
    built: tuple[LocalStore, Profile], stage: Stage
) -> None:
    store, profile = built
    partition = {"shard": SHARD, "split": "train"}[stage.partitioning]
    for missing in stage.inputs:
        inputs = tuple(upstream for upstream in stage.inputs if upstream is not missing)
        with pytest.raises((UndeclaredAccess, KeyError), match=f"reads .*{missing.name}|{missing.name}"):
            build_partition(
                store, profile, replace(stage, inputs=inputs), partition, ignore_progress, rebuild=True
            )


@pytest.mark.parametrize("stage", DATASET_STAGES, ids=lambda stage: stage.name)
def test_a_stage_without_its_settings_declared_fails(built: tuple[LocalStore, Profile], stage: Stage) -> None:
    store, profile = built
    partition = {"none": UNPARTITIONED, "shard": SHARD, "split": "train"}[stage.partitioning]
    undeclared = replace(stage, settings=(), unversioned_settings=(), external=None)
    with pytest.raises(UndeclaredAccess, match=f"{stage.name} reads the setting "):
        build_partition(store, profile, undeclared, partition, ignore_progress, rebuild=True)


def test_files_of_another_shard_cannot_be_read(built: tuple[LocalStore, Profile]) -> None:
    run = run_of(EDIT_MASKS, built)
    assert run.store.exists(paths.pairs_tar(SHARD))
    for name in (paths.pairs_tar(OTHER), paths.manifest_table(OTHER), paths.receipt("image_pairs", OTHER)):
        for read in (run.store.read, run.store.open, run.store.exists, run.store.size, run.store.local_path):
            with pytest.raises(UndeclaredAccess, match=rf"stage edit_masks reads .*{OTHER}"):
                read(name)


def test_files_of_a_later_stage_cannot_be_read(built: tuple[LocalStore, Profile]) -> None:
    with pytest.raises(UndeclaredAccess, match=r"stage edit_masks reads .*shards"):
        run_of(EDIT_MASKS, built).store.read(paths.shard_tar(SHARD))
    with pytest.raises(UndeclaredAccess, match="stage edit_masks reads"):
        run_of(EDIT_MASKS, built).store.list("")


def test_an_input_cannot_be_written(built: tuple[LocalStore, Profile]) -> None:
    run = run_of(EDIT_MASKS, built)
    for write in (
        lambda: run.store.write(paths.pairs_tar(SHARD), b""),
        lambda: run.store.create(paths.pairs_tar(SHARD)),
        lambda: run.store.delete(paths.pairs_tar(SHARD)),
    ):
        with pytest.raises(UndeclaredAccess, match=r"stage edit_masks writes .*image_pairs"):
            write()


def test_an_undeclared_setting_cannot_be_read() -> None:
    settings = declared_settings(EDIT_MASKS, load_profile("demo").profile)
    assert settings.mask.open_px == 1
    assert settings.fetch.max_pixels == 100_000_000
    with pytest.raises(UndeclaredAccess, match=r"edit_masks reads the setting fetch\.max_bytes"):
        _ = settings.fetch.max_bytes
    with pytest.raises(UndeclaredAccess, match="edit_masks reads the setting train"):
        _ = settings.train
    with pytest.raises(AttributeError):
        _ = settings.fetch.no_such_setting  # type: ignore[attr-defined]


def test_an_undeclared_read_ends_the_build_and_leaves_no_receipt(tmp_path: Path) -> None:
    def reads_too_much(run: StageRun) -> StageResult:
        return StageResult({}, {"side": run.settings.train.side_px})

    store, profile = LocalStore(tmp_path), load_profile("demo").profile
    stage = replace(MANIFEST, function=reads_too_much, external=None)
    with pytest.raises(UndeclaredAccess, match="manifest reads the setting train"):
        build_partition(store, profile, stage, UNPARTITIONED, ignore_progress)
    assert store.list("receipts/") == []


def test_inputs_come_before_the_stages_that_read_them() -> None:
    for number, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(STAGES[:number])


def test_no_two_stages_or_partitions_share_an_output() -> None:
    profile = load_profile("demo").profile
    prefixes = [
        (f"{stage.name}/{partition}", prefix)
        for stage in STAGES
        for partition in stage.partitions(profile)
        for prefix in stage.output_prefixes(partition)
    ]
    for name, prefix in prefixes:
        assert {other for other, found in prefixes if found.startswith(prefix)} == {name}, prefix


def test_the_manifest_is_read_shard_by_shard() -> None:
    profile = load_profile("demo").profile
    assert list(IMAGE_PAIRS.input_partitions(profile, SHARD)) == [(MANIFEST, SHARD)]
    assert MANIFEST.output_prefixes(SHARD) == (f"manifest/{SHARD}.parquet", f"receipts/manifest/{SHARD}.")
    assert SHARDS.output_prefixes(SHARD) == (f"shards/train/{SHARD}.", f"receipts/shards/{SHARD}.")
