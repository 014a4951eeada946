"""Describe a training without starting one: its job file, its command line, what it left unfinished.

Nothing here imports torch, so that whoever launches a training need not load it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..config import Profile, digest_of
from ..errors import BananagramsError
from ..profiles import TRACKING_VARIABLE
from ..stages.stage import STAGES, UNPARTITIONED, upstream_versions
from ..storage.open_store import open_store
from ..storage.store import MissingObject, Store

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

Where = TypeVar("Where", Path, str)

OUTPUT = "mask_model"
"""Where in the store a training leaves its checkpoints, weights and metrics."""
LIFELINE_VARIABLE = "BANANAGRAMS_LIFELINE"
UNFINISHED = f"{OUTPUT}/unfinished.json"
"""Which training began and did not end; whoever trains on the same goes on with it."""


class LaunchError(BananagramsError, RuntimeError):
    """A training that could not be started where the profile says, or that left no sign of having run."""


def default_tracking_uri(store_url: str) -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file in the store's folder (for a bucket: beside DAGSTER_HOME)."""
    if uri := os.environ.get(TRACKING_VARIABLE):
        return uri
    folder = Path(os.environ.get("DAGSTER_HOME", ".bananagrams")) if "://" in store_url else Path(store_url)
    return f"sqlite:///{folder.expanduser().absolute() / 'mlflow.db'}"


def write_job(
    where: Where,
    profile: Profile,
    store_url: str,
    tracking_uri: str,
    mlflow_run_id: str,
    resume: str | None,
    tags: Mapping[str, str],
    goes_on: bool = False,
) -> Where:
    """Write the JSON file, at a path or an S3 URL, that `bananagrams_assets.learn.train` is started with."""
    job = {
        "profile": profile.model_dump(mode="json"),
        "store": store_url,
        "tracking_uri": tracking_uri,
        "mlflow_run_id": mlflow_run_id,
        "resume": resume,
        "output": OUTPUT,
        "tags": dict(tags),
        "goes_on": goes_on,
    }
    store, name = _at(where)
    store.write(name, json.dumps(job, indent=1).encode())
    return where


def read_job_text(where: Path | str) -> str:
    """The content of a job file."""
    store, name = _at(where)
    return store.read(name).decode()


def job_name(mlflow_run_id: str) -> str:
    """The job file's name in the store, where every machine finds it."""
    return f"{OUTPUT}/jobs/{mlflow_run_id}.json"


def remove_job(store: Store, mlflow_run_id: str) -> None:
    """Delete a job file, which may name a tracking server with its password, and its failure file."""
    name = job_name(mlflow_run_id)
    for file in (name, _failure_beside(name)):
        store.delete(file)


def write_failure(where: Path | str, reason: str) -> None:
    """Leave, beside its job file, the reason why a training ended that a person can mend."""
    store, name = _at(where)
    store.write(_failure_beside(name), reason.encode())


def read_failure(where: Path | str) -> str | None:
    """The reason that a training gave for its end, if it gave one."""
    store, name = _at(where)
    try:
        return store.read(_failure_beside(name)).decode()
    except MissingObject:
        return None


def command(job: Path | str, processes: int, python: str = sys.executable) -> list[str]:
    """`torchrun` for one machine: a process for each device, restarted by nobody but its caller."""
    return [
        python,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "--module",
        "bananagrams_assets.learn.train",
        "--job",
        str(job),
    ]


@contextmanager
def lifeline() -> Iterator[dict[str, str]]:
    """Environment variables by which a training on this machine knows that its launcher lives.

    The launcher holds a lock on a file for as long as the block runs; the lock goes with the process, in
    whatever way that ends. Without it a training would live on beside the retry that takes its place.
    """
    with tempfile.NamedTemporaryFile(prefix="bananagrams-launcher-") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield {LIFELINE_VARIABLE: file.name}


def stop_with_launcher() -> None:
    """Send this process SIGTERM, at which it writes a checkpoint and leaves, once its launcher is gone."""
    if not (name := os.environ.get(LIFELINE_VARIABLE)):
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115  (held by the thread for as long as the process lives)
    except FileNotFoundError:
        os.kill(os.getpid(), signal.SIGTERM)
        return

    def wait() -> None:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()


def open_pipes() -> AbstractContextManager[PipesContext]:
    """Dagster Pipes by what the launcher put into the environment: through S3 where it names a bucket.

    Call it on rank 0 alone: what a second writer says after the first has closed is lost.
    """
    from dagster_pipes import (
        PipesEnvVarParamsLoader,
        PipesS3ContextLoader,
        PipesS3MessageWriter,
        open_dagster_pipes,
    )

    params = PipesEnvVarParamsLoader()  # type: ignore[no-untyped-call]
    if "bucket" not in params.load_messages_params():
        return open_dagster_pipes()
    import boto3

    client = boto3.client("s3")
    return open_dagster_pipes(
        context_loader=PipesS3ContextLoader(client), message_writer=PipesS3MessageWriter(client, interval=2)
    )


def inputs_digest(store: Store, profile: Profile) -> str:
    """16 hex digits over dataset, settings and code: two trainings that share them end alike."""
    stage = STAGES["mask_model"]
    upstream = upstream_versions(store, profile, "mask_model", UNPARTITIONED)
    return digest_of([stage.version, stage.settings(profile), upstream])


def begin(store: Store, mlflow_run_id: str, inputs: str, root_run_id: str) -> None:
    """Note that a training has begun. `root_run_id` is the Dagster run that its retries come from."""
    note = {"mlflow_run_id": mlflow_run_id, "inputs": inputs, "root_run_id": root_run_id}
    store.write(UNFINISHED, json.dumps(note, indent=1).encode())


def end(store: Store) -> None:
    """Note that it has ended, or that nobody is to go on with it."""
    store.delete(UNFINISHED)


def unfinished(store: Store, inputs: str, root_run_id: str, afresh: bool) -> tuple[str, str | None] | None:
    """(MLflow run, last whole checkpoint if any) of a training on these inputs that began and did not end.

    With `afresh` only one that a retry of the same Dagster run has begun counts.
    """
    try:
        note = json.loads(store.read(UNFINISHED))
    except MissingObject:
        return None
    if note["inputs"] != inputs or (afresh and note["root_run_id"] != root_run_id):
        return None
    run_id = str(note["mlflow_run_id"])
    return run_id, last_checkpoint(store, run_id)


def last_checkpoint(store: Store, mlflow_run_id: str) -> str | None:
    """The name of a training's latest whole checkpoint to go on from."""
    prefix = f"{OUTPUT}/checkpoints/{mlflow_run_id[:8]}-"
    steps = {
        int(step): name.rpartition("/")[0]
        for name in store.list(prefix)
        if name.endswith("/state.json") and (step := name[len(prefix) :].partition("/")[0]).isdigit()
    }
    return steps[max(steps)] if steps else None


def _at(where: Path | str) -> tuple[Store, str]:
    """The store that holds a file of this path or URL, and the file's name in it."""
    text = str(where)
    if "://" not in text:
        text = str(Path(text).absolute())
    folder, _, name = text.rpartition("/")
    return open_store(folder), name


def _failure_beside(job: str) -> str:
    return job.removesuffix(".json") + ".failure"
