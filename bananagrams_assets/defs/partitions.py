"""The profile that this code location was loaded with, and the partitions that it fixes."""

import dagster as dg

from ..profiles import load_profile

LOADED = load_profile()
PROFILE = LOADED.profile

shard_partitions = dg.StaticPartitionsDefinition(PROFILE.shard_keys())
split_partitions = dg.StaticPartitionsDefinition(list(PROFILE.splits.by_name()))

shards_of_split = dg.StaticPartitionMapping(
    {shard: shard.rsplit("-", 1)[0] for shard in PROFILE.shard_keys()}
)
"""Each shard is read by the index of its own split alone."""
