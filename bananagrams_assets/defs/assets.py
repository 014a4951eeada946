"""Every stage of `graph.py` as a Dagster asset."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from ..config import Profile
from ..fetching.client import FetchError
from ..graph import CHAMPION, DATASET_STAGES, IMAGE_PAIRS, MASK_MODEL
from ..learn.mask_model import TrainingCrashed, TrainingFailed, TrainingRequest
from ..records.sources import SourceError
from ..stages.build import UpstreamMissing, build_partition
from ..stages.stage import UNPARTITIONED, Stage
from ..stages.status import retryable_failures
from ..storage.store import StoreError
from .launchers import run_training
from .metadata import describe
from .partitions import dependencies_of, partitions_of
from .resources import MlflowResource, StoreResource

RETRY_DELAY_S = 20
"""Delay before the single retry after a network failure, in seconds. Finished images are kept."""

Body = Callable[..., dg.MaterializeResult]


class BuildConfig(dg.Config):
    """Run configuration of an asset."""

    rebuild: bool = False
    """Build the partition even if it is up to date."""


class PairsConfig(BuildConfig):
    """Run configuration of `image_pairs`."""

    retry_failed: bool = False
    """Fetch images with a retryable failure again: status 429 or 5xx, timeouts, truncated bodies."""


class TrainConfig(BuildConfig):
    """Run configuration of `mask_model`."""

    resume: str | None = None
    """Checkpoint to start from: its name in the store, or a path."""


class ChampionConfig(BuildConfig):
    """Run configuration of `champion`."""

    back: bool = False
    """Make the previous champion champion again instead of comparing."""


def build_assets(profile: Profile) -> list[dg.AssetsDefinition]:
    """Return the asset of every stage, with the partitions that the profile fixes."""
    plain = [_plain_asset(stage, profile) for stage in DATASET_STAGES if stage is not IMAGE_PAIRS]
    return [*plain, _image_pairs(profile), _mask_model(profile), _champion(profile)]


def _asset(stage: Stage, profile: Profile) -> Callable[[Body], dg.AssetsDefinition]:
    """Return the asset decorator with the values of the stage's declaration."""
    return dg.asset(
        name=stage.name,
        deps=dependencies_of(stage, profile),
        partitions_def=partitions_of(stage, profile),
        description=stage.description,
        group_name=stage.group,
        kinds=set(stage.kinds),
        owners=[stage.owner],
        code_version=stage.code_version(profile),
        pool=stage.pool,
    )


def _materialize(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    profile: Profile,
    stage: Stage,
    rebuild: bool,
    extra_reason: str = "",
    **arguments: Any,
) -> dg.MaterializeResult:
    """Build the run's partition of a stage and report it to Dagster.

    Errors that a retry does not fix become a Failure without retries.
    """
    partition = context.partition_key if context.has_partition_key else UNPARTITIONED
    opened = store.open()
    try:
        outcome = build_partition(
            opened, profile, stage, partition, context.log.info, rebuild, extra_reason, **arguments
        )
    except (StoreError, SourceError, UpstreamMissing, TrainingFailed) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return dg.MaterializeResult(
        metadata=describe(opened, outcome), data_version=dg.DataVersion(outcome.receipt.data_version)
    )


def _plain_asset(stage: Stage, profile: Profile) -> dg.AssetsDefinition:
    @_asset(stage, profile)
    def build(
        context: dg.AssetExecutionContext, config: BuildConfig, store: StoreResource
    ) -> dg.MaterializeResult:
        return _materialize(context, store, profile, stage, config.rebuild)

    return build


def _image_pairs(profile: Profile) -> dg.AssetsDefinition:
    @_asset(IMAGE_PAIRS, profile)
    def build(
        context: dg.AssetExecutionContext, config: PairsConfig, store: StoreResource
    ) -> dg.MaterializeResult:
        count = retryable_failures(store.open(), context.partition_key) if config.retry_failed else 0
        reason = f"{count} retryable failures" if count else ""
        try:
            return _materialize(context, store, profile, IMAGE_PAIRS, config.rebuild, reason)
        except FetchError as error:
            # A retry policy would also restart a run that a person has terminated.
            raise dg.RetryRequested(max_retries=1, seconds_to_wait=RETRY_DELAY_S) from error

    return build


def _mask_model(profile: Profile) -> dg.AssetsDefinition:
    @_asset(MASK_MODEL, profile)
    def build(
        context: dg.AssetExecutionContext, config: TrainConfig, store: StoreResource, mlflow: MlflowResource
    ) -> dg.MaterializeResult:
        def launch(job: str) -> None:
            run_training(context, profile, store.url, mlflow.tracking_uri, job)

        request = TrainingRequest(
            profile,
            mlflow.tracking_uri,
            launch,
            dagster_run_id=context.run.run_id,
            root_run_id=context.run.root_run_id or context.run.run_id,
            resume=config.resume,
            from_scratch=config.rebuild,
        )
        rebuild = config.rebuild or bool(config.resume)
        try:
            return _materialize(context, store, profile, MASK_MODEL, rebuild, request=request)
        except TrainingCrashed as error:
            # A retry policy would also restart a run that a person has terminated.
            raise dg.RetryRequested(
                max_retries=profile.launcher.retries, seconds_to_wait=profile.launcher.retry_delay_s
            ) from error

    return build


def _champion(profile: Profile) -> dg.AssetsDefinition:
    @_asset(CHAMPION, profile)
    def build(
        context: dg.AssetExecutionContext,
        config: ChampionConfig,
        store: StoreResource,
        mlflow: MlflowResource,
    ) -> dg.MaterializeResult:
        return _materialize(
            context, store, profile, CHAMPION, config.rebuild or config.back,
            tracking_uri=mlflow.tracking_uri, back=config.back,
        )  # fmt: skip

    return build
