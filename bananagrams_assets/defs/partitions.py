"""Dagster's partitions and dependencies, derived from the declarations of the stages."""

from collections.abc import Sequence

import dagster as dg

from ..config import Profile
from ..stages.stage import Stage, partition_names
from ..storage.paths import split_of


def partitions_of(stage: Stage, profile: Profile) -> dg.PartitionsDefinition | None:
    """Return the partitions definition of a stage, None for an unpartitioned one."""
    if stage.partitioning == "none":
        return None
    return dg.StaticPartitionsDefinition(partition_names(profile, stage.partitioning))


def dependencies_of(stage: Stage, profile: Profile) -> Sequence[dg.AssetDep]:
    """Return the assets that a stage reads, each with the mapping between their partitions."""
    return [
        dg.AssetDep(upstream.name, partition_mapping=_mapping(upstream, stage, profile))
        for upstream in stage.inputs
    ]


def _mapping(upstream: Stage, stage: Stage, profile: Profile) -> dg.PartitionMapping | None:
    if upstream.partitioning == "shard" and stage.partitioning == "split":
        return dg.StaticPartitionMapping({shard: split_of(shard) for shard in profile.shard_keys()})
    if upstream.partitioning != "none" and stage.partitioning == "none":
        return dg.AllPartitionMapping()
    return None
