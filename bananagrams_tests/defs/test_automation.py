from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.definitions import build_definitions
from bananagrams_assets.defs.resources import StoreResource
from bananagrams_assets.graph import MANIFEST, SHARD_STAGES, SPLIT_INDEX
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.stages.receipts import write_receipt
from bananagrams_assets.stages.stage import UNPARTITIONED, Stage, StageResult
from bananagrams_assets.stages.staleness import input_receipts, input_versions
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("demo").profile


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def requests(store: Store, profile: Profile) -> dict[str, dg.RunRequest]:
    """Return the run requests of one sensor tick by partition."""
    defs = build_definitions(profile, store.url, "sqlite:///unused.db")
    context = dg.build_sensor_context(
        repository_def=defs.get_repository_def(), resources={"store": StoreResource(url=store.url)}
    )
    result = defs.resolve_sensor_def("stale_partitions").evaluate_tick(context)
    return {request.partition_key: request for request in result.run_requests or [] if request.partition_key}


def finish(store: Store, profile: Profile, stage: Stage, partition: str, content: str = "content") -> None:
    upstream = input_versions(input_receipts(store, profile, stage, partition), {})
    write_receipt(store, profile, stage, partition, StageResult({}, content=content), upstream)


def read_sources(store: Store, profile: Profile) -> None:
    for partition in [*profile.shard_keys(), UNPARTITIONED]:
        finish(store, profile, MANIFEST, partition)


def build_shards(store: Store, profile: Profile) -> None:
    for shard in profile.shard_keys():
        for stage in SHARD_STAGES:
            finish(store, profile, stage, shard)


def test_nothing_is_requested_before_the_manifest_was_read(store: Store, profile: Profile) -> None:
    assert requests(store, profile) == {}


def test_every_shard_that_was_never_built_is_requested(store: Store, profile: Profile) -> None:
    read_sources(store, profile)
    found = requests(store, profile)
    assert list(found) == sorted(profile.shard_keys())
    assert {request.job_name for request in found.values()} == {"build_shard"}


def test_the_indexes_follow_after_their_shards(store: Store, profile: Profile) -> None:
    read_sources(store, profile)
    build_shards(store, profile)
    found = requests(store, profile)
    assert set(found) == set(SPLITS)
    assert {request.job_name for request in found.values()} == {"index_split"}
    for split in found:
        finish(store, profile, SPLIT_INDEX, split)
    assert requests(store, profile) == {}


def test_changed_records_of_one_shard_request_that_shard_with_a_new_run_key(
    store: Store, profile: Profile
) -> None:
    read_sources(store, profile)
    before = requests(store, profile)["dev-00000"].run_key
    build_shards(store, profile)
    for split in SPLITS:
        finish(store, profile, SPLIT_INDEX, split)
    finish(store, profile, MANIFEST, "dev-00000", "other records")
    found = requests(store, profile)
    assert set(found) == {"dev-00000"}
    assert found["dev-00000"].run_key != before


def test_the_schedule_reads_the_sources_at_the_time_of_the_profile(store: Store) -> None:
    profile = load_profile("demo", {"automation.rebuild_cron": "30 4 * * *"}).profile
    schedule = build_definitions(profile, store.url, "sqlite:///unused.db").resolve_schedule_def(
        "nightly_refresh"
    )
    assert (schedule.job_name, schedule.cron_schedule) == ("refresh_manifest", "30 4 * * *")
