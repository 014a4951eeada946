"""Training from dataset to registry, in this process and in subprocesses."""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from bananagrams_assets.learn import (
    checkpoint,
    evaluate,
    launch,
    registry,
    tracking,
    train,
    training_run,
)
from bananagrams_assets.learn.dataset import Batch, DatasetError, TrainingSet, data_loader, open_split
from bananagrams_assets.learn.distributed import DistributedContext
from bananagrams_assets.learn.job_file import TrainingJob, last_checkpoint, read_failure, read_job, write_job
from bananagrams_assets.learn.losses import mask_loss
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.optimizer import EMA, lr_multiplier, total_steps
from bananagrams_assets.learn.predict import load_predictor, predict_masks
from bananagrams_assets.learn.promotion import promote
from bananagrams_assets.learn.training_run import TrainingError
from bananagrams_assets.storage.open_store import open_store

from .tiny import HALVES, HEIGHT, WIDTH, make_dataset, profile

HERE = DistributedContext(0, 1, torch.device("cpu"))
MASK_MODEL_SETTINGS = ("model", "train", "launcher", "mlflow")
# Enough steps at 32 px to learn the four halves.
LEARNS: dict[str, Any] = {"train__max_steps": 60, "train__epochs": 20, "train__learning_rate": 0.01,
          "train__log_every_steps": 20, "train__evaluate_every_steps": 20,
          "train__checkpoint_every_steps": 60}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_job(folder: Path, resume: str | None = None, **overrides: Any) -> Path:
    """Write a job file for the dataset in `folder` and start its MLflow run."""
    chosen, tags = profile(**overrides), {"dagster_run_id": "d-1"}
    uri = tracking.default_tracking_uri(str(folder))
    run_id, _ = tracking.start_run(uri, chosen, tags)
    job = TrainingJob(chosen, chosen.model_dump(mode="json"), str(folder), uri, run_id, resume, tags)
    file = folder / f"{run_id}.json"
    write_job(file, job, MASK_MODEL_SETTINGS)
    return file


def run(job: Path) -> tuple[TrainingJob, dict[str, Any], list[str]]:
    lines: list[str] = []
    read = read_job(job)
    result = train.train(read, HERE, lines.append)
    assert result is not None
    return read, result, lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("trained")
    make_dataset(folder)
    torch.set_num_threads(1)
    return run(make_job(folder, **LEARNS))


def test_trained_model_beats_the_baselines_and_uses_the_instruction(trained: Any) -> None:
    _, result, _ = trained
    summary = result["summary"]
    assert summary["dev_iou"] > max(summary["baselines"].values()) + 0.1
    assert summary["shuffled_iou"] < summary["dev_iou"] - 0.15
    assert summary["test_iou"] > 0.55


def test_log_lines_contain_loss_dev_iou_and_baselines(trained: Any) -> None:
    _, _, lines = trained
    live = [line for line in lines if line.startswith("step ")]
    assert len(live) == 3
    for line in live:
        assert "loss" in line
        assert "dev mean IoU" in line
        assert "full mask 0.500" in line
        assert line.endswith("it/s")


def test_store_has_weights_and_model_json(trained: Any) -> None:
    job, result, _ = trained
    store = open_store(job.store)
    assert json.loads(store.read("mask_model/model.json")) == result
    weights = load(store.read("mask_model/model.safetensors"))
    assert "image.stem.0.weight" in weights
    assert set(result["dataset"]) == {"train", "dev", "test"}
    assert result["metrics"]["dev"]["by_scope"]["local"]["samples"] == 8


def test_mlflow_has_parameters_metrics_images_and_the_challenger(trained: Any) -> None:
    job, result, _ = trained
    import mlflow

    client = mlflow.MlflowClient(job.tracking_uri)
    mlflow_run = client.get_run(job.mlflow_run_id)
    assert mlflow_run.data.params["train.side_px"] == "32"
    assert mlflow_run.data.metrics["dev_mean_iou"] == pytest.approx(result["summary"]["dev_iou"])
    assert len(client.get_metric_history(job.mlflow_run_id, "loss")) == 3
    names = {item.path for item in client.list_artifacts(job.mlflow_run_id)}
    assert {"curves.png", "dev_predictions.png", "metrics.json"} <= names
    version = client.get_model_version_by_alias("bananagrams-mask", "challenger")
    assert str(version.version) == result["version"]
    assert version.tags["dagster_run_id"] == "d-1"
    assert mlflow_run.info.artifact_uri.startswith(Path(job.store).as_uri())


