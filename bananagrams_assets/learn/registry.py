"""MLflow: runs, model versions, and the alias `champion` that only a better model gets.

MLflow keeps its tracking server in a global of the process; every function here takes the URI and
leaves nothing to be set up before. mlflow and torch are imported inside them, for they take seconds.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..config import Profile, flatten
from ..profiles import TRACKING_VARIABLE

if TYPE_CHECKING:
    from .predict import Predictor

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "opencv-python-headless",
    "pillow", "pandas", "pydantic", "pyyaml",
)  # fmt: skip
"""What the logged package needs to predict; pinned to what trained it."""


class RegistryError(RuntimeError):
    """A model version or alias that is not there, or a tracking server that cannot be used."""


@dataclass(frozen=True)
class Promotion:
    """Whether the champion changed, why in words, and which versions the aliases now name."""

    moved: bool
    reason: str
    champion_version: str | None
    previous_version: str | None


def start_run(tracking_uri: str, profile: Profile, tags: Mapping[str, str]) -> tuple[str, str]:
    """Start a run in the profile's experiment, made if need be; returns its id and its page's URL."""
    client = _client(tracking_uri)
    name = profile.mlflow.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment_id = client.create_experiment(name, artifact_location=_artifacts_beside(tracking_uri))
    elif experiment.lifecycle_stage == "deleted":
        raise RegistryError(
            f"MLflow experiment {name!r} was deleted: restore it or set mlflow.experiment to another name"
        )
    else:
        experiment_id = experiment.experiment_id
    run_id = client.create_run(experiment_id, tags=dict(tags)).info.run_id
    return run_id, run_url(tracking_uri, profile, experiment_id, run_id)


def end_run(tracking_uri: str, run_id: str, status: str) -> None:
    """Mark a run FINISHED, FAILED or KILLED; one that has ended keeps the status that it has."""
    client = _client(tracking_uri)
    if client.get_run(run_id).info.status in ("RUNNING", "SCHEDULED"):
        client.set_terminated(run_id, status)


def run_url(tracking_uri: str, profile: Profile, experiment_id: str, run_id: str) -> str:
    """The run's page: on the tracking server, or on the `mlflow ui` of mlflow.ui_url."""
    base = tracking_uri if tracking_uri.startswith("http") else profile.mlflow.ui_url
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


