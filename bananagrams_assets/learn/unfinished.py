"""The note in the store about a training that has started but not finished, so that it can be resumed."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..storage.store import MissingObject, Store
from .job_file import OUTPUT

UNFINISHED = f"{OUTPUT}/unfinished.json"


class UnfinishedTraining(NamedTuple):
    """An unfinished training: its MLflow run and the name of its latest checkpoint, if any."""

    mlflow_run_id: str
    checkpoint: str | None


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
