"""The MLflow model registry: register, find and download versions of the mask model."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import Profile
from ..errors import BananagramsError
from .comparison import SampleIoUs
from .tracking import connect

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
DECISION, WITHDRAWN = "decision", "withdrawn"
"""Tags of a version: the reason of the latest decision about the champion, and when it was withdrawn."""
OWN_IOUS, CHAMPION_IOUS = "samples.json", "champion_samples.json"
"""Artifacts of a run: IoU per sample of its own model, and of the champion at that time."""
WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "card.md"
"""Files of a published model."""
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "opencv-python-headless",
    "pillow", "pandas", "pydantic", "pyyaml",
)  # fmt: skip
"""Packages that a logged model needs to predict; pinned to the versions installed at training."""


class RegistryError(BananagramsError, RuntimeError):
    """A model version or alias does not exist or cannot be used."""


def register(
    tracking_uri: str,
    profile: Profile,
    run_id: str,
    folder: Path,
    example: tuple[bytes, str],
    tags: Mapping[str, str],
) -> str:
    """Log the model in `folder` to the run and register it as `challenger`; return its version.

    `example` is the bytes of an image file and an instruction. The card is the version's description.
    """
    client = connect(tracking_uri)
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    package = Path(__file__).parents[1]
    files = {"weights": WEIGHTS, "description": DESCRIPTION, "card": CARD}
    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "instruction")]),
        Schema([ColSpec("binary", "mask")]),
        ParamSchema([ParamSpec("threshold", "double", None), ParamSpec("soft", "boolean", False)]),
    )
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        warnings.simplefilter("ignore")  # MLflow recommends type hints although there is a signature
        logged = mlflow.pyfunc.log_model(
            name="mask_model",
            python_model=str(package / "learn" / "pyfunc_model.py"),
            artifacts={key: str(folder / file) for key, file in files.items()},
            code_paths=[str(package)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example[0]], "instruction": [example[1]]}),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        )
    name = profile.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    card = (folder / CARD).read_text(encoding="utf-8")
    version = client.create_model_version(
        name, logged.model_uri, run_id, tags=dict(tags), description=card, model_id=logged.model_id
    )
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return str(version.version)


def find_version(tracking_uri: str, profile: Profile, alias_or_version: str) -> str | None:
    """Return the version number of an alias or version, or None if it does not exist."""
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    name = profile.mlflow.registered_model
    get = client.get_model_version if alias_or_version.isdigit() else client.get_model_version_by_alias
    try:
        return str(get(name, alias_or_version).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow at {tracking_uri} failed: {error}") from None


def download_model(tracking_uri: str, profile: Profile, alias_or_version: str = CHAMPION) -> Path:
    """Return a local folder with a registered model's weights, description and card.

    Raise RegistryError if there is no such alias or version.
    """
    client = connect(tracking_uri)
    version = find_version(tracking_uri, profile, alias_or_version)
    name = profile.mlflow.registered_model
    if version is None:
        if alias_or_version == CHAMPION:
            raise RegistryError(
                f"no champion yet: no version of {name} has beaten the trivial baselines; run "
                "`bananagrams train`, or `bananagrams demo` for a small model within minutes"
            )
        raise RegistryError(
            f"{name} has no version or alias {alias_or_version!r} in {tracking_uri}; "
            "`bananagrams train` registers a version"
        )
    import mlflow

    uri = client.get_model_version_download_uri(name, version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)) / "artifacts"


def read_decision(tracking_uri: str, profile: Profile, alias: str) -> tuple[str | None, str]:
    """Return the version of an alias, if any, and the reason of the latest decision about it."""
    version = find_version(tracking_uri, profile, alias)
    if version is None:
        return None, ""
    tags = get_version(tracking_uri, profile, version).tags
    return version, tags.get(DECISION, "not compared yet")


def get_version(tracking_uri: str, profile: Profile, version: str) -> Any:
    """Return MLflow's `ModelVersion`. Raise RegistryError if it does not exist."""
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    name = profile.mlflow.registered_model
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        raise RegistryError(f"{name} has no version {version}: {error.message}") from None


def read_sample_ious(tracking_uri: str, run_id: str, name: str = OWN_IOUS) -> SampleIoUs | None:
    """Read a run's artifact OWN_IOUS or CHAMPION_IOUS; return None if the run has none."""
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    if not any(item.path == name for item in client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        try:
            path = client.download_artifacts(run_id, name, folder)
        except MlflowException as error:
            raise RegistryError(f"MLflow run {run_id}: {name} cannot be read: {error}") from None
        return SampleIoUs.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
