"""The model: trained where the profile says, registered in MLflow, made champion if it is better."""

import json
import warnings

import dagster as dg

from ..config import Profile
from ..learn import launch
from ..progress import Log
from ..stages.stage import UNPARTITIONED, StageResult, read_receipt, run_stage
from ..storage.store import FileInfo, Store
from .dataset import code_version, split_index
from .launchers import run_training
from .metadata import describe
from .partitions import PROFILE
from .resources import MlflowResource, StoreResource

OWNERS = ["team:model"]

# Dagster's own reader asks itself for a method that it marks as a preview; nothing here uses it.
warnings.filterwarnings(
    "ignore", message=".*PipesMessageReader.expected_writer_count", category=dg.PreviewWarning
)


class TrainConfig(dg.Config):
    """What a person may ask of one training run."""

    rebuild: bool = False
    """Train afresh even if dataset, settings and code are those of the last training."""
    resume: str | None = None
    """A checkpoint's name in the store, or its path, to go on from."""


class ChampionConfig(dg.Config):
    """What a person may ask of the registry."""

    rebuild: bool = False
    """Compare even if nothing changed since the last comparison."""
    back: bool = False
    """Make the previous champion champion again instead."""


@dg.asset(
    deps=[dg.AssetDep(split_index, partition_mapping=dg.AllPartitionMapping())],
    group_name="model",
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    code_version=code_version("mask_model"),
    pool="gpu",
)
def mask_model(
    context: dg.AssetExecutionContext, config: TrainConfig, store: StoreResource, mlflow: MlflowResource
) -> dg.MaterializeResult:
    """The trained checkpoint, registered in MLflow as `challenger`.

    Training runs under `torchrun` in a process of its own, on this machine, as an ECS task or as a Ray
    job (`launcher` in the profile); loss, dev IoU and checkpoints arrive in this run's log through Dagster
    Pipes meanwhile. A training that died goes on from its last checkpoint: at once by the retry, or
    whenever the same dataset, settings and code are materialized again.
    """
    opened = store.open()

    def train(store: Store, profile: Profile, partition: str, log: Log) -> StageResult:
        from ..learn import registry

        uri, resume = mlflow.tracking_uri, config.resume
        root, inputs = context.run.root_run_id or context.run.run_id, launch.inputs_digest(store, profile)
        tags = {"dagster_run_id": context.run.run_id, "dagster_asset": "mask_model"}
        earlier = launch.unfinished(store, inputs, root, afresh=config.rebuild or bool(config.resume))
        if earlier and (run_url := registry.reopen_run(uri, profile, earlier[0])):
            run_id, resume = earlier[0], earlier[1] or config.resume
            log(f"going on with MLflow run {run_id} from {resume or 'its beginning'}: {run_url}")
        else:
            run_id, run_url = registry.start_run(uri, profile, tags)
            launch.begin(store, run_id, inputs, root)
            log(f"MLflow run {run_id}: {run_url}")
        job = launch.write_job(
            store.describe(launch.job_name(run_id)), profile, opened.url, uri, run_id, resume, tags,
            goes_on=bool(earlier and earlier[1]),
        )  # fmt: skip
        try:
            run_training(context, profile, opened.url, uri, job)
            result = json.loads(store.read(f"{launch.OUTPUT}/model.json"))
            if result["run_id"] != run_id:
                raise launch.LaunchError(
                    f"the training ended, but {store.describe(launch.OUTPUT)} holds the model of another: "
                    "does it write to the same store?"
                )
        except BaseException as error:
            registry.end_run(uri, run_id, "FAILED")
            reason = launch.read_failure(job)
            if reason:
                launch.end(store)
            if reason or isinstance(error, launch.LaunchError):
                raise dg.Failure(reason or str(error), allow_retries=False) from error
            if isinstance(error, Exception):
                # With a retry policy Dagster would begin a run anew that a person has ended.
                raise dg.RetryRequested(
                    max_retries=profile.launcher.retries, seconds_to_wait=profile.launcher.retry_delay_s
                ) from error
            raise
        finally:
            launch.remove_job(store, run_id)
        launch.end(store)
        weights = f"{launch.OUTPUT}/model.safetensors"
        return StageResult(
            {weights: FileInfo(store.size(weights), result["sha256"])},
            {**result["summary"], "mlflow_run": run_url, "model_version": result["version"]},
            content=result["sha256"][:32],
        )

    outcome = run_stage(
        opened,
        PROFILE,
        "mask_model",
        UNPARTITIONED,
        train,
        context.log.info,
        config.rebuild or bool(config.resume),
    )
    metadata = describe(opened, outcome)
    metadata["mlflow_run"] = dg.MetadataValue.url(outcome.receipt.stats["mlflow_run"])
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(outcome.receipt.data_version))


@dg.asset(
    deps=[mask_model],
    group_name="model",
    kinds={"mlflow"},
    owners=OWNERS,
    code_version=code_version("champion"),
)
def champion(
    context: dg.AssetExecutionContext, config: ChampionConfig, store: StoreResource, mlflow: MlflowResource
) -> dg.MaterializeResult:
    """The registry alias `champion`: moved to the new version only if that is better on the same samples.

    With `back: true` it goes back to `previous`, and the version taken back is not promoted again.
    """
    opened = store.open()

    def promote(store: Store, profile: Profile, partition: str, log: Log) -> StageResult:
        from ..learn import registry

        if config.back:
            promotion = registry.go_back(mlflow.tracking_uri, profile)
        else:
            receipt = read_receipt(store, "mask_model", UNPARTITIONED)
            assert receipt is not None  # run_stage has refused to come here without it
            promotion = registry.promote(mlflow.tracking_uri, profile, receipt.stats["model_version"])
        log(promotion.reason)
        stats = {
            "moved": promotion.moved,
            "reason": promotion.reason,
            "champion_version": str(promotion.champion_version or "none"),
            "previous_version": str(promotion.previous_version or "none"),
        }
        if promotion.gain:
            stats["gain"] = promotion.gain.mean
            stats["gain_interval"] = f"{promotion.gain.low:+.4f} to {promotion.gain.high:+.4f}"
            stats["photographs_compared"] = promotion.gain.photos
        return StageResult({}, stats, content=f"version-{promotion.champion_version or 'none'}")

    outcome = run_stage(
        opened, PROFILE, "champion", UNPARTITIONED, promote, context.log.info, config.rebuild or config.back
    )
    return dg.MaterializeResult(
        metadata=describe(opened, outcome), data_version=dg.DataVersion(outcome.receipt.data_version)
    )
