"""The model: trained in a process of its own, registered in MLflow, made champion if it is better."""

import json
import tempfile
import warnings
from pathlib import Path

import dagster as dg

from ..config import Profile
from ..data.product import FileInfo, Product, Say
from ..data.stages import WHOLE, read_receipt, run_stage
from ..data.store import Store
from ..learn import launch
from .dataset import code_version, split_index
from .metadata import describe
from .partitions import PROFILE
from .resources import MlflowResource, StoreResource, visible_gpus

OWNERS = ["team:model"]

# Dagster's own reader asks itself for a method that it marks as a preview; nothing here uses it.
warnings.filterwarnings(
    "ignore", message=".*PipesMessageReader.expected_writer_count", category=dg.PreviewWarning
)


class TrainConfig(dg.Config):
    """What a person may ask of one training run."""

    rebuild: bool = False
    """Train even if dataset, settings and code are those of the last training."""
    resume: str | None = None
    """A checkpoint's name in the store, or its path, to go on from."""


@dg.asset(
    deps=[dg.AssetDep(split_index, partition_mapping=dg.AllPartitionMapping())],
    group_name="model",
    kinds={"pytorch", "mlflow"},
    owners=OWNERS,
    code_version=code_version("mask_model"),
    pool="gpu",
)
def mask_model(
    context: dg.AssetExecutionContext,
    config: TrainConfig,
    store: StoreResource,
    mlflow: MlflowResource,
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """The trained checkpoint, registered in MLflow as `challenger`.

    Training runs under `torchrun` in a process of its own (every visible GPU, else the CPU); loss and
    dev IoU arrive in this run's log through Dagster Pipes while it runs.
    """
    opened = store.open()

    def train(store: Store, profile: Profile, partition: str, say: Say) -> Product:
        from ..learn import registry

        tags = {"dagster_run_id": context.run.run_id, "dagster_asset": "mask_model"}
        run_id, run_url = registry.start_run(mlflow.tracking_uri, profile, tags)
        say(f"MLflow run {run_id}: {run_url}")
        with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
            job = launch.write_job(
                Path(folder) / "job.json",
                profile,
                opened.url,
                mlflow.tracking_uri,
                run_id,
                config.resume,
                tags,
            )
            processes = profile.train.devices or visible_gpus() or 1
            try:
                pipes.run(context=context, command=launch.command(job, processes))
            except BaseException as error:
                registry.end_run(mlflow.tracking_uri, run_id, "FAILED")
                if (reason := launch.failure_file(job)).exists():
                    raise dg.Failure(reason.read_text(encoding="utf-8"), allow_retries=False) from error
                raise
        result = json.loads(store.read(f"{launch.OUTPUT}/model.json"))
        weights = f"{launch.OUTPUT}/model.safetensors"
        return Product(
            {weights: FileInfo(store.size(weights), result["sha256"])},
            {**result["summary"], "mlflow_run": run_url, "model_version": result["version"]},
            content=result["sha256"][:32],
        )

    outcome = run_stage(
        opened, PROFILE, "mask_model", WHOLE, train, context.log.info, config.rebuild or bool(config.resume)
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
    context: dg.AssetExecutionContext, config: TrainConfig, store: StoreResource, mlflow: MlflowResource
) -> dg.MaterializeResult:
    """The registry alias `champion`: moved to the new version only if that is better."""
    opened = store.open()

    def promote(store: Store, profile: Profile, partition: str, say: Say) -> Product:
        from ..learn import registry

        receipt = read_receipt(store, "mask_model", WHOLE)
        assert receipt is not None  # run_stage has refused to come here without it
        promotion = registry.promote(mlflow.tracking_uri, profile, receipt.stats["model_version"])
        say(promotion.reason)
        stats = {
            "moved": promotion.moved,
            "reason": promotion.reason,
            "champion_version": str(promotion.champion_version or "none"),
            "previous_version": str(promotion.previous_version or "none"),
        }
        return Product({}, stats, content=f"version-{promotion.champion_version or 'none'}")

    outcome = run_stage(opened, PROFILE, "champion", WHOLE, promote, context.log.info, config.rebuild)
    return dg.MaterializeResult(
        metadata=describe(opened, outcome), data_version=dg.DataVersion(outcome.receipt.data_version)
    )
