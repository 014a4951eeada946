"""MLflow: runs, model versions, and the alias `champion` that only a better model gets.

MLflow keeps its tracking server in a global of the process; every function here takes the URI and
leaves nothing to be set up before. mlflow and torch are imported inside them, for they take seconds.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .. import __version__
from ..config import Profile, flatten
from ..errors import BananagramsError
from ..profiles import TRACKING_VARIABLE
from .comparison import Gain, Scored, paired_gain

if TYPE_CHECKING:
    from .dataset import Split
    from .predict import Predictor

SAMPLES, CHAMPION_SAMPLES = "samples.json", "champion_samples.json"
"""Artifacts of a run: each sample's IoU of its model, and of the champion of that day."""
DECISION, WITHDRAWN = "decision", "withdrawn"
"""Tags of a version: why the champion moved or not, and when it was taken back."""
FLUSH_S = 10.0
"""Metrics wait for this long, to be sent together."""
_PARAMS_A_REQUEST, _METRICS_A_REQUEST = 100, 1000  # MLflow's own limits on a batch

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "opencv-python-headless",
    "pillow", "pandas", "pydantic", "pyyaml",
)  # fmt: skip
"""What the logged package needs to predict; pinned to what trained it."""


class RegistryError(BananagramsError, RuntimeError):
    """A model version or alias that is not there, or a tracking server that cannot be used."""


@dataclass(frozen=True)
class Promotion:
    """Whether the champion changed, why in words, and which versions the aliases now name."""

    moved: bool
    reason: str
    champion_version: str | None
    previous_version: str | None
    gain: Gain | None = None


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
    run_id = client.create_run(experiment_id, tags={**source_tags(), **tags}).info.run_id
    return run_id, run_url(tracking_uri, profile, experiment_id, run_id)


