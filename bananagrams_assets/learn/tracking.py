"""MLflow runs: start, resume and end a run, and log to it.

MLflow keeps its tracking server in process-wide state. Every function here takes the tracking URI, so
callers need no setup. Functions import mlflow themselves, because that import takes seconds.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .. import __version__
from ..config import Profile, flatten
from ..errors import BananagramsError
from ..profiles import TRACKING_VARIABLE

if TYPE_CHECKING:
    from .dataset import Split

FLUSH_S = 10.0
"""Interval between batches of metrics sent to the server."""
_MAX_BATCH_PARAMS, _MAX_BATCH_METRICS = 100, 1000  # MLflow's limits per log_batch request


class TrackingError(BananagramsError, RuntimeError):
    """The tracking server or the experiment cannot be used."""


def default_tracking_uri(store_url: str) -> str:
    """Return MLFLOW_TRACKING_URI, or else the URI of a SQLite file `mlflow.db`.

    The file is in the store's folder or, for a store in a bucket, in DAGSTER_HOME (default `.bananagrams`).
    """
    if uri := os.environ.get(TRACKING_VARIABLE):
        return uri
    folder = Path(os.environ.get("DAGSTER_HOME", ".bananagrams")) if "://" in store_url else Path(store_url)
    return f"sqlite:///{folder.expanduser().absolute() / 'mlflow.db'}"


def connect(tracking_uri: str) -> Any:
    """Return an `MlflowClient` of this server and make the server the default of this process."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    import mlflow

    for noisy in ("mlflow", "alembic"):  # a new SQLite file logs a line for each of its 40 migrations
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if path := _sqlite_file(tracking_uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow also writes the URIs to the environment, where they would look like the user's setting.
    user_settings = {name: os.environ.get(name) for name in (TRACKING_VARIABLE, "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    for name, value in user_settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return mlflow.MlflowClient(tracking_uri, tracking_uri)


def start_run(tracking_uri: str, profile: Profile, tags: Mapping[str, str]) -> tuple[str, str]:
    """Start a run in the profile's experiment, creating the experiment if necessary.

    Return the run's id and the URL of its page. Raise TrackingError if the experiment was deleted.
    """
    client = connect(tracking_uri)
    name = profile.mlflow.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment_id = client.create_experiment(name, artifact_location=_artifact_location(tracking_uri))
    elif experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow experiment {name!r} was deleted: restore it or set mlflow.experiment to another name"
        )
    else:
        experiment_id = experiment.experiment_id
    run_id = client.create_run(experiment_id, tags={**source_tags(), **tags}).info.run_id
    return run_id, run_url(tracking_uri, profile, experiment_id, run_id)


def reopen_run(tracking_uri: str, profile: Profile, run_id: str) -> str | None:
    """Set an ended run to RUNNING; return the URL of its page, or None if the run no longer exists."""
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    if run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run_url(tracking_uri, profile, run.info.experiment_id, run_id)


def end_run(tracking_uri: str, run_id: str, status: str) -> None:
    """Set a run to FINISHED, FAILED or KILLED. An ended run keeps its status."""
    client = connect(tracking_uri)
    if client.get_run(run_id).info.status in ("RUNNING", "SCHEDULED"):
        client.set_terminated(run_id, status)


def run_url(tracking_uri: str, profile: Profile, experiment_id: str, run_id: str) -> str:
    """Return the URL of a run's page on the tracking server or, for a file, under mlflow.ui_url."""
    base = tracking_uri if tracking_uri.startswith("http") else profile.mlflow.ui_url
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def source_tags() -> dict[str, str]:
    """Return tags with the package version and, in a checkout, its Git commit and whether it is dirty."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        completed = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
        return completed.stdout.strip()

    tags = {"bananagrams_version": __version__, "mlflow.source.name": "bananagrams"}
    try:
        # A package installed inside another project's checkout does not belong to that project's commit.
        git("ls-files", "--error-unmatch", "__init__.py")
        tags["mlflow.source.git.commit"] = git("rev-parse", "HEAD")
        tags["git_dirty"] = str(bool(git("status", "--porcelain", "--", str(folder.parent)))).lower()
    except (OSError, subprocess.SubprocessError):
        pass
    return tags


class RunLog:
    """Log to one MLflow run; the `with` block also logs system metrics of this machine.

    Metrics are sent in batches. While the server is unreachable they stay queued and training continues.
    The end of the block sends the queue and raises TrackingError if that fails.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = connect(tracking_uri)
        self._uri = tracking_uri
        self._run_id = run_id
        self._queue: list[Any] = []
        self._next_flush = time.monotonic() + FLUSH_S
        self._system_metrics: Any = None

    def __enter__(self) -> RunLog:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._system_metrics = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self._run_id, resume_logging=True, tracking_uri=self._uri
        )
        self._system_metrics.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._system_metrics.finish()
        try:
            self._send_queue()
        except Exception as failure:
            if error is None:
                raise TrackingError(
                    f"the last metrics could not be sent to MLflow at {self._uri}: {failure}"
                ) from None

    def settings(self, parameters: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        """Log `parameters` (nested) under their dotted paths, and the profile `document` as a file."""
        import yaml
        from mlflow.entities import Param

        # A resumed run has its parameters already, and MLflow rejects a second value for a parameter.
        logged = self._client.get_run(self._run_id).data.params
        params = [Param(key, str(value)) for key, value in flatten(parameters) if key not in logged]
        for start in range(0, len(params), _MAX_BATCH_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_BATCH_PARAMS])
        self.file("profile.yaml", yaml.safe_dump(dict(document), sort_keys=False).encode())

    def dataset(self, split: Split, source: str, context: str) -> None:
        """Log a split as a dataset input: its name, digest, size, index URI and use (`context`)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=split.name,
            digest=split.digest,
            source_type="bananagrams split_index",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": len(split)}),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._run_id, [DatasetInput(data, tags)])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Queue metrics of a step; the queue is sent about every FLUSH_S seconds."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._queue += [Metric(key, float(value), now_ms, step) for key, value in values.items()]
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send the queued metrics. Call this before every checkpoint, so that a resumed run has no gap."""
        try:
            self._send_queue()
            self._next_flush = time.monotonic() + FLUSH_S
        except Exception as error:  # the client raises many types; the queue keeps the metrics
            print(f"MLflow cannot be reached, {len(self._queue)} values are queued: {error}", flush=True)
            self._next_flush = time.monotonic() + 6 * FLUSH_S

    def image(self, name: str, rgb: Any, step: int) -> None:
        """Log an RGB image, uint8 (H, W, 3). The run's page shows all images of a name by step."""
        self._client.log_image(self._run_id, rgb, key=name, step=step)

    def file(self, name: str, data: bytes) -> None:
        """Log bytes as an artifact; `name` is its path in the run."""
        with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            parent = str(Path(name).parent)
            self._client.log_artifact(self._run_id, str(path), None if parent == "." else parent)

    def _send_queue(self) -> None:
        while self._queue:
            self._client.log_batch(self._run_id, metrics=self._queue[:_MAX_BATCH_METRICS])
            del self._queue[:_MAX_BATCH_METRICS]


def _sqlite_file(tracking_uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(unquote(tracking_uri[len(prefix) :])) if tracking_uri.startswith(prefix) else None


def _artifact_location(tracking_uri: str) -> str | None:
    """Return a folder next to a SQLite file (MLflow's default is ./mlruns), or None for a server's own."""
    path = _sqlite_file(tracking_uri)
    return (path.absolute().parent / "mlflow-artifacts").as_uri() if path else None
