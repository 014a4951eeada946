"""The JSON file that starts a training process, and the file with its failure reason.

Both are in the store under `mask_model/jobs/`, so that every machine can read them. This module does not
import torch: processes that only launch a training use it too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..config import Profile
from ..storage.open_store import open_store
from ..storage.store import MissingObject, Store

PathOrUrl = TypeVar("PathOrUrl", Path, str)

OUTPUT = "mask_model"
"""Folder in the store for a training's checkpoints, weights and metrics."""


def write_job(
    where: PathOrUrl,
    profile: Profile,
    settings: Sequence[str],
    store_url: str,
    tracking_uri: str,
    mlflow_run_id: str,
    resume: str | None,
    tags: Mapping[str, str],
    goes_on: bool = False,
) -> PathOrUrl:
    """Write the job file for `bananagrams_assets.learn.train` to a path or an S3 URL; return `where`.

    The training may read only the `settings`, dotted paths in the profile. It records the whole profile.
    """
    job = {
        "profile": profile.model_dump(mode="json"),
        "settings": list(settings),
        "store": store_url,
        "tracking_uri": tracking_uri,
        "mlflow_run_id": mlflow_run_id,
        "resume": resume,
        "output": OUTPUT,
        "tags": dict(tags),
        "goes_on": goes_on,
    }
    store, name = _store_and_name(where)
    store.write(name, json.dumps(job, indent=1).encode())
    return where


def read_job_text(where: Path | str) -> str:
    """Return the JSON text of a job file."""
    store, name = _store_and_name(where)
    return store.read(name).decode()


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


def _store_and_name(where: Path | str) -> tuple[Store, str]:
    """Return a store on the parent folder of a path or URL, and the file's name in that store."""
    text = str(where)
    if "://" not in text:
        text = str(Path(text).absolute())
    folder, _, name = text.rpartition("/")
    return open_store(folder), name


def _failure_name(job: str) -> str:
    return job.removesuffix(".json") + ".failure"