def reopen_run(tracking_uri: str, profile: Profile, run_id: str) -> str | None:
    """Let a run that ended go on; returns its page's URL, or None if it is no longer there."""
    client = _client(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    if run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run_url(tracking_uri, profile, run.info.experiment_id, run_id)


def source_tags() -> dict[str, str]:
    """The version of this package and, in a checkout, its Git revision and whether files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    tags = {"bananagrams_version": __version__, "mlflow.source.name": "bananagrams"}
    try:
        # A package installed inside another project's checkout is not of that project's revision.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        tags["mlflow.source.git.commit"] = git("rev-parse", "HEAD")
        tags["git_dirty"] = str(bool(git("status", "--porcelain", "--", str(folder.parent)))).lower()
    except (OSError, subprocess.SubprocessError):
        pass
    return tags


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
    """Writes to one MLflow run; while the `with` block runs the machine's own figures are logged too.

    Metrics are sent in batches. While the server cannot be reached they are kept, and training goes on;
    they are sent at the end of the block, which raises RegistryError if that fails too.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._client = _client(tracking_uri)
        self._uri = tracking_uri
        self._run_id = run_id
        self.experiment_id: str = self._client.get_run(run_id).info.experiment_id
        self._waiting: list[Any] = []
        self._next_flush = time.monotonic() + FLUSH_S
        self._machine: Any = None

    def __enter__(self) -> RunLog:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._machine = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            self._run_id, resume_logging=True, tracking_uri=self._uri
        )
        self._machine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._machine.finish()
        try:
            self._send()
        except Exception as failure:
            if error is None:
                raise RegistryError(
                    f"MLflow at {self._uri} did not take the last metrics: {failure}"
                ) from None

    def settings(self, profile: Profile, more: Mapping[str, Any]) -> None:
        """Every model and training setting, and `more`, as parameters; the whole profile as a file."""
        import yaml
        from mlflow.entities import Param

        sections = profile.model_dump(mode="json", include={"model", "train"})
        values = {**dict(flatten(sections)), **more}
        # A run that goes on has them, and MLflow takes no parameter twice with different values.
        known = self._client.get_run(self._run_id).data.params
        params = [Param(key, str(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(params), _PARAMS_A_REQUEST):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_A_REQUEST])
        self.file("profile.yaml", yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False).encode())

    def dataset(self, split: Split, source: str, context: str) -> None:
        """A split as an input of the run: its digest, its samples, where its index lies, what it is for."""
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
        """Numbers at a step; they are sent with others within about FLUSH_S seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in values.items()]
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send what waits. Call it with every checkpoint: a run that goes on from there has no gap then."""
        try:
            self._send()
            self._next_flush = time.monotonic() + FLUSH_S
        except Exception as error:  # whatever the server's client raises; nothing is lost by it
            print(f"MLflow cannot be reached, {len(self._waiting)} figures wait: {error}", flush=True)
            self._next_flush = time.monotonic() + 6 * FLUSH_S

    def image(self, name: str, rgb: Any, step: int) -> None:
        """A picture, uint8 (H, W, 3), at a step: the run's page shows a name's pictures along the steps."""
        self._client.log_image(self._run_id, rgb, key=name, step=step)

    def file(self, name: str, data: bytes) -> None:
        """An artifact, `name` with its folder."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            self.copy(path, str(Path(name).parent))

    def copy(self, path: Path, folder: str) -> None:
        """A file of this machine as an artifact in a folder of the run (`.`: at its root)."""
        self._client.log_artifact(self._run_id, str(path), None if folder == "." else folder)

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:_METRICS_A_REQUEST])
            del self._waiting[:_METRICS_A_REQUEST]


def register(
    tracking_uri: str,
    profile: Profile,
    run_id: str,
    folder: Path,
    example: tuple[bytes, str],
    tags: Mapping[str, str],
    card: str = "",
) -> str:
    """Log the model in `folder` to the run, register it as `challenger` with tags; returns its version.

    `example` is a picture file's bytes and an instruction; `card`, in Markdown, describes the version.
    """
    client = _client(tracking_uri)
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from .predict import CARD, DESCRIPTION, WEIGHTS

    package = Path(__file__).parents[1]
    signature = ModelSignature(
        Schema([ColSpec("binary", "image"), ColSpec("string", "instruction")]),
        Schema([ColSpec("binary", "mask")]),
        ParamSchema([ParamSpec("threshold", "double", None), ParamSpec("soft", "boolean", False)]),
    )
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        warnings.simplefilter("ignore")  # advice to write the signature as type hints, though there is one
        logged = mlflow.pyfunc.log_model(
            name="mask_model",
            python_model=str(package / "learn" / "pyfunc_model.py"),
            artifacts={
                "weights": str(folder / WEIGHTS),
                "description": str(folder / DESCRIPTION),
                "card": str(folder / CARD),
            },
            code_paths=[str(package)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example[0]], "instruction": [example[1]]}),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        )
    name = profile.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, logged.model_uri, run_id, tags=dict(tags), description=card, model_id=logged.model_id
    )
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return str(version.version)


def promote(tracking_uri: str, profile: Profile, candidate_version: str | int) -> Promotion:
    """Make the candidate champion if it beats its trivial baselines and the champion; record why on it.

    The first is judged by its tags `dev_iou`, `baseline_iou` and `shuffled_iou`, as the asset checks do: it
    must also beat itself with shuffled instructions. The second is judged on the very same samples of test
    (of dev where there is no test): the candidate's mean gain must be above zero over its whole 95% interval
    (`compare.paired_gain`). Raises RegistryError.
    """
    client = _client(tracking_uri)
    candidate = _version(client, profile, str(candidate_version))
    before = find(tracking_uri, profile, CHAMPION)
    previous = find(tracking_uri, profile, PREVIOUS)
    if before == str(candidate.version):
        return Promotion(False, f"version {before} is the champion already", before, previous)
    registered = profile.mlflow.registered_model
    moved, reason, gain = _decide(client, profile, candidate, before)
    name = f"version {candidate.version}"
    reason = f"{name} is the champion: {reason}" if moved else f"{name} stays challenger: {reason}"
    tags = {DECISION: reason}
    if gain:
        tags.update(gain=f"{gain.mean:.4f}", gain_interval=f"{gain.low:.4f} to {gain.high:.4f}")
    for key, value in tags.items():
        client.set_model_version_tag(registered, candidate.version, key, value)
    if not moved:
        return Promotion(False, reason, before, previous, gain)
    if before is not None:
        client.set_registered_model_alias(registered, PREVIOUS, before)
        previous = before
    client.set_registered_model_alias(registered, CHAMPION, str(candidate.version))
    return Promotion(True, reason, str(candidate.version), previous, gain)


def go_back(tracking_uri: str, profile: Profile) -> Promotion:
    """Make the previous champion champion again; the one taken back is `previous` and is not promoted anew.

    Raises RegistryError where there is no previous champion.
    """
    client = _client(tracking_uri)
    name = profile.mlflow.registered_model
    now, before = find(tracking_uri, profile, CHAMPION), find(tracking_uri, profile, PREVIOUS)
    if now is None or before is None or now == before:
        raise RegistryError(
            f"{name} has no previous champion to go back to: aliases `{CHAMPION}` {now or 'none'}, "
            f"`{PREVIOUS}` {before or 'none'}"
        )
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    reason = f"version {before} is the champion again: version {now} was taken back at {when}"
    client.set_model_version_tag(name, now, WITHDRAWN, when)
    client.set_model_version_tag(name, now, DECISION, reason)
    client.set_model_version_tag(name, before, DECISION, reason)
    if WITHDRAWN in _version(client, profile, before).tags:
        client.delete_model_version_tag(name, before, WITHDRAWN)
    client.set_registered_model_alias(name, PREVIOUS, now)
    client.set_registered_model_alias(name, CHAMPION, before)
    return Promotion(True, reason, before, now)


def scored_samples(tracking_uri: str, profile: Profile, version: str) -> tuple[Scored | None, Scored | None]:
    """What a version's training scored, sample by sample: its own model, and the champion of that day."""
    client = _client(tracking_uri)
    run_id = _version(client, profile, version).run_id
    return _artifact(client, run_id, SAMPLES), _artifact(client, run_id, CHAMPION_SAMPLES)


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


