"""The stage `mask_model` without Dagster and without a real training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import MASK_MODEL, SPLIT_INDEX
from bananagrams_assets.learn import tracking
from bananagrams_assets.learn.job_file import UNFINISHED, read_job, write_failure
from bananagrams_assets.learn.launch import LaunchError
from bananagrams_assets.learn.mask_model import TrainingCrashed, TrainingFailed, TrainingRequest
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.stages.build import Outcome, build_partition
from bananagrams_assets.stages.receipts import read_receipt, write_receipt
from bananagrams_assets.stages.stage import UNPARTITIONED, StageResult, UndeclaredAccess
from bananagrams_assets.storage.local import LocalStore

SHA256 = "ab" * 32
Launch = Callable[[str], None]


class Training:
    """Stands for the training process: records its jobs and runs `act` for each one."""

    def __init__(self, store: LocalStore, act: Callable[[dict[str, Any], str], None]) -> None:
        self.store, self.act = store, act
        self.jobs: list[dict[str, Any]] = []

    def __call__(self, job: str) -> None:
        self.jobs.append(json.loads(Path(job).read_text()))
        self.act(self.jobs[-1], job)


@pytest.fixture
def profile() -> Profile:
    return load_profile("demo").profile


@pytest.fixture
def store(tmp_path: Path, profile: Profile) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    for split in SPLIT_INDEX.partitions(profile):
        write_receipt(store, profile, SPLIT_INDEX, split, StageResult({}, content=f"{split}-1"), {})
    return store


def write_model(store: LocalStore) -> Callable[[dict[str, Any], str], None]:
    def act(job: dict[str, Any], path: str) -> None:
        model = {"run_id": job["mlflow_run_id"], "sha256": SHA256, "summary": {"dev_iou": 0.5}, "version": 3}
        store.write("mask_model/model.safetensors", b"weights")
        store.write("mask_model/model.json", json.dumps(model).encode())

    return act


def crash(job: dict[str, Any], path: str) -> None:
    raise RuntimeError("the process ended with code -9")


def build(store: LocalStore, profile: Profile, training: Launch, **changes: Any) -> Outcome:
    uri = tracking.default_tracking_uri(store.url)
    options = {"dagster_run_id": "d-1", "root_run_id": "d-1"} | changes
    request = TrainingRequest(profile, uri, training, **options)
    rebuild = bool(request.from_scratch or request.resume)
    return build_partition(
        store, profile, MASK_MODEL, UNPARTITIONED, ignore_progress, rebuild, request=request
    )


def run_status(store: LocalStore, job: dict[str, Any]) -> str:
    client = tracking.connect(tracking.default_tracking_uri(store.url))
    return str(client.get_run(job["mlflow_run_id"]).info.status)


def test_a_finished_training_is_recorded_and_not_repeated(store: LocalStore, profile: Profile) -> None:
    training = Training(store, write_model(store))
    receipt = build(store, profile, training).receipt
    assert (receipt.data_version, receipt.stats["model_version"]) == (SHA256[:32], 3)
    assert receipt.files["mask_model/model.safetensors"].bytes == len(b"weights")
    [job] = training.jobs
    assert job["mlflow_run_id"] in receipt.stats["mlflow_run"]
    assert job["tags"] == {"dagster_run_id": "d-1", "dagster_asset": "mask_model"}
    assert not store.exists(UNFINISHED)
    assert store.list("mask_model/jobs/") == []
    assert build(store, profile, training).reasons == []
    assert len(training.jobs) == 1


def test_a_crashed_training_is_continued_from_its_last_checkpoint(
    store: LocalStore, profile: Profile
) -> None:
    def crash_after_checkpoint(job: dict[str, Any], path: str) -> None:
        store.write(f"mask_model/checkpoints/{job['mlflow_run_id'][:8]}-000100/state.json", b"{}")
        crash(job, path)

    crashing = Training(store, crash_after_checkpoint)
    with pytest.raises(TrainingCrashed, match="code -9"):
        build(store, profile, crashing)
    assert read_receipt(store, "mask_model", UNPARTITIONED) is None
    assert run_status(store, crashing.jobs[0]) == "FAILED"
    assert store.list("mask_model/jobs/") == []
    training = Training(store, write_model(store))
    build(store, profile, training, dagster_run_id="d-2", root_run_id="d-2")
    [first], [second] = crashing.jobs, training.jobs
    assert second["mlflow_run_id"] == first["mlflow_run_id"]
    assert second["resume"] == f"mask_model/checkpoints/{first['mlflow_run_id'][:8]}-000100"
    assert (first["goes_on"], second["goes_on"]) == (False, True)


@pytest.mark.parametrize("changes", [{"from_scratch": True}, {"resume": "mask_model/checkpoints/other"}])
def test_a_training_from_scratch_continues_only_its_own_run(
    store: LocalStore, profile: Profile, changes: dict[str, Any]
) -> None:
    crashing = Training(store, crash)
    with pytest.raises(RuntimeError):
        build(store, profile, crashing)
    again, retry = Training(store, crash), Training(store, write_model(store))
    with pytest.raises(RuntimeError):
        build(store, profile, again, root_run_id="d-2", **changes)
    build(store, profile, retry, dagster_run_id="d-3", root_run_id="d-2", **changes)
    assert again.jobs[0]["mlflow_run_id"] != crashing.jobs[0]["mlflow_run_id"]
    assert retry.jobs[0]["mlflow_run_id"] == again.jobs[0]["mlflow_run_id"]
    assert again.jobs[0]["resume"] == changes.get("resume")


def test_changed_settings_start_a_new_training(store: LocalStore, profile: Profile) -> None:
    crashing, training = Training(store, crash), Training(store, write_model(store))
    with pytest.raises(RuntimeError):
        build(store, profile, crashing)
    other = load_profile("demo", {"train.learning_rate": 0.5}).profile
    build(store, other, training)
    assert training.jobs[0]["mlflow_run_id"] != crashing.jobs[0]["mlflow_run_id"]


def test_a_failure_that_names_its_reason_is_final(store: LocalStore, profile: Profile) -> None:
    def refuse(job: dict[str, Any], path: str) -> None:
        write_failure(path, "out of memory: lower train.batch_size")
        crash(job, path)

    training = Training(store, refuse)
    with pytest.raises(TrainingFailed, match=r"out of memory: lower train\.batch_size"):
        build(store, profile, training)
    assert not store.exists(UNFINISHED)
    assert store.list("mask_model/jobs/") == []
    assert run_status(store, training.jobs[0]) == "FAILED"


def test_a_launcher_that_cannot_start_is_final_and_leaves_the_note(
    store: LocalStore, profile: Profile
) -> None:
    def refuse(job: dict[str, Any], path: str) -> None:
        raise LaunchError("launcher.kind ray needs more packages")

    with pytest.raises(TrainingFailed, match="needs more packages"):
        build(store, profile, Training(store, refuse))
    assert store.exists(UNFINISHED)


def test_the_model_of_another_training_is_refused(store: LocalStore, profile: Profile) -> None:
    def write_other(job: dict[str, Any], path: str) -> None:
        write_model(store)({**job, "mlflow_run_id": "other"}, path)

    with pytest.raises(TrainingFailed, match=r"model\.json is of another training"):
        build(store, profile, Training(store, write_other))


def test_the_training_reads_only_declared_settings_and_records_the_profile(
    store: LocalStore, profile: Profile
) -> None:
    read = []

    def act(job: dict[str, Any], path: str) -> None:
        read.append(read_job(path))
        write_model(store)(job, path)

    build(store, profile, Training(store, act))
    assert read[0].profile.train == profile.train
    assert read[0].document == profile.model_dump(mode="json")
    with pytest.raises(UndeclaredAccess, match="the training reads the setting fetch"):
        _ = read[0].profile.fetch


def test_a_store_that_fails_during_a_training_is_no_reason_to_give_up(
    store: LocalStore, profile: Profile
) -> None:
    with pytest.raises(TrainingCrashed, match=r"model\.json: no such file"):
        build(store, profile, Training(store, lambda job, path: None))
    assert store.exists(UNFINISHED)


def test_a_tracking_server_that_refuses_a_run_ends_the_attempt_before_the_launch(
    store: LocalStore, profile: Profile
) -> None:
    client = tracking.connect(tracking.default_tracking_uri(store.url))
    client.delete_experiment(client.create_experiment(profile.mlflow.experiment))
    training = Training(store, write_model(store))
    with pytest.raises(tracking.TrackingError, match="was deleted"):
        build(store, profile, training)
    assert training.jobs == []
