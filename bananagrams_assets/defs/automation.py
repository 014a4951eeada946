"""Jobs to launch by hand, the schedule that reads the sources again, the sensor that rebuilds."""

from collections.abc import Iterator

import dagster as dg

from ..config import digest_of
from ..stages.stage import SHARD_STAGES, STAGES, UNPARTITIONED, partitions_of, read_receipt, why_stale
from .partitions import PROFILE
from .resources import StoreResource

refresh_manifest = dg.define_asset_job(
    "refresh_manifest", dg.AssetSelection.assets("manifest"), description="Read the sources again."
)
build_shard = dg.define_asset_job(
    "build_shard",
    dg.AssetSelection.assets(*SHARD_STAGES),
    description="One shard, from its pictures to its overlays.",
)
index_split = dg.define_asset_job(
    "index_split", dg.AssetSelection.assets("split_index"), description="The index of one split."
)
train_model = dg.define_asset_job(
    "train_model",
    dg.AssetSelection.assets("mask_model", "champion"),
    description="Train, register, and move the champion if the new model is better.",
)
choose_champion = dg.define_asset_job(
    "choose_champion",
    dg.AssetSelection.assets("champion"),
    description="Compare the newest model with the champion; with `back: true`, return to the previous one.",
)

nightly_refresh = dg.ScheduleDefinition(
    name="nightly_refresh",
    job=refresh_manifest,
    cron_schedule=PROFILE.automation.rebuild_cron,
    description="Reads the sources; `stale_partitions` then rebuilds what they changed.",
)


@dg.sensor(
    jobs=[build_shard, index_split],
    minimum_interval_seconds=PROFILE.automation.sensor_interval_s,
    description="Rebuilds each shard and index whose records, settings or code changed.",
)
def stale_partitions(
    context: dg.SensorEvaluationContext, store: StoreResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run a stale partition; its run key says what it is built from, so none is asked for twice."""
    opened = store.open()
    if read_receipt(opened, "manifest", UNPARTITIONED) is None:
        yield dg.SkipReason("the manifest was never materialized")
        return
    versions = digest_of({name: stage.code_version(PROFILE) for name, stage in STAGES.items()})
    stale_shards = {
        shard
        for shard in PROFILE.shard_keys()
        if any(why_stale(opened, PROFILE, stage, shard) for stage in SHARD_STAGES)
    }
    for shard in sorted(stale_shards):
        records = read_receipt(opened, "manifest", shard)
        key = f"{shard}:{records.data_version if records else ''}:{versions}"
        yield dg.RunRequest(run_key=key, job_name="build_shard", partition_key=shard)
    fresh_splits = set(partitions_of(PROFILE, "split_index")) - {
        shard.rsplit("-", 1)[0] for shard in stale_shards
    }
    for split in sorted(fresh_splits):
        if why_stale(opened, PROFILE, "split_index", split):
            built = {
                shard: receipt.data_version if (receipt := read_receipt(opened, "shards", shard)) else ""
                for shard in PROFILE.shard_keys(split)
            }
            key = f"{split}:{digest_of(built)}:{versions}"
            yield dg.RunRequest(run_key=key, job_name="index_split", partition_key=split)
