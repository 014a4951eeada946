"""Jobs, the schedule that reads the sources, and the sensor that rebuilds stale partitions."""

from collections.abc import Iterator

import dagster as dg

from ..config import Profile, digest_of
from ..graph import CHAMPION, MANIFEST, MASK_MODEL, SHARD_STAGES, SHARDS, SPLIT_INDEX, STAGES
from ..stages.receipts import read_receipt
from ..stages.stage import UNPARTITIONED, Stage
from ..stages.staleness import why_stale
from ..storage.paths import split_of
from ..storage.store import Store
from .resources import StoreResource


def _job(name: str, stages: tuple[Stage, ...], description: str) -> dg.JobDefinition:
    selection = dg.AssetSelection.assets(*(stage.name for stage in stages))
    return dg.define_asset_job(name, selection, description=description)  # type: ignore[return-value]


refresh_manifest = _job("refresh_manifest", (MANIFEST,), "Read the sources again.")
build_shard = _job("build_shard", SHARD_STAGES, "Build one shard, from its images to its overlays.")
index_split = _job("index_split", (SPLIT_INDEX,), "Build the index of one split.")
train_model = _job(
    "train_model",
    (MASK_MODEL, CHAMPION),
    "Train and register a model, and make it champion if it is better.",
)
choose_champion = _job(
    "choose_champion",
    (CHAMPION,),
    "Compare the newest model with the champion; with `back: true`, return to the previous champion.",
)
JOBS = (refresh_manifest, build_shard, index_split, train_model, choose_champion)


def nightly_refresh(profile: Profile) -> dg.ScheduleDefinition:
    """Return the schedule that reads the sources; the sensor then rebuilds what changed."""
    return dg.ScheduleDefinition(
        name="nightly_refresh",
        job=refresh_manifest,
        cron_schedule=profile.automation.rebuild_cron,
        description="Reads the sources; `stale_partitions` then rebuilds what changed.",
    )


def stale_partitions(profile: Profile) -> dg.SensorDefinition:
    """Return the sensor that requests one run for each stale shard, then for each stale split index."""

    @dg.sensor(
        name="stale_partitions",
        jobs=[build_shard, index_split],
        minimum_interval_seconds=profile.automation.sensor_interval_s,
        description="Rebuilds each shard and index whose records, settings or code changed.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, store: StoreResource
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        yield from _requests(store.open(), profile)

    return sensor


def _requests(store: Store, profile: Profile) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yield a run request for each stale partition. The run key holds the versions it is built from."""
    if read_receipt(store, MANIFEST.name, UNPARTITIONED) is None:
        yield dg.SkipReason("the manifest was never materialized")
        return
    versions = digest_of({stage.name: stage.code_version(profile) for stage in STAGES})
    stale_shards = {
        shard
        for shard in profile.shard_keys()
        if any(why_stale(store, profile, stage, shard) for stage in SHARD_STAGES)
    }
    for shard in sorted(stale_shards):
        records = read_receipt(store, MANIFEST.name, shard)
        key = f"{shard}:{records.data_version if records else ''}:{versions}"
        yield dg.RunRequest(run_key=key, job_name=build_shard.name, partition_key=shard)
    for split in sorted({*SPLIT_INDEX.partitions(profile)} - {split_of(shard) for shard in stale_shards}):
        if why_stale(store, profile, SPLIT_INDEX, split):
            built = {
                shard: receipt.data_version if (receipt := read_receipt(store, SHARDS.name, shard)) else ""
                for shard in profile.shard_keys(split)
            }
            key = f"{split}:{digest_of(built)}:{versions}"
            yield dg.RunRequest(run_key=key, job_name=index_split.name, partition_key=split)
