"""The `mask_model` stage: run or resume one training and record its result.

The training itself runs in another process, see `train.py`. This module does not import torch, because the
process that launches a training loads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Profile
from ..errors import BananagramsError
from ..stages.stage import StageResult, StageRun
from ..storage.store import FileInfo
from .job_file import OUTPUT, job_name, read_failure, remove_job, write_job
from .launch import LaunchError
from .unfinished import clear_unfinished, find_unfinished, mark_unfinished


@dataclass(frozen=True)
class TrainingRequest:
    """How to run one training.

    `profile` is recorded with the MLflow run. `launch` starts the training process for a job file (a path or
    an S3 URL), waits for its end and raises if it fails. `dagster_run_id` identifies this run and
    `root_run_id` the first of its retries. `resume` names a checkpoint to start from. With `afresh` only an
    unfinished training of the same Dagster run is continued.
    """

    profile: Profile
    tracking_uri: str
    launch: Callable[[str], None]
    dagster_run_id: str
    root_run_id: str
    resume: str | None = None
    afresh: bool = False


class TrainingFailed(BananagramsError, RuntimeError):
    """A training failed in a way that a retry does not fix."""


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a training: its MLflow run, the checkpoint to start from, and whether it is its own."""

    mlflow_run_id: str
    mlflow_url: str
    resume: str | None
    continues_own_run: bool


def train_mask_model(run: StageRun, request: TrainingRequest) -> StageResult:
    """Train the mask model, or continue an unfinished training of the same inputs.

    The MLflow run is marked as failed when the attempt fails. Raises TrainingFailed if a retry would fail
    again, and otherwise what `request.launch` raises.
    """
    from . import tracking

    tags = {"dagster_run_id": request.dagster_run_id, "dagster_asset": run.stage.name}
    attempt = _begin_attempt(run, request, tags)
    job = write_job(
        run.store.describe(job_name(attempt.mlflow_run_id)),
        request.profile,
        [*run.stage.settings, *run.stage.unversioned_settings],
        run.store.url,
        request.tracking_uri,
        attempt.mlflow_run_id,
        attempt.resume,
        tags,
        attempt.continues_own_run,
    )
    try:
        request.launch(job)
        model = _read_model(run, attempt)
    except BaseException as error:
        tracking.end_run(request.tracking_uri, attempt.mlflow_run_id, "FAILED")
        reason = read_failure(job)
        if reason:
            clear_unfinished(run.store)
        if reason or isinstance(error, LaunchError):
            raise TrainingFailed(reason or str(error)) from error
        raise
    finally:
        remove_job(run.store, attempt.mlflow_run_id)
    clear_unfinished(run.store)
    return _result(run, model, attempt.mlflow_url)


def _begin_attempt(run: StageRun, request: TrainingRequest, tags: Mapping[str, str]) -> _Attempt:
    """Reopen the MLflow run of an unfinished training, or start a new one and note that it is unfinished."""
    from . import tracking

    uri, settings = request.tracking_uri, run.settings
    unfinished = find_unfinished(
        run.store, run.inputs_digest, request.root_run_id, request.afresh or bool(request.resume)
    )
    if unfinished and (url := tracking.reopen_run(uri, settings, unfinished.mlflow_run_id)):
        resume = unfinished.checkpoint or request.resume
        run.log(f"continuing MLflow run {unfinished.mlflow_run_id} from {resume or 'its beginning'}: {url}")
        return _Attempt(unfinished.mlflow_run_id, url, resume, bool(unfinished.checkpoint))
    run_id, url = tracking.start_run(uri, settings, tags)
    mark_unfinished(run.store, run_id, run.inputs_digest, request.root_run_id)
    run.log(f"MLflow run {run_id}: {url}")
    return _Attempt(run_id, url, request.resume, False)


def _read_model(run: StageRun, attempt: _Attempt) -> dict[str, Any]:
    """Return the content of model.json. Raises LaunchError if another training wrote it."""
    model: dict[str, Any] = json.loads(run.store.read(f"{OUTPUT}/model.json"))
    if model["run_id"] != attempt.mlflow_run_id:
        name = run.store.describe(f"{OUTPUT}/model.json")
        raise LaunchError(
            f"the training ended, but {name} is of another training: check that the training process writes "
            "to the same store"
        )
    return model


def _result(run: StageRun, model: Mapping[str, Any], mlflow_url: str) -> StageResult:
    weights = f"{OUTPUT}/model.safetensors"
    return StageResult(
        {weights: FileInfo(run.store.size(weights), model["sha256"])},
        {**model["summary"], "mlflow_run": mlflow_url, "model_version": model["version"]},
        content=model["sha256"][:32],
    )
