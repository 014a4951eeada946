"""Files in the store that connect a training process, its launcher and later attempts.

`mask_model/jobs/` has the JSON file that starts a training and the file with its failure reason;
`mask_model/unfinished.json` names a training that has started but not finished, so that it can be resumed.
This module does not import torch: processes that only launch a training use it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Profile
from ..profiles import validate
from ..stages.access import restricted_settings
from ..storage.open_store import open_store
from ..storage.store import MissingObject, Store

OUTPUT = "mask_model"
"""Folder in the store for a training's checkpoints, weights and metrics."""
UNFINISHED = f"{OUTPUT}/unfinished.json"


@dataclass(frozen=True)
class TrainingJob:
    """Content of a job file.

    `document` is the whole profile as JSON values, to be recorded with the run. In the training, `profile`
    gives access to the settings that the stage `mask_model` declares alone. `resume` is the checkpoint to
    resume from. `continues_own_run`: the checkpoint is from an earlier attempt of the same MLflow run, which
    may have completed all its steps, so that only publishing is left.
    """

    profile: Profile
    document: Mapping[str, Any]
    store: str
    tracking_uri: str
    mlflow_run_id: str
    resume: str | None
    tags: Mapping[str, str]
    continues_own_run: bool = False


class UnfinishedTraining(NamedTuple):
    """An unfinished training: its MLflow run and the name of its latest checkpoint, if any."""

    mlflow_run_id: str
    checkpoint: str | None


def write_job(where: Path | str, job: TrainingJob, settings: Sequence[str]) -> None:
    """Write the job file for `bananagrams_assets.learn.train` to a path or an S3 URL.

    The training may read only the `settings`, dotted paths in the profile.
    """
    content = {
        "profile": job.document,
        "settings": list(settings),
        "store": job.store,
        "tracking_uri": job.tracking_uri,
        "mlflow_run_id": job.mlflow_run_id,
        "resume": job.resume,
        "tags": dict(job.tags),
        "goes_on": job.continues_own_run,
    }
    store, name = _store_and_name(where)
    store.write(name, json.dumps(content, indent=1).encode())


def read_job(where: Path | str) -> TrainingJob:
    """Read a job file from a path or an S3 URL."""
    store, name = _store_and_name(where)
    content = json.loads(store.read(name))
    document, settings, own = (content.pop(key) for key in ("profile", "settings", "goes_on"))
    profile = restricted_settings(validate(document, str(where)), "the training", settings)
    return TrainingJob(profile=profile, document=document, continues_own_run=own, **content)


def job_name(mlflow_run_id: str) -> str:
    """Return the name of a run's job file in the store."""
    return f"{OUTPUT}/jobs/{mlflow_run_id}.json"


def remove_job(store: Store, mlflow_run_id: str) -> None:
    """Delete a job file and its failure file. A job file may contain the tracking server's password."""
    name = job_name(mlflow_run_id)
    for file in (name, _failure_name(name)):
        store.delete(file)


def write_failure(where: Path | str, reason: str) -> None:
    """Write the reason of a failure that a retry cannot fix to a file next to the job file."""
    store, name = _store_and_name(where)
    store.write(_failure_name(name), reason.encode())


def read_failure(where: Path | str) -> str | None:
    """Return the failure reason next to the job file, or None if the training wrote none."""
    store, name = _store_and_name(where)
    try:
        return store.read(_failure_name(name)).decode()
    except MissingObject:
        return None


def mark_unfinished(store: Store, mlflow_run_id: str, inputs: str, root_run_id: str) -> None:
    """Record that a training has started.

    `inputs` is the digest of its inputs (`inputs_digest`). `root_run_id` is the Dagster run that all
    retries of this training share.
    """
    note = {"mlflow_run_id": mlflow_run_id, "inputs": inputs, "root_run_id": root_run_id}
    store.write(UNFINISHED, json.dumps(note, indent=1).encode())


def clear_unfinished(store: Store) -> None:
    """Delete the note: the training has finished, or must not be resumed."""
    store.delete(UNFINISHED)


def find_unfinished(
    store: Store, inputs: str, root_run_id: str, same_run_only: bool
) -> UnfinishedTraining | None:
    """Return the unfinished training with these inputs, or None.

    With `same_run_only`, return it only if the same Dagster run (or a retry of it) started it.
    """
    try:
        note = json.loads(store.read(UNFINISHED))
    except MissingObject:
        return None
    if note["inputs"] != inputs or (same_run_only and note["root_run_id"] != root_run_id):
        return None
    run_id = str(note["mlflow_run_id"])
    return UnfinishedTraining(run_id, last_checkpoint(store, run_id))


def last_checkpoint(store: Store, mlflow_run_id: str) -> str | None:
    """Return the name of a run's latest complete checkpoint, or None if there is none."""
    prefix = f"{OUTPUT}/checkpoints/{mlflow_run_id[:8]}-"
    steps = {
        int(step): name.rpartition("/")[0]
        for name in store.list(prefix)
        if name.endswith("/state.json") and (step := name[len(prefix) :].partition("/")[0]).isdigit()
    }
    return steps[max(steps)] if steps else None


def _store_and_name(where: Path | str) -> tuple[Store, str]:
    """Return a store on the parent folder of a path or URL, and the file's name in that store."""
    text = str(where)
    if "://" not in text:
        text = str(Path(text).absolute())
    folder, _, name = text.rpartition("/")
    return open_store(folder), name


def _failure_name(job: str) -> str:
    return job.removesuffix(".json") + ".failure"
