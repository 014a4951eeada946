"""The dataset: from the manifest's records to shards, their index and pages to judge them by eye.

Each asset is one call of a plain function of `data/`; `run_stage` skips a partition that is current.
"""

from collections.abc import Callable

import dagster as dg

from ..config import Profile
from ..fetching.client import FetchError
from ..progress import Log
from ..records.sources import SourceError
from ..stages.aligned_pairs import align_pairs
from ..stages.edit_masks import make_masks
from ..stages.image_pairs import fetch_pairs
from ..stages.manifest import build_manifest
from ..stages.shards import pack_shard
from ..stages.split_index import index_split
from ..stages.stage import STAGES, UNPARTITIONED, StageResult, UpstreamMissing, run_stage, write_receipt
from ..stages.status import retryable_failures
from ..stages.validation_overlays import draw_overlays
from ..storage.store import Store, StoreError
from .metadata import describe
from .partitions import PROFILE, shard_partitions, shards_of_split, split_partitions
from .resources import StoreResource

OWNERS = ["team:dataset"]
ANOTHER_TRY_S = 20
"""Seconds until the second and last try of a run that had no network; what is finished is kept."""


class BuildConfig(dg.Config):
    """What a person may ask of one run."""

    rebuild: bool = False
    """Build even what is up to date."""


class PairsConfig(BuildConfig):
    """What a person may ask of one run that fetches."""

    retry_failed: bool = False
    """Ask again for pictures whose failure may pass: 429, 5xx, timeouts, cut bodies."""


def code_version(asset: str) -> str:
    return STAGES[asset].code_version(PROFILE)


def build(
    context: dg.AssetExecutionContext,
    config: BuildConfig,
    store: Store,
    stage: Callable[[Store, Profile, str, Log], StageResult],
    else_because: str = "",
) -> dg.MaterializeResult:
    """Run the stage of this asset on this partition and report what it made."""
    asset = context.asset_key.to_user_string()
    partition = context.partition_key if context.has_partition_key else UNPARTITIONED
    try:
        outcome = run_stage(
            store, PROFILE, asset, partition, stage, context.log.info, config.rebuild, else_because
        )
    except (StoreError, SourceError, UpstreamMissing) as error:
        # Nothing that another try would mend.
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.MaterializeResult(
        metadata=describe(store, outcome), data_version=dg.DataVersion(outcome.receipt.data_version)
    )


@dg.asset(
    group_name="dataset", kinds={"json", "parquet"}, owners=OWNERS, code_version=code_version("manifest")
)
def manifest(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """The records of every source: validated, deduplicated, each in the shard of its source photograph.

    What is not a usable record is in `manifest/rejects.parquet` with line number and reason.
    """

    def whole(store: Store, profile: Profile, partition: str, log: Log) -> StageResult:
        results = build_manifest(store, PROFILE, log)
        for shard, result in results.items():
            if shard:
                write_receipt(store, PROFILE, "manifest", shard, result, {})
        return results[""]

    return build(context, config, store.open(), whole)


@dg.asset(
    deps=[manifest],
    partitions_def=shard_partitions,
    group_name="dataset",
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=code_version("image_pairs"),
    pool="fetch",
)
def image_pairs(
    context: dg.AssetExecutionContext, config: PairsConfig, store: StoreResource
) -> dg.MaterializeResult:
    """The shard's pictures, before and after, and a row for each record that says how it went."""
    opened = store.open()
    count = retryable_failures(opened, context.partition_key) if config.retry_failed else 0
    because = f"{count} failures may have passed" if count else ""
    try:
        return build(context, config, opened, fetch_pairs, because)
    except FetchError as error:
        # With a retry policy Dagster would begin a run anew that a person has ended.
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=ANOTHER_TRY_S) from error


@dg.asset(
    deps=[image_pairs],
    partitions_def=shard_partitions,
    group_name="dataset",
    kinds={"opencv", "parquet"},
    owners=OWNERS,
    code_version=code_version("aligned_pairs"),
)
def aligned_pairs(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """The homography that lays each edited picture over its input, or the reason why there is none."""
    return build(context, config, store.open(), align_pairs)


@dg.asset(
    deps=[manifest, image_pairs, aligned_pairs],
    partitions_def=shard_partitions,
    group_name="dataset",
    kinds={"opencv", "parquet"},
    owners=OWNERS,
    code_version=code_version("edit_masks"),
)
def edit_masks(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """Which pixels the edit changed: the difference that tone, texture and movement do not explain."""
    return build(context, config, store.open(), make_masks)


@dg.asset(
    deps=[manifest, image_pairs, aligned_pairs, edit_masks],
    partitions_def=shard_partitions,
    group_name="dataset",
    kinds={"webdataset"},
    owners=OWNERS,
    code_version=code_version("shards"),
)
def shards(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """The dataset: a WebDataset tar with photograph, mask, instruction, summary and metadata."""
    return build(context, config, store.open(), pack_shard)


@dg.asset(
    deps=[manifest, image_pairs, aligned_pairs, edit_masks],
    partitions_def=shard_partitions,
    group_name="review",
    kinds={"html"},
    owners=OWNERS,
    code_version=code_version("validation_overlays"),
)
def validation_overlays(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """A page to judge the shard's masks by eye: before, after aligned, difference, mask over photograph."""
    return build(context, config, store.open(), draw_overlays)


@dg.asset(
    deps=[dg.AssetDep(shards, partition_mapping=shards_of_split)],
    partitions_def=split_partitions,
    group_name="dataset",
    kinds={"json"},
    owners=OWNERS,
    code_version=code_version("split_index"),
)
def split_index(
    context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
) -> dg.MaterializeResult:
    """The split's shards with counts, bytes and digests, its statistics, card and attribution list."""
    return build(context, config, store.open(), index_split)
