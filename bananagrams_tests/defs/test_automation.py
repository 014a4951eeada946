from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from bananagrams_assets.definitions import defs
from bananagrams_assets.defs.automation import nightly_refresh, stale_partitions
from bananagrams_assets.defs.partitions import PROFILE
from bananagrams_assets.defs.resources import StoreResource
from bananagrams_assets.stages.stage import (
    SHARD_STAGES,
    UNPARTITIONED,
    StageResult,
    upstream_versions,
    write_receipt,
)
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def asked(store: Store) -> dict[str, dg.RunRequest]:
    """Run requests of one tick by partition."""
    context = dg.build_sensor_context(
        repository_def=defs.get_repository_def(), resources={"store": StoreResource(url=store.url)}
    )
    result = stale_partitions.evaluate_tick(context)
    return {request.partition_key: request for request in result.run_requests or [] if request.partition_key}


def finish(store: Store, asset: str, partition: str, content: str = "content") -> None:
    upstream = {} if asset == "manifest" else upstream_versions(store, PROFILE, asset, partition)
    write_receipt(store, PROFILE, asset, partition, StageResult({}, content=content), upstream)


def read_sources(store: Store) -> None:
    for shard in [*PROFILE.shard_keys(), UNPARTITIONED]:
        finish(store, "manifest", shard)


def build_shards(store: Store) -> None:
    for shard in PROFILE.shard_keys():
        for asset in SHARD_STAGES:
            finish(store, asset, shard)


def test_nothing_is_asked_for_before_the_manifest_was_read(store: Store) -> None:
    assert asked(store) == {}


def test_every_shard_that_was_never_built_is_asked_for(store: Store) -> None:
    read_sources(store)
    requests = asked(store)
    assert list(requests) == sorted(PROFILE.shard_keys())
    assert {request.job_name for request in requests.values()} == {"build_shard"}


def test_the_indexes_follow_once_their_shards_are_built(store: Store) -> None:
    read_sources(store)
    build_shards(store)
    requests = asked(store)
    assert set(requests) == {"train", "dev", "test"}
    assert {request.job_name for request in requests.values()} == {"index_split"}
    for split in requests:
        finish(store, "split_index", split)
    assert asked(store) == {}


def test_changed_records_of_one_shard_ask_for_that_shard_with_a_new_run_key(store: Store) -> None:
    read_sources(store)
    before = asked(store)["dev-00000"].run_key
    build_shards(store)
    for split in ("train", "dev", "test"):
        finish(store, "split_index", split)
    finish(store, "manifest", "dev-00000", "other records")
    requests = asked(store)
    assert set(requests) == {"dev-00000"}
    assert requests["dev-00000"].run_key != before


def test_the_schedule_reads_the_sources_each_night() -> None:
    assert nightly_refresh.job_name == "refresh_manifest"
    assert nightly_refresh.cron_schedule == PROFILE.automation.rebuild_cron
