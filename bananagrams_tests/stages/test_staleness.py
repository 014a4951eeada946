from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.progress import Log
from bananagrams_assets.stages import stage
from bananagrams_assets.stages.stage import (
    UNPARTITIONED,
    StageResult,
    UpstreamMissing,
    read_receipt,
    run_stage,
    stale_partitions,
    why_stale,
    write_receipt,
)
from bananagrams_assets.storage.files import write_file
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Conflict, Store

SHARD = "dev-00000"


@pytest.fixture
def profile() -> Profile:
    return load_profile("demo").profile


@pytest.fixture
def store(tmp_path: Path, profile: Profile) -> Store:
    """A store with a manifest for every shard and nothing else."""
    store = open_store(str(tmp_path / "store"))
    for shard in profile.shard_keys():
        write_receipt(store, profile, "manifest", shard, StageResult({}, content=f"records of {shard}"), {})
    write_receipt(
        store, profile, "manifest", UNPARTITIONED, StageResult({}, content="all"), {"sample:": "sample:"}
    )
    return store


def builder(text: str) -> Callable[[Store, Profile, str, Log], StageResult]:
    def build(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
        name = f"image_pairs/{shard}.tar"
        return StageResult({name: write_file(store, name, text.encode())}, {"pairs": 1}, preview=b"jpeg")

    return build


def run(store: Store, profile: Profile, text: str, asset: str = "image_pairs") -> list[str]:
    return run_stage(store, profile, asset, SHARD, builder(text), lambda line: None).reasons


def test_a_current_partition_is_not_built_again(store: Store, profile: Profile) -> None:
    assert run(store, profile, "pictures") == ["never built"]
    assert run(store, profile, "other pictures") == []
    assert store.read(f"image_pairs/{SHARD}.tar") == b"pictures"


def test_a_changed_setting_is_named_with_both_values(store: Store, profile: Profile) -> None:
    run(store, profile, "pictures")
    other = load_profile("demo", {"fetch.max_bytes": 2048}).profile
    assert why_stale(store, other, "image_pairs", SHARD) == ["fetch.max_bytes: 64000000 → 2048"]


def test_a_setting_that_another_stage_reads_leaves_this_one_current(store: Store, profile: Profile) -> None:
    run(store, profile, "pictures")
    other = load_profile("demo", {"mask.open_px": 5, "fetch.concurrency": 3}).profile
    assert why_stale(store, other, "image_pairs", SHARD) == []


def test_changed_records_of_a_shard_make_that_shard_stale_alone(store: Store, profile: Profile) -> None:
    for shard in (SHARD, "test-00000"):
        run_stage(store, profile, "image_pairs", shard, builder("pictures"), lambda line: None)
    write_receipt(store, profile, "manifest", SHARD, StageResult({}, content="more records"), {})
    assert why_stale(store, profile, "image_pairs", SHARD) == [f"manifest/{SHARD} changed"]
    assert why_stale(store, profile, "image_pairs", "test-00000") == []


def test_a_new_code_version_is_named(store: Store, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store, profile, "pictures")
    now = stage.STAGES["image_pairs"].version
    newer = stage.Stage("image_pairs", "newer", ("fetch",), ("manifest",))
    monkeypatch.setitem(stage.STAGES, "image_pairs", newer)
    assert why_stale(store, profile, "image_pairs", SHARD) == [f"code version {now} → newer"]


def test_a_missing_file_is_built_again(store: Store, profile: Profile) -> None:
    run(store, profile, "pictures")
    store.delete(f"image_pairs/{SHARD}.tar")
    assert why_stale(store, profile, "image_pairs", SHARD) == [
        f"{store.describe(f'image_pairs/{SHARD}.tar')} is missing"
    ]
    assert run(store, profile, "pictures")


def test_a_rebuild_with_the_same_content_leaves_downstream_current(store: Store, profile: Profile) -> None:
    run(store, profile, "pictures")
    run_stage(store, profile, "aligned_pairs", SHARD, builder("x"), lambda line: None)
    run_stage(store, profile, "image_pairs", SHARD, builder("pictures"), lambda line: None, rebuild=True)
    assert why_stale(store, profile, "aligned_pairs", SHARD) == []
    run_stage(store, profile, "image_pairs", SHARD, builder("new"), lambda line: None, rebuild=True)
    assert why_stale(store, profile, "aligned_pairs", SHARD) == [f"image_pairs/{SHARD} changed"]


def test_nothing_is_built_before_what_it_reads(store: Store, profile: Profile) -> None:
    with pytest.raises(UpstreamMissing, match=rf"edit_masks/{SHARD} reads image_pairs/{SHARD}"):
        run(store, profile, "masks", "edit_masks")


def test_a_failed_build_leaves_the_partition_stale(store: Store, profile: Profile) -> None:
    def fails(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_stage(store, profile, "image_pairs", SHARD, fails, lambda line: None)
    assert why_stale(store, profile, "image_pairs", SHARD) == ["never built"]


def test_what_waits_for_a_stale_partition_is_stale_too(store: Store, profile: Profile) -> None:
    stale = stale_partitions(store, profile, ("image_pairs", "aligned_pairs"))
    assert stale["image_pairs", SHARD] == ["never built"]
    assert next(iter(stale))[0] == "image_pairs"
    assert len(stale) == 2 * len(profile.shard_keys())


def test_every_asset_of_the_graph_has_a_stage_and_no_other() -> None:
    from bananagrams_assets.definitions import defs

    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert keys == set(stage.STAGES)


def test_dagster_draws_the_dependencies_that_receipts_follow() -> None:
    import dagster as dg

    from bananagrams_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    for name, declared in stage.STAGES.items():
        parents = {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}
        assert parents == set(declared.upstream), name


def overtaken_by(text: str, own: str) -> Callable[[Store, Profile, str, Log], StageResult]:
    """A build of `own` during which another run of the same partition begins, builds `text` and ends."""

    def build(store: Store, profile: Profile, shard: str, log: Log) -> StageResult:
        again = run_stage(open_store(store.url), profile, "image_pairs", shard, builder(text), log)
        assert again.reasons
        result = builder(own)(store, profile, shard, log)
        return StageResult(result.files, {"seconds": 2.5}, result.preview)

    return build


def test_two_runs_that_do_the_same_at_once_are_fine(store: Store, profile: Profile) -> None:
    outcome = run_stage(
        store, profile, "image_pairs", SHARD, overtaken_by("pictures", "pictures"), lambda line: None
    )
    assert read_receipt(store, "image_pairs", SHARD) == outcome.receipt
    assert why_stale(store, profile, "image_pairs", SHARD) == []


def test_a_run_that_is_overtaken_by_another_result_fails_and_undoes_nothing(
    store: Store, profile: Profile
) -> None:
    with pytest.raises(Conflict, match=rf"image_pairs/{SHARD}\.tar: two runs wrote different bytes"):
        run_stage(store, profile, "image_pairs", SHARD, overtaken_by("new", "old"), lambda line: None)
    assert store.read(f"image_pairs/{SHARD}.tar") == b"new"
    assert why_stale(store, profile, "image_pairs", SHARD) == []