def test_champion_predicts_the_same_in_another_process(trained: Any, tmp_path: Path) -> None:
    job, result, _ = trained
    promotion = promote(job.tracking_uri, profile(**LEARNS), result["version"])
    assert promotion.changed, promotion.reason
    image = np.random.default_rng(0).integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    script = """
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/bananagrams-mask@champion")
rows = pd.DataFrame({"image": [open(sys.argv[2], "rb").read()], "instruction": ["Tint the left half."]})
sys.stdout.buffer.write(model.predict(rows)["mask"][0])
"""
    command = [sys.executable, "-W", "ignore", "-c", script, job.tracking_uri, str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True)
    mask = np.asarray(Image.open(io.BytesIO(done.stdout)))
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) <= {0, 255}
    left = np.zeros((HEIGHT, WIDTH), bool)
    left[HALVES["left"]] = True
    assert ((mask == 255) & left).sum() / ((mask == 255) | left).sum() > 0.5
    predictor = load_predictor(registry.download_model(job.tracking_uri, job.profile))
    probability = predict_masks(predictor, [image], ["Tint the left half."])[0]
    assert probability.dtype == np.float32
    assert np.array_equal(probability >= predictor.threshold, mask == 255)


def test_registered_model_has_the_scores_of_the_training(trained: Any) -> None:
    job, result, _ = trained
    predictor = load_predictor(registry.download_model(job.tracking_uri, job.profile, result["version"]))
    again = evaluate.evaluate(predictor, open_store(job.store), job.profile, "dev")
    assert again["model"]["mean_iou"] == pytest.approx(result["summary"]["dev_iou"], abs=1e-6)
    assert again["baselines"] == result["summary"]["baselines"]


def test_sample_ious_use_the_threshold_of_the_reported_scores(trained: Any) -> None:
    job, result, _ = trained
    own = registry.read_sample_ious(job.tracking_uri, job.mlflow_run_id)
    assert own is not None
    assert own.mean() == pytest.approx(result["summary"]["test_iou"], abs=1e-6)
    predictor = load_predictor(registry.download_model(job.tracking_uri, job.profile, result["version"]))
    strict = replace(predictor, description={"threshold": 0.97})
    with open_split(open_store(job.store), "test") as split:
        mean_iou = evaluate.score(strict, split, np.zeros((64, 64), bool))["model"]["mean_iou"]
        assert evaluate.sample_ious(strict, split).mean() == pytest.approx(mean_iou)
    assert mean_iou < own.mean()


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    job, whole, _ = run(make_job(tmp_path, train__max_steps=4, model__fusion__dropout=0.1))
    name = f"mask_model/checkpoints/{job.mlflow_run_id[:8]}"
    final = store.read(f"{name}-000004/model.safetensors")
    moments = store.read(f"{name}-000004/optimizer.safetensors")
    resumed, again, lines = run(
        make_job(
            tmp_path, resume=str(tmp_path / f"{name}-000002"), train__max_steps=4, model__fusion__dropout=0.1
        )
    )
    assert any("steps 2 to 4" in line for line in lines)
    name = f"mask_model/checkpoints/{resumed.mlflow_run_id[:8]}"
    assert store.read(f"{name}-000004/model.safetensors") == final
    assert store.read(f"{name}-000004/optimizer.safetensors") == moments
    assert again["sha256"] == whole["sha256"]
    with pytest.raises(TrainingError, match="has completed all its 4 steps"):
        run(make_job(tmp_path, resume=f"{name}-000004", train__max_steps=4, model__fusion__dropout=0.1))


def test_nan_loss_stops_the_training_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    monkeypatch.setattr(
        training_run, "mask_loss", lambda logits, *others: logits.mean((1, 2, 3)) * float("nan")
    )
    with pytest.raises(TrainingError, match=r"loss of step 1 is nan: .*train-0\d\d 'Tint the \w+ half\.'"):
        run(make_job(tmp_path))


def test_check_finite_accepts_a_finite_loss() -> None:
    empty = torch.zeros(1, 1, 1, 1)
    training_run.check_finite(torch.tensor(1.0), Batch(["k"], ["t"], empty, empty, empty, empty), 1)


def test_empty_training_split_is_an_error(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 0, "dev": 8})
    with pytest.raises(DatasetError, match="'train' holds no samples"):
        run(make_job(tmp_path))
    make_dataset(tmp_path, {"train": 8, "dev": 8})
    with pytest.raises(TrainingError, match="no training sample is left"):
        run(make_job(tmp_path, train__min_confidence=0.99))