def decision(tracking_uri: str, profile: Profile, alias: str) -> tuple[str | None, str]:
    """The version of an alias, if any, and what was decided about it last."""
    version = find(tracking_uri, profile, alias)
    if version is None:
        return None, ""
    tags = _version(_client(tracking_uri), profile, version).tags
    return version, tags.get(DECISION, "not compared yet")


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


def _decide(
    client: Any, profile: Profile, candidate: Any, before: str | None
) -> tuple[bool, str, Gain | None]:
    """Whether the candidate is to be champion, why, and its gain over the champion where there is one."""
    try:
        score, baseline, shuffled = (
            float(candidate.tags[key]) for key in ("dev_iou", "baseline_iou", "shuffled_iou")
        )
    except (KeyError, ValueError):
        raise RegistryError(
            f"version {candidate.version} of {profile.mlflow.registered_model} carries no dev_iou, "
            "baseline_iou and shuffled_iou tags: it was not registered by a training of this project"
        ) from None
    if when := candidate.tags.get(WITHDRAWN):
        return False, f"it was taken back at {when}; train again, or delete its tag `{WITHDRAWN}`", None
    needed = profile.checks.min_gain
    for least, what in ((baseline, "best trivial"), (shuffled, "itself, with shuffled instructions")):
        if score < least + needed:
            return False, f"dev IoU {score:.3f}, needed {least:.3f} ({what}) + {needed:g}", None
    over_trivial = f"dev IoU {score:.3f}, best trivial {baseline:.3f}"
    if before is None:
        return True, f"{over_trivial}; there was none before", None
    own = _artifact(client, candidate.run_id, SAMPLES)
    rival = _artifact(client, _version(client, profile, before).run_id, SAMPLES)
    if own is not None and (rival is None or rival.dataset != own.dataset):
        # The champion learned on other data; the candidate's training scored it on its own.
        rival = None
        if candidate.tags.get("champion_version") == before:
            rival = _artifact(client, candidate.run_id, CHAMPION_SAMPLES)
    if own is None or rival is None or own.samples.keys() != rival.samples.keys():
        reason = (
            f"the champion, version {before}, was not scored on these samples; train again to compare, or "
            f"delete the alias `{CHAMPION}` if this code cannot load it"
        )
        return False, reason, None
    gain = paired_gain(own, rival)
    figures = (
        f"{own.split} mean IoU {own.mean():.3f}, version {before} {rival.mean():.3f}: gain {gain.mean:+.3f}, "
        f"95% interval {gain.low:+.3f} to {gain.high:+.3f} over {gain.photos} photographs"
    )
    if gain.low > 0:
        return True, f"{figures}; {over_trivial}", gain
    return False, f"{figures}, not above zero", gain


def _artifact(client: Any, run_id: str, name: str) -> Scored | None:
    import tempfile

    from mlflow.exceptions import MlflowException

    if not any(item.path == name for item in client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        try:
            path = client.download_artifacts(run_id, name, folder)
        except MlflowException as error:
            raise RegistryError(f"MLflow run {run_id}: {name} cannot be read: {error}") from None
        return Scored.of_json(json.loads(Path(path).read_text(encoding="utf-8")))


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
