"""The `mask_model` stage: run or resume one training and record its result.

The training itself runs in another process, see `train.py`. This module does not import torch, because the
process that launches a training loads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import Profile
from ..errors import BananagramsError
from ..stages.stage import StageResult, StageRun
from ..storage.store import FileInfo
from . import job_file
from .job_file import OUTPUT, TrainingJob
from .launch import LaunchError


@dataclass(frozen=True)
class TrainingRequest:
    """How to run one training.

    `profile` is recorded with the MLflow run. `launch` starts the training process for a job file (a path or
    an S3 URL), waits for its end and raises if it fails. `dagster_run_id` identifies this run and
    `root_run_id` the first of its retries. `resume` names a checkpoint to start from. With `from_scratch`
    only an unfinished training of the same Dagster run is continued.
    """

    profile: Profile
    tracking_uri: str
    launch: Callable[[str], None]
    dagster_run_id: str
    root_run_id: str
    resume: str | None = None
    from_scratch: bool = False


class TrainingFailed(BananagramsError, RuntimeError):
    """A training failed in a way that a retry does not fix."""


class TrainingCrashed(BananagramsError, RuntimeError):
    """A training process ended without a result. A retry continues from its last checkpoint."""


def train_mask_model(run: StageRun, request: TrainingRequest) -> StageResult:
    """Train the mask model, or continue an unfinished training of the same inputs.

    The MLflow run is marked as failed when the attempt fails. Raises TrainingFailed if a retry would fail
    again, and TrainingCrashed if it may succeed.
    """
    from . import tracking

    job, mlflow_url = _make_job(run, request)
    file = run.store.describe(job_file.job_name(job.mlflow_run_id))
    job_file.write_job(file, job, [*run.stage.settings, *run.stage.unversioned_settings])
    try:
        request.launch(file)
        model = _read_model(run, job.mlflow_run_id)
    except BaseException as error:
        tracking.end_run(job.tracking_uri, job.mlflow_run_id, "FAILED")
        reason = job_file.read_failure(file)
        if reason:
            job_file.clear_unfinished(run.store)
        if reason or isinstance(error, LaunchError):
            raise TrainingFailed(reason or str(error)) from error
        if isinstance(error, Exception):
            raise TrainingCrashed(str(error)) from error
        raise
    finally:
        job_file.remove_job(run.store, job.mlflow_run_id)
    job_file.clear_unfinished(run.store)
    weights = f"{OUTPUT}/model.safetensors"
    return StageResult(
        {weights: FileInfo(run.store.size(weights), model["sha256"])},
        {**model["summary"], "mlflow_run": mlflow_url, "model_version": model["version"]},
        content=model["sha256"][:32],
    )


def _make_job(run: StageRun, request: TrainingRequest) -> tuple[TrainingJob, str]:
    """Return the job of one attempt, and the URL of its MLflow run's page.

    Reopen the MLflow run of an unfinished training, or start a new one and note that it is unfinished.
    """
    from . import tracking

    uri, settings, resume, own_checkpoint = request.tracking_uri, run.settings, request.resume, None
    tags = {"dagster_run_id": request.dagster_run_id, "dagster_asset": run.stage.name}
    same_run_only = request.from_scratch or bool(request.resume)
    unfinished = job_file.find_unfinished(run.store, run.inputs_digest, request.root_run_id, same_run_only)
    if unfinished and (url := tracking.reopen_run(uri, settings, unfinished.mlflow_run_id)):
        run_id, own_checkpoint = unfinished
        resume = own_checkpoint or resume
        run.log(f"continuing MLflow run {run_id} from {resume or 'its beginning'}: {url}")
    else:
        run_id, url = tracking.start_run(uri, settings, tags)
        job_file.mark_unfinished(run.store, run_id, run.inputs_digest, request.root_run_id)
        run.log(f"MLflow run {run_id}: {url}")
    document = request.profile.model_dump(mode="json")
    job = TrainingJob(
        request.profile, document, run.store.url, uri, run_id, resume, tags, bool(own_checkpoint)
    )
    return job, url


def _read_model(run: StageRun, mlflow_run_id: str) -> dict[str, Any]:
    """Return the content of model.json. Raises LaunchError if another training wrote it."""
    name = f"{OUTPUT}/model.json"
    model: dict[str, Any] = json.loads(run.store.read(name))
    if model["run_id"] != mlflow_run_id:
        raise LaunchError(
            f"the training ended, but {run.store.describe(name)} is of another training: check that the "
            "training process writes to the same store"
        )
    return model