class RunLog:
    """Writes to one MLflow run."""

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = _client(tracking_uri)
        self._run_id = run_id
        self.experiment_id: str = self._client.get_run(run_id).info.experiment_id

    def settings(self, profile: Profile, more: Mapping[str, Any]) -> None:
        """Every model and training setting, and `more`, as parameters."""
        from mlflow.entities import Param

        sections = profile.model_dump(mode="json", include={"model", "train"})
        values = {**dict(flatten(sections)), **more}
        params = [Param(key, str(value)) for key, value in values.items()]
        self._client.log_batch(self._run_id, params=params)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def file(self, name: str, data: bytes) -> None:
        """An artifact, `name` with its folder."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            parent = str(Path(name).parent)
            self._client.log_artifact(self._run_id, str(path), None if parent == "." else parent)


def register(
    tracking_uri: str,
    profile: Profile,
    run_id: str,
    folder: Path,
    example: tuple[bytes, str],
    tags: Mapping[str, str],
) -> str:
    """Log the model in `folder` to the run, register it as `challenger` with tags; returns its version.

    `example` is a picture file's bytes and an instruction.
    """
    client = _client(tracking_uri)
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from .predict import DESCRIPTION, WEIGHTS

    package = Path(__file__).parents[1]
    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "instruction")]),
        Schema([ColSpec("binary", "mask")]),
        ParamSchema([ParamSpec("threshold", "double", 0.5)]),
    )
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        warnings.simplefilter("ignore")  # advice to write the signature as type hints, though there is one
        logged = mlflow.pyfunc.log_model(
            name="mask_model",
            python_model=str(package / "learn" / "pyfunc_model.py"),
            artifacts={"weights": str(folder / WEIGHTS), "description": str(folder / DESCRIPTION)},
            code_paths=[str(package)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example[0]], "instruction": [example[1]]}),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        )
    name = profile.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, logged.model_uri, run_id, tags=dict(tags), model_id=logged.model_id
    )
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return str(version.version)


def promote(tracking_uri: str, profile: Profile, candidate_version: str | int) -> Promotion:
    """Make the candidate champion if it beats its trivial baselines and the champion it was compared with.

    The figures are tags of the version, written by the training: `dev_iou`, `baseline_iou`, `dev_dataset`,
    and `champion_version` and `champion_dev_iou` where the champion of that day was scored on the same data.
    Dev decides, so that test stays a split that no choice was made on. Raises RegistryError.
    """
    client = _client(tracking_uri)
    candidate = _version(client, profile, str(candidate_version))
    before = find(tracking_uri, profile, CHAMPION)
    previous = find(tracking_uri, profile, PREVIOUS)
    if before == str(candidate.version):
        return Promotion(False, f"version {before} is the champion already", before, previous)
    try:
        score = float(candidate.tags["dev_iou"])
        baseline = float(candidate.tags["baseline_iou"])
    except (KeyError, ValueError):
        raise RegistryError(
            f"version {candidate.version} of {profile.mlflow.registered_model} carries no dev_iou and "
            "baseline_iou tags: it was not registered by a training of this project"
        ) from None
    name, needed = f"version {candidate.version}", profile.checks.min_gain
    if score < baseline + needed:
        reason = (
            f"{name} stays challenger: dev IoU {score:.3f}, needed {baseline:.3f} (best trivial) + {needed:g}"
        )
        return Promotion(False, reason, before, previous)
    if before is not None:
        rival = _rival_score(candidate, _version(client, profile, before))
        if rival is None:
            reason = (
                f"{name} stays challenger: the champion, version {before}, was not scored on this dataset; "
                "train again to compare them"
            )
            return Promotion(False, reason, before, previous)
        if score <= rival:
            reason = (
                f"{name} stays challenger: dev IoU {score:.3f}, champion version {before} has {rival:.3f}"
            )
            return Promotion(False, reason, before, previous)
    registered = profile.mlflow.registered_model
    if before is not None:
        client.set_registered_model_alias(registered, PREVIOUS, before)
        previous = before
    client.set_registered_model_alias(registered, CHAMPION, str(candidate.version))
    over = f"best trivial {baseline:.3f}" + (f", version {before} {rival:.3f}" if before is not None else "")
    return Promotion(
        True, f"{name} is the champion: dev IoU {score:.3f} ({over})", str(candidate.version), previous
    )


def load(tracking_uri: str, profile: Profile, alias_or_version: str = CHAMPION) -> Predictor:
    """A registered model, ready to predict. Raises RegistryError if there is none of that name."""
    client = _client(tracking_uri)
    version = find(tracking_uri, profile, alias_or_version)
    name = profile.mlflow.registered_model
    if version is None:
        if alias_or_version == CHAMPION:
            raise RegistryError(
                f"no champion yet: no version of {name} has beaten the trivial baselines; "
                "run `bananagrams train`, or `bananagrams demo` for one in minutes"
            )
        raise RegistryError(
            f"{name} has no version or alias {alias_or_version!r} in {tracking_uri}; "
            "`bananagrams train` makes one"
        )
    import mlflow

    from .predict import load_predictor

    uri = client.get_model_version_download_uri(name, version)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)) / "artifacts"
    return load_predictor(folder)


def find(tracking_uri: str, profile: Profile, alias_or_version: str) -> str | None:
    """The number of the version of that alias or number; None if there is none."""
    client = _client(tracking_uri)
    from mlflow.exceptions import MlflowException

    name = profile.mlflow.registered_model
    try:
        if alias_or_version.isdigit():
            return str(client.get_model_version(name, alias_or_version).version)
        return str(client.get_model_version_by_alias(name, alias_or_version).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow at {tracking_uri} failed: {error}") from None


def _rival_score(candidate: Any, champion: Any) -> float | None:
    """The champion's dev IoU on the candidate's dataset, if it is known."""
    if champion.tags.get("dev_dataset") == candidate.tags.get("dev_dataset") and "dev_iou" in champion.tags:
        return float(champion.tags["dev_iou"])
    if candidate.tags.get("champion_version") == str(champion.version):
        return float(candidate.tags["champion_dev_iou"])
    return None


def _version(client: Any, profile: Profile, version: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(profile.mlflow.registered_model, version)
    except MlflowException as error:
        raise RegistryError(
            f"{profile.mlflow.registered_model} has no version {version}: {error.message}"
        ) from None


def _client(tracking_uri: str) -> Any:
    """A client of this server, which also becomes the process's own."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    import mlflow

    for noisy in ("mlflow", "alembic"):  # a new SQLite file logs a line for each of its 40 migrations
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if path := _sqlite_file(tracking_uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow also writes the URIs into the environment, where they would pass for the user's own choice.
    chosen = {name: os.environ.get(name) for name in (TRACKING_VARIABLE, "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    for name, value in chosen.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return mlflow.MlflowClient(tracking_uri, tracking_uri)


def _sqlite_file(tracking_uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(unquote(tracking_uri[len(prefix) :])) if tracking_uri.startswith(prefix) else None


def _artifacts_beside(tracking_uri: str) -> str | None:
    """For a SQLite file a folder beside it, where MLflow would take ./mlruns; else the server's choice."""
    path = _sqlite_file(tracking_uri)
    return (path.absolute().parent / "mlflow-artifacts").as_uri() if path else None