def test_sigterm_writes_a_checkpoint_and_exits_nonzero(tmp_path: Path) -> None:
    store = make_dataset(tmp_path)
    job = make_job(tmp_path, train__max_steps=2000, train__epochs=2000, train__log_every_steps=1,
                   train__evaluate_every_steps=2000, train__checkpoint_every_steps=2000)  # fmt: skip
    command = [sys.executable, "-m", "bananagrams_assets.learn.train", "--job", str(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in rest
    name = rest.split("--resume ")[1].split("`")[0]
    assert store.exists(f"{name}/state.json")
    import mlflow

    read = read_job(job)
    assert mlflow.MlflowClient(read.tracking_uri).get_run(read.mlflow_run_id).info.status == "KILLED"


def test_two_processes_train_on_an_odd_number_of_samples(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 13, "dev": 5})
    job = make_job(tmp_path, train__max_steps=3, train__batch_size=4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        launch.torchrun_command(job, 2), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x cpu" in done.stdout
    assert "not scored on test" in done.stdout
    assert store.exists("mask_model/model.safetensors")


def test_batch_size_must_be_divisible_by_the_devices(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(
        TrainingError, match=r"batch_size 8 must be a multiple of the 3 devices times train.accumulate 1"
    ):
        train.train(read_job(make_job(tmp_path)), DistributedContext(0, 3, torch.device("cpu")), print)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_lr_multiplier_warms_up_then_follows_the_schedule(scheduler: str) -> None:
    settings = profile(train__warmup_steps=10, train__scheduler=scheduler).train
    rates = [lr_multiplier(step, 100, settings) for step in range(100)]
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert rates[10] == pytest.approx(1)
    assert max(rates) <= 1
    assert rates[-1] == (1 if scheduler == "constant" else pytest.approx(0, abs=0.02))


def test_total_steps_cover_the_epochs_unless_limited() -> None:
    assert total_steps(33, profile(train__epochs=2, train__max_steps=None).train) == 9
    assert total_steps(33, profile(train__epochs=2).train) == 4


def losses_of(job: Path) -> list[float]:
    read = read_job(job)
    import mlflow

    history = mlflow.MlflowClient(read.tracking_uri).get_metric_history(read.mlflow_run_id, "loss")
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def launched(job: Path, processes: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    command = (
        launch.torchrun_command(job, processes)
        if processes > 1
        else [sys.executable, "-m", "bananagrams_assets.learn.train", "--job", str(job)]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


TWO_PROCESSES: dict[str, Any] = {"train__max_steps": 200, "train__epochs": 200, "train__log_every_steps": 1,
                            "train__evaluate_every_steps": 200,
                            "train__checkpoint_every_steps": 200,
                            "train__learning_rate": 3e-4, "train__encoder_rate": 0.1,
                            "train__warmup_steps": 100, "train__beta2": 0.999,
                            "train__side_px": 64}  # fmt: skip


@pytest.mark.slow
def test_two_processes_compute_the_losses_of_one(tmp_path: Path) -> None:
    # 13 samples in shards of 6 and 7 give the processes uneven shares in every epoch. A warm-up is
    # necessary: Adam divides by the gradient's magnitude, so where a gradient is zero except for rounding,
    # its step is rounding error, and without warm-up the processes differ after a few steps.
    make_dataset(tmp_path, {"train": 13, "dev": 5})
    jobs = [make_job(tmp_path, **TWO_PROCESSES) for _ in range(2)]
    for job, processes in zip(jobs, (1, 2), strict=True):
        done = launched(job, processes)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = map(losses_of, jobs)
    assert len(one) == 200
    differences = [abs(a - b) for a, b in zip(one[:20], two[:20], strict=True)]
    assert differences[0] < 1e-6
    assert max(differences) < 1e-4, differences


KILLED: dict[str, Any] = {"train__max_steps": 24, "train__epochs": 20, "train__log_every_steps": 1,
                          "train__evaluate_every_steps": 7, "train__checkpoint_every_steps": 3,
                          "train__ema_decay": 0.9, "train__accumulate": 2,
                          "model__fusion__dropout": 0.1}  # fmt: skip
TOWER: dict[str, Any] = {"model__text_encoder": "ViT-S-32-alt", "model__text_weights": "none"}


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "lives"), [({}, (5, 11)), (TOWER, (8,))])
def test_killed_and_resumed_run_is_bit_equal(
    tmp_path: Path, encoder: dict[str, Any], lives: tuple[int, ...]
) -> None:
    store = make_dataset(tmp_path)
    settings = {**KILLED, **encoder}
    whole = make_job(tmp_path, **settings)
    assert launched(whole).returncode == 0
    weights = json.loads(store.read("mask_model/model.json"))["sha256"]
    name = f"mask_model/checkpoints/{read_job(whole).mlflow_run_id[:8]}-000024"
    expected = {file: store.read(f"{name}/{file}") for file in checkpoint.TENSOR_FILES}

    resume = None
    for steps_lived in lives:  # killed after so many steps, then resumed from the last checkpoint
        job = make_job(tmp_path, resume=resume, **settings)
        command = [sys.executable, "-m", "bananagrams_assets.learn.train", "--job", str(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            lines = [line for line, _ in zip(after_steps(process.stdout), range(steps_lived), strict=False)]
            assert lines
            process.kill()
        resume = last_checkpoint(store, read_job(job).mlflow_run_id)
        assert resume is not None
        assert int(resume[-6:]) < 24
    last = make_job(tmp_path, resume=resume, **settings)
    done = launched(last)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not bit-equal" not in done.stdout
    name = f"mask_model/checkpoints/{read_job(last).mlflow_run_id[:8]}-000024"
    for file, data in expected.items():
        assert store.read(f"{name}/{file}") == data, file
    assert json.loads(store.read("mask_model/model.json"))["sha256"] == weights


def after_steps(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if line.startswith("step "))


@pytest.mark.slow
def test_resuming_with_other_devices_and_settings_logs_the_differences(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 13, "dev": 5})
    job = make_job(tmp_path, train__max_steps=4)
    run(job)
    resume = f"mask_model/checkpoints/{read_job(job).mlflow_run_id[:8]}-000002"
    done = launched(make_job(tmp_path, resume=resume, train__max_steps=4, train__clip_norm=2.0), 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "not bit-equal to an uninterrupted run: the checkpoint is from 1 devices, training continues on 2"
        in done.stdout
    )
    assert "train.clip_norm was 1.0, is 2.0" in done.stdout
    assert store.exists("mask_model/model.safetensors")


def test_checkpoint_of_another_architecture_is_an_error(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    job = make_job(tmp_path)
    run(job)
    resume = f"mask_model/checkpoints/{read_job(job).mlflow_run_id[:8]}-000002"
    with pytest.raises(checkpoint.CheckpointError, match=r"has another architecture: .* `model` section"):
        run(make_job(tmp_path, resume=resume, train__max_steps=8, model__decoder_channels=[16, 16, 16, 8]))
    with pytest.raises(checkpoint.CheckpointError, match=r"does not fit the network or train.optimizer"):
        run(make_job(tmp_path, resume=resume, train__max_steps=8, train__optimizer="sgd"))


def test_micro_batches_give_the_gradient_of_the_batch(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    store = open_store(str(tmp_path))
    torch.manual_seed(0)
    settings = profile()
    net = MaskNet(settings.model).eval()  # in training mode BatchNorm statistics would differ
    with open_split(store, "train") as split:
        batch = next(iter(data_loader(TrainingSet(split, 32), [[(0, i) for i in range(8)]], 0)))
    gradients = []
    for count in (1, 4):
        net.zero_grad()
        for part in batch.micro_batches(count):
            losses = mask_loss(net(part.images, part.texts), part.mask / 255, part.valid)
            ((losses * part.weights).sum() / 8).backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)


def test_ema_is_applied_and_exported_and_the_weights_are_restored(tmp_path: Path) -> None:
    net = MaskNet(profile().model)
    ema = EMA(net, 0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema.update(100)
    with ema.applied():
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter, before[name] - 0.5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    store = make_dataset(tmp_path)
    job, result, _ = run(make_job(tmp_path, train__ema_decay=0.9))
    name = f"mask_model/checkpoints/{job.mlflow_run_id[:8]}"
    state = json.loads(store.read(f"{name}-best/state.json"))
    last = load(store.read(f"{name}-000004/average.safetensors"))
    if state["step"] == 4:
        exported = load(store.read("mask_model/model.safetensors"))
        assert all(torch.equal(exported[key], value) for key, value in last.items())
    assert result["summary"]["best_step"] == state["step"]


def test_sample_weights_follow_the_profile() -> None:
    whole = {"mask": {"is_global": True, "confidence": 0.5}}
    local = {"mask": {"is_global": False, "confidence": 0.5}}
    plain = profile().train
    assert training_run.sample_weight(plain, whole) == training_run.sample_weight(plain, local) == 1
    chosen = profile(train__global_weight=0.2, train__weigh_confidence=True).train
    assert training_run.sample_weight(chosen, whole) == pytest.approx(0.1)
    assert training_run.sample_weight(chosen, local) == pytest.approx(0.5)


def test_training_split_without_local_edits_is_an_error(tmp_path: Path) -> None:
    make_dataset(tmp_path, mask_meta={"is_global": True})
    with pytest.raises(TrainingError, match="all 24 training samples are whole-image edits"):
        run(make_job(tmp_path))
    with pytest.raises(TrainingError, match=r"no training sample is left: .*train.include_global"):
        run(make_job(tmp_path, train__include_global=False))


def test_out_of_memory_error_names_the_settings_to_lower(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    job = make_job(tmp_path, train__side_px=256, train__batch_size=512)
    limit = 6 * 2**30
    done = launched(job, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 1
    assert (
        "out of memory on the cpu with 512 samples of 256 px at once: raise train.accumulate" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "out of memory" in str(read_failure(job))
