"""Build every dataset stage in order, without Dagster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import DATASET_STAGES
from bananagrams_assets.progress import Log, ignore_progress
from bananagrams_assets.stages.access import declared_run
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.stage import UNPARTITIONED, Stage, StageResult
from bananagrams_assets.stages.staleness import external_inputs
from bananagrams_assets.storage.store import Store


def build_all(
    store: Store, profile: Profile, rebuild: bool = False, stages: Sequence[Stage] = DATASET_STAGES
) -> dict[str, list[str]]:
    """Build every stale partition; return the reasons of each, by `stage/partition`."""
    built = {}
    for stage in stages:
        for partition in stage.partitions(profile):
            outcome = build_partition(store, profile, stage, partition, ignore_progress, rebuild)
            if outcome.reasons:
                built[f"{stage.name}/{partition}"] = outcome.reasons
    return built


def call(
    stage: Stage, store: Store, profile: Profile, partition: str = UNPARTITIONED, log: Log = ignore_progress
) -> StageResult:
    """Call a stage's function on one partition, with access only to its declared inputs and settings.

    It neither reads nor writes a receipt.
    """
    run = declared_run(stage, store, profile, partition, log)
    external = external_inputs(store, profile, stage, partition, log)
    result: StageResult = stage.function(replace(run, external=external))
    return result
