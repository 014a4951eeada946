"""A killed training resumes from its last checkpoint, in a retry or in a later Dagster run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import mlflow
import psutil
import pytest
import yaml

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import SPLIT_INDEX
from bananagrams_assets.learn import job_file, tracking
from bananagrams_assets.stages.receipts import write_receipt
from bananagrams_assets.stages.stage import StageResult
from bananagrams_assets.storage.store import Store

from ..learn.tiny import make_dataset, profile


@pytest.fixture
def settings(tmp_path: Path) -> Profile:
    return profile(
        store__url=str(tmp_path / "store"), train__max_steps=60, train__epochs=100, train__log_every_steps=5,
        train__evaluate_every_steps=20, train__checkpoint_every_steps=5, train__learning_rate=0.01,
        launcher__retry_delay_s=0.0, launcher__retries=2,
    )  # fmt: skip


@pytest.fixture
def store(settings: Profile) -> Store:
    """Return a store with a dataset and the receipts of its split indexes."""
    store = make_dataset(Path(str(settings.store.url)))
    for split in settings.splits.by_name():
        write_receipt(store, settings, SPLIT_INDEX, split, StageResult({}, content=f"{split}-1"), {})
    return store


def start_training(settings: Profile, *options: str) -> subprocess.Popen[str]:
    """Start `bananagrams train` with its output in a pipe."""
    home = Path(os.environ["DAGSTER_HOME"])
    home.mkdir(exist_ok=True)
    file = home / "profile.yaml"
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [
        sys.executable, "-u", "-m", "bananagrams_assets.cli", "train", "--profile", str(file), *options,
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_checkpoint(lines: Iterator[str], step: int) -> None:
    """Read lines until a checkpoint of this step or a later one is reported."""
    output = []
    for line in lines:
        output.append(line)
        if line.startswith("checkpoint ") and int(line.rstrip().rpartition("-")[2]) >= step:
            return
    raise AssertionError("".join(output)[-3000:])


def training_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the training processes below `process`, without their torchrun parent."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "torch.distributed.run" not in child.cmdline()
            and "bananagrams_assets.learn.train" in child.cmdline()]  # fmt: skip


@pytest.mark.slow
def test_a_training_resumes_after_its_worker_and_its_dagster_run_were_killed(
    settings: Profile, store: Store
) -> None:
    with start_training(settings) as process:
        assert process.stdout is not None
        wait_for_checkpoint(process.stdout, 10)
        orphans = training_processes(process)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    # The training detects that its launcher is gone, writes a checkpoint and exits.
    assert orphans
    assert not psutil.wait_procs(orphans, timeout=60)[1]
    note = json.loads(store.read(job_file.UNFINISHED))
    last_name = job_file.last_checkpoint(store, note["mlflow_run_id"])
    assert last_name is not None

    with start_training(settings) as process:
        assert process.stdout is not None
        wait_for_checkpoint(process.stdout, int(last_name.rpartition("-")[2]) + 5)
        (worker,) = training_processes(process)
        worker.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        assert process.wait(300) == 0, rest[-3000:]
    assert "60/60" in rest
    resumed = [line for line in rest.splitlines() if " to 60" in line and "steps " in line]
    assert resumed
    assert "steps 0 to 60" not in rest

    client = mlflow.MlflowClient(tracking.default_tracking_uri(str(settings.store.url)))
    experiment = client.get_experiment_by_name("bananagrams")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (note["mlflow_run_id"], "FINISHED")
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert steps >= set(range(5, 65, 5))
    assert [
        int(version.version) for version in client.search_model_versions("name = 'bananagrams-mask'")
    ] == [1]
    assert not store.exists(job_file.UNFINISHED)
    assert not store.list(f"{job_file.OUTPUT}/jobs/")

    with dg.DagsterInstance.get() as instance:
        last = instance.get_run_records(dg.RunsFilter(job_name="train_model"), limit=1)[0].dagster_run
        records = instance.get_records_for_run(last.run_id).records
        events = [record.event_log_entry.dagster_event for record in records]
        assert any(event is not None and event.is_step_restarted for event in events)
        messages = [record.event_log_entry.user_message for record in records]
        assert sum("continuing MLflow run" in message for message in messages) == 2
        assert any("dev mean IoU" in message for message in messages)


@pytest.mark.slow
def test_a_failure_that_a_retry_cannot_fix_is_not_retried(settings: Profile, store: Store) -> None:
    with start_training(settings, "--set", "train.min_confidence=0.99") as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "no training sample is left" in out
    assert out.count("MLflow run ") <= 1
    assert not store.exists(job_file.UNFINISHED)
