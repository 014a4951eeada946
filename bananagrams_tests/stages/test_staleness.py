"""Staleness of partitions, and builds of stale, current and concurrently built ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import ALIGNED_PAIRS, EDIT_MASKS, IMAGE_PAIRS, MANIFEST
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.stages.build import Outcome, UpstreamMissing, build_partition
from bananagrams_assets.stages.receipts import read_receipt, write_receipt
from bananagrams_assets.stages.stage import UNPARTITIONED, Stage, StageResult, StageRun
from bananagrams_assets.stages.staleness import stale_partitions, why_stale
from bananagrams_assets.storage.hashed_files import write_file
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Conflict, Store

from ..photos import local_pairs, profile_of
from .building import build_all

SHARD = "dev-00000"


@pytest.fixture
def profile() -> Profile:
    return load_profile("demo").profile


@pytest.fixture
def store(tmp_path: Path, profile: Profile) -> Store:
    """Return a store with the receipts of a manifest and nothing else."""
    store = open_store(str(tmp_path / "store"))
    for shard in profile.shard_keys():
        write_receipt(store, profile, MANIFEST, shard, StageResult({}, content=f"records of {shard}"), {})
    write_receipt(
        store, profile, MANIFEST, UNPARTITIONED, StageResult({}, content="all"), {"sample:": "sample:"}
    )
    return store


StageFunction = Callable[[StageRun], StageResult]


def writer(text: str) -> StageFunction:
    """Return a stage function that writes `text`."""

    def function(run: StageRun) -> StageResult:
        name = f"{run.stage.name}/{run.partition}.tar"
        return StageResult({name: write_file(run.store, name, text.encode())}, {"pairs": 1}, preview=b"jpeg")

    return function


def build(
    store: Store,
    profile: Profile,
    function: StageFunction,
    stage: Stage = IMAGE_PAIRS,
    shard: str = SHARD,
    rebuild: bool = False,
) -> Outcome:
    """Build one shard of a stage whose function is replaced."""
    return build_partition(store, profile, replace(stage, function=function), shard, ignore_progress, rebuild)


def build_text(store: Store, profile: Profile, text: str, stage: Stage = IMAGE_PAIRS) -> list[str]:
    """Build one shard with a stage function that writes `text`; return the reasons."""
    return build(store, profile, writer(text), stage).reasons


def test_a_current_partition_is_not_rebuilt(store: Store, profile: Profile) -> None:
    assert build_text(store, profile, "images") == ["never built"]
    assert build_text(store, profile, "other images") == []
    assert store.read(f"image_pairs/{SHARD}.tar") == b"images"


def test_the_reason_has_both_values_of_a_changed_setting(store: Store, profile: Profile) -> None:
    build_text(store, profile, "images")
    other = load_profile("demo", {"fetch.max_bytes": 2048}).profile
    assert why_stale(store, other, IMAGE_PAIRS, SHARD) == ["fetch.max_bytes: 64000000 → 2048"]


def test_a_setting_of_another_stage_leaves_a_partition_current(store: Store, profile: Profile) -> None:
    build_text(store, profile, "images")
    other = load_profile("demo", {"mask.open_px": 5, "fetch.concurrency": 3}).profile
    assert why_stale(store, other, IMAGE_PAIRS, SHARD) == []


def test_changed_records_of_a_shard_make_only_that_shard_stale(store: Store, profile: Profile) -> None:
    for shard in (SHARD, "test-00000"):
        build(store, profile, writer("images"), shard=shard)
    write_receipt(store, profile, MANIFEST, SHARD, StageResult({}, content="more records"), {})
    assert why_stale(store, profile, IMAGE_PAIRS, SHARD) == [f"manifest/{SHARD} changed"]
    assert why_stale(store, profile, IMAGE_PAIRS, "test-00000") == []


def test_the_reason_has_both_code_versions(store: Store, profile: Profile) -> None:
    build_text(store, profile, "images")
    newer = replace(IMAGE_PAIRS, version="newer")
    assert why_stale(store, profile, newer, SHARD) == [f"code version {IMAGE_PAIRS.version} → newer"]


def test_a_partition_with_a_missing_file_is_rebuilt(store: Store, profile: Profile) -> None:
    build_text(store, profile, "images")
    store.delete(f"image_pairs/{SHARD}.tar")
    assert why_stale(store, profile, IMAGE_PAIRS, SHARD) == [
        f"{store.describe(f'image_pairs/{SHARD}.tar')} is missing"
    ]
    assert build_text(store, profile, "images")


def test_a_rebuild_with_the_same_content_leaves_downstream_current(store: Store, profile: Profile) -> None:
    build_text(store, profile, "images")
    build(store, profile, writer("x"), ALIGNED_PAIRS)
    build(store, profile, writer("images"), rebuild=True)
    assert why_stale(store, profile, ALIGNED_PAIRS, SHARD) == []
    build(store, profile, writer("new"), rebuild=True)
    assert why_stale(store, profile, ALIGNED_PAIRS, SHARD) == [f"image_pairs/{SHARD} changed"]


def test_a_stage_with_a_missing_input_is_not_built(store: Store, profile: Profile) -> None:
    with pytest.raises(UpstreamMissing, match=rf"edit_masks/{SHARD} reads image_pairs/{SHARD}"):
        build_text(store, profile, "masks", EDIT_MASKS)


def test_a_failed_build_leaves_the_partition_stale(store: Store, profile: Profile) -> None:
    def fails(run: StageRun) -> StageResult:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build(store, profile, fails)
    assert why_stale(store, profile, IMAGE_PAIRS, SHARD) == ["never built"]


def test_partitions_downstream_of_stale_ones_are_stale(store: Store, profile: Profile) -> None:
    stale = stale_partitions(store, profile, (IMAGE_PAIRS, ALIGNED_PAIRS))
    assert stale["image_pairs", SHARD] == ["never built"]
    assert next(iter(stale))[0] == "image_pairs"
    assert len(stale) == 2 * len(profile.shard_keys())


def writer_after_other_run(store: Store, profile: Profile, text: str, own: str) -> StageFunction:
    """Return a function that writes `own` after another run of the same partition has written `text`."""

    def function(run: StageRun) -> StageResult:
        assert build(open_store(store.url), profile, writer(text)).reasons
        result = writer(own)(run)
        return StageResult(result.files, {"seconds": 2.5}, result.preview)

    return function


def test_concurrent_runs_with_equal_results_succeed(store: Store, profile: Profile) -> None:
    outcome = build(store, profile, writer_after_other_run(store, profile, "images", "images"))
    assert read_receipt(store, IMAGE_PAIRS.name, SHARD) == outcome.receipt
    assert why_stale(store, profile, IMAGE_PAIRS, SHARD) == []


def test_a_run_fails_if_another_one_wrote_a_different_result(store: Store, profile: Profile) -> None:
    with pytest.raises(Conflict, match=rf"image_pairs/{SHARD}\.tar: two runs wrote different bytes"):
        build(store, profile, writer_after_other_run(store, profile, "new", "old"))
    assert store.read(f"image_pairs/{SHARD}.tar") == b"new"
    assert why_stale(store, profile, IMAGE_PAIRS, SHARD) == []


@pytest.mark.parametrize("lost", ["manifest/train-00001.parquet", "receipts/manifest/train-00001.json"])
def test_a_missing_part_makes_the_manifest_stale(tmp_path: Path, lost: str) -> None:
    manifest = local_pairs(tmp_path, 3)
    store, profile = open_store(str(tmp_path / "store")), profile_of(manifest)
    build_all(store, profile, stages=(MANIFEST,))
    assert why_stale(store, profile, MANIFEST, UNPARTITIONED) == []
    store.delete(lost)
    assert why_stale(store, profile, MANIFEST, UNPARTITIONED) == [f"{store.describe(lost)} is missing"]
    assert list(build_all(store, profile, stages=(MANIFEST,))) == ["manifest/whole"]
    assert store.exists(lost)
