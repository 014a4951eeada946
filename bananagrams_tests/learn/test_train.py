"""Training from data to registry, in this process and in others."""

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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from bananagrams_assets.learn import checkpoint, evaluate, launch, predict, registry, train
from bananagrams_assets.learn.dataset import Batch, DatasetError, TrainingSet, loader, open_split
from bananagrams_assets.learn.distributed import Job, Place, TrainingError, read_job
from bananagrams_assets.learn.losses import mask_loss
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.optimizer import Average, rate_factor, total_steps
from bananagrams_assets.storage.open_store import open_store

from .tiny import HALVES, HEIGHT, WIDTH, make_dataset, profile

HERE = Place(0, 1, torch.device("cpu"))
# Enough steps at 32 px to tell the four halves apart.
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
    """A job file for the dataset in `folder`, its MLflow run started as the caller of a training does."""
    settings = profile(**overrides)
    uri = launch.default_tracking_uri(str(folder))
    run_id, _ = registry.start_run(uri, settings, {"dagster_run_id": "d-1"})
    tags = {"dagster_run_id": "d-1"}
    return launch.write_job(folder / f"{run_id}.json", settings, str(folder), uri, run_id, resume, tags)


def run(job: Path) -> tuple[Job, dict[str, Any], list[str]]:
    lines: list[str] = []
    read = read_job(job)
    result = train.train(read, HERE, lines.append)
    assert result is not None
    return read, result, lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("trained")
    make_dataset(folder)
    torch.set_num_threads(1)
    return run(make_job(folder, **LEARNS))


def test_training_beats_the_trivial_masks_and_reads_its_words(trained: Any) -> None:
    _, result, _ = trained
    summary = result["summary"]
    assert summary["dev_iou"] > max(summary["baselines"].values()) + 0.1
    assert summary["shuffled_iou"] < summary["dev_iou"] - 0.15
    assert summary["test_iou"] > 0.55


def test_log_lines_tell_loss_and_dev_iou_beside_the_baselines(trained: Any) -> None:
    _, _, lines = trained
    live = [line for line in lines if line.startswith("step ")]
    assert len(live) == 3
    for line in live:
        assert "loss" in line
        assert "dev mean IoU" in line
        assert "full mask 0.500" in line
        assert line.endswith("it/s")


def test_the_store_holds_weights_and_their_description(trained: Any) -> None:
    job, result, _ = trained
    store = open_store(job.store)
    assert json.loads(store.read("mask_model/model.json")) == result
    weights = load(store.read("mask_model/model.safetensors"))
    assert "image.stem.0.weight" in weights
    assert set(result["dataset"]) == {"train", "dev", "test"}
    assert result["metrics"]["dev"]["by_scope"]["local"]["samples"] == 8


def test_mlflow_holds_parameters_metrics_images_and_the_challenger(trained: Any) -> None:
    job, result, _ = trained
    import mlflow

    client = mlflow.MlflowClient(job.tracking_uri)
    found = client.get_run(job.mlflow_run_id)
    assert found.data.params["train.side_px"] == "32"
    assert found.data.metrics["dev_mean_iou"] == pytest.approx(result["summary"]["dev_iou"])
    assert len(client.get_metric_history(job.mlflow_run_id, "loss")) == 3
    names = {item.path for item in client.list_artifacts(job.mlflow_run_id)}
    assert {"curves.png", "dev_predictions.png", "metrics.json"} <= names
    version = client.get_model_version_by_alias("bananagrams-mask", "challenger")
    assert str(version.version) == result["version"]
    assert version.tags["dagster_run_id"] == "d-1"
    assert found.info.artifact_uri.startswith(Path(job.store).as_uri())


def test_the_champion_predicts_in_another_process(trained: Any, tmp_path: Path) -> None:
    job, result, _ = trained
    promotion = registry.promote(job.tracking_uri, job.profile, result["version"])
    assert promotion.moved, promotion.reason
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
    predictor = registry.load(job.tracking_uri, job.profile)
    here = predict.predict(predictor, [image], ["Tint the left half."])[0]
    assert here.dtype == np.float32
    assert np.array_equal(here >= predictor.threshold, mask == 255)


def test_a_registered_model_is_scored_as_it_was_at_the_end_of_training(trained: Any) -> None:
    job, result, _ = trained
    predictor = registry.load(job.tracking_uri, job.profile, result["version"])
    again = evaluate.evaluate(predictor, open_store(job.store), job.profile, "dev")
    assert again["model"]["mean_iou"] == pytest.approx(result["summary"]["dev_iou"], abs=1e-6)
    assert again["baselines"] == result["summary"]["baselines"]


def test_models_are_compared_by_the_scores_that_are_reported(trained: Any) -> None:
    job, result, _ = trained
    own, _ = registry.scored_samples(job.tracking_uri, job.profile, result["version"])
    assert own is not None
    assert result["threshold"] != predict.THRESHOLD  # or scores at the wrong one would be the same
    assert own.mean() == pytest.approx(result["summary"]["test_iou"], abs=1e-6)


def test_a_resumed_run_ends_bit_by_bit_where_a_whole_one_does(tmp_path: Path) -> None:
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
    with pytest.raises(TrainingError, match="has had all its 4 steps"):
        run(make_job(tmp_path, resume=f"{name}-000004", train__max_steps=4, model__fusion__dropout=0.1))


def test_a_loss_that_is_no_number_stops_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    monkeypatch.setattr(train, "mask_loss", lambda logits, *others: logits.mean((1, 2, 3)) * float("nan"))
    with pytest.raises(TrainingError, match=r"loss of step 1 is nan: .*train-0\d\d 'Tint the \w+ half\.'"):
        run(make_job(tmp_path))


def test_check_finite_lets_numbers_pass() -> None:
    empty = torch.zeros(1, 1, 1, 1)
    train.check_finite(torch.tensor(1.0), Batch(["k"], ["t"], empty, empty, empty, empty), 1)


def test_nothing_to_train_on_is_said_at_once(tmp_path: Path) -> None:
    make_dataset(tmp_path, {"train": 0, "dev": 8})
    with pytest.raises(DatasetError, match="'train' holds no samples"):
        run(make_job(tmp_path))
    make_dataset(tmp_path, {"train": 8, "dev": 8})
    with pytest.raises(TrainingError, match="no training sample is left"):
        run(make_job(tmp_path, train__min_confidence=0.99))


def test_sigterm_leaves_a_checkpoint_and_a_nonzero_exit(tmp_path: Path) -> None:
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


def test_two_processes_train_together_on_an_odd_dataset(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 13, "dev": 5})
    job = make_job(tmp_path, train__max_steps=3, train__batch_size=4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        launch.command(job, 2), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x cpu" in done.stdout
    assert "not scored on test" in done.stdout
    assert store.exists("mask_model/model.safetensors")


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    with pytest.raises(
        TrainingError, match=r"batch_size 8 must be a multiple of the 3 devices times train.accumulate 1"
    ):
        train.train(read_job(make_job(tmp_path)), Place(0, 3, torch.device("cpu")), print)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_then_follows_its_schedule(scheduler: str) -> None:
    settings = profile(train__warmup_steps=10, train__scheduler=scheduler).train
    rates = [rate_factor(step, 100, settings) for step in range(100)]
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert rates[10] == pytest.approx(1)
    assert max(rates) <= 1
    assert rates[-1] == (1 if scheduler == "constant" else pytest.approx(0, abs=0.02))


def test_steps_cover_the_epochs_unless_limited() -> None:
    assert total_steps(33, profile(train__epochs=2, train__max_steps=None).train) == 9
    assert total_steps(33, profile(train__epochs=2).train) == 4


def losses_of(job: Path) -> list[float]:
    read = read_job(job)
    import mlflow

    history = mlflow.MlflowClient(read.tracking_uri).get_metric_history(read.mlflow_run_id, "loss")
    return [point.value for point in sorted(history, key=lambda point: point.step)]


def launched(job: Path, processes: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    command = (
        launch.command(job, processes)
        if processes > 1
        else [sys.executable, "-m", "bananagrams_assets.learn.train", "--job", str(job)]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


TOGETHER: dict[str, Any] = {"train__max_steps": 200, "train__epochs": 200, "train__log_every_steps": 1,
                            "train__evaluate_every_steps": 200,
                            "train__checkpoint_every_steps": 200,
                            "train__learning_rate": 3e-4, "train__encoder_rate": 0.1,
                            "train__warmup_steps": 100, "train__beta2": 0.999,
                            "train__side_px": 64}  # fmt: skip


@pytest.mark.slow
def test_two_processes_compute_what_one_does_with_the_same_batch(tmp_path: Path) -> None:
    # 13 samples in shards of 6 and 7, so that the processes' shares are uneven in every epoch. The default
    # rates, with a warm-up: Adam divides by the size of a gradient, and where that is zero but for rounding,
    # steps by the rounding, so that without one processes are apart within a few steps.
    make_dataset(tmp_path, {"train": 13, "dev": 5})
    jobs = [make_job(tmp_path, **TOGETHER) for _ in range(2)]
    for job, processes in zip(jobs, (1, 2), strict=True):
        done = launched(job, processes)
        assert done.returncode == 0, done.stderr[-2000:]
    alone, together = map(losses_of, jobs)
    assert len(alone) == 200
    apart = [abs(a - b) for a, b in zip(alone[:20], together[:20], strict=True)]
    assert apart[0] < 1e-6
    assert max(apart) < 1e-4, apart


KILLED: dict[str, Any] = {"train__max_steps": 24, "train__epochs": 20, "train__log_every_steps": 1,
                          "train__evaluate_every_steps": 7, "train__checkpoint_every_steps": 3,
                          "train__ema_decay": 0.9, "train__accumulate": 2,
                          "model__fusion__dropout": 0.1}  # fmt: skip
TOWER: dict[str, Any] = {"model__text_encoder": "ViT-S-32-alt", "model__text_weights": "none"}


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "lives"), [({}, (5, 11)), (TOWER, (8,))])
def test_a_killed_run_resumed_ends_with_the_same_bits(
    tmp_path: Path, encoder: dict[str, Any], lives: tuple[int, ...]
) -> None:
    store = make_dataset(tmp_path)
    settings = {**KILLED, **encoder}
    whole = make_job(tmp_path, **settings)
    assert launched(whole).returncode == 0
    weights = json.loads(store.read("mask_model/model.json"))["sha256"]
    name = f"mask_model/checkpoints/{read_job(whole).mlflow_run_id[:8]}-000024"
    expected = {file: store.read(f"{name}/{file}") for file in checkpoint.FILES}

    resume = None
    for steps_lived in lives:  # killed after so many steps, then resumed from what was left
        job = make_job(tmp_path, resume=resume, **settings)
        command = [sys.executable, "-m", "bananagrams_assets.learn.train", "--job", str(job)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            lines = [line for line, _ in zip(after_steps(process.stdout), range(steps_lived), strict=False)]
            assert lines
            process.kill()
        resume = launch.last_checkpoint(store, read_job(job).mlflow_run_id)
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
def test_a_run_goes_on_with_other_devices_and_settings_and_says_that_bits_differ(tmp_path: Path) -> None:
    store = make_dataset(tmp_path, {"train": 13, "dev": 5})
    job = make_job(tmp_path, train__max_steps=4)
    run(job)
    resume = f"mask_model/checkpoints/{read_job(job).mlflow_run_id[:8]}-000002"
    done = launched(make_job(tmp_path, resume=resume, train__max_steps=4, train__clip_norm=2.0), 2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "not bit-equal to a run without interruption: 1 devices wrote the checkpoint, 2 go on" in done.stdout
    )
    assert "train.clip_norm was 1.0, is 2.0" in done.stdout
    assert store.exists("mask_model/model.safetensors")


def test_a_checkpoint_of_another_architecture_is_refused_before_training(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    job = make_job(tmp_path)
    run(job)
    resume = f"mask_model/checkpoints/{read_job(job).mlflow_run_id[:8]}-000002"
    with pytest.raises(checkpoint.CheckpointError, match=r"is of another architecture: .* `model` section"):
        run(make_job(tmp_path, resume=resume, train__max_steps=8, model__decoder_channels=[16, 16, 16, 8]))
    with pytest.raises(checkpoint.CheckpointError, match=r"does not fit the network or train.optimizer"):
        run(make_job(tmp_path, resume=resume, train__max_steps=8, train__optimizer="sgd"))


def test_parts_of_a_step_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    store = open_store(str(tmp_path))
    torch.manual_seed(0)
    settings = profile()
    net = MaskNet(settings.model).eval()  # batch statistics differ by part
    with open_split(store, "train") as split:
        batch = next(iter(loader(TrainingSet(split, 32), [[(0, i) for i in range(8)]], 0)))
    gradients = []
    for count in (1, 4):
        net.zero_grad()
        for part in batch.parts(count):
            each = mask_loss(net(part.images, part.texts), part.mask / 255, part.known)
            ((each * part.weights).sum() / 8).backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)


def test_the_average_is_evaluated_and_exported_and_the_weights_stay(tmp_path: Path) -> None:
    net = MaskNet(profile().model)
    average = Average(net, 0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    average.update(100)
    with average.applied():
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


def test_weights_in_the_loss_follow_the_profile() -> None:
    whole = {"mask": {"is_global": True, "confidence": 0.5}}
    local = {"mask": {"is_global": False, "confidence": 0.5}}
    plain = profile().train
    assert train.sample_weight(plain, whole) == train.sample_weight(plain, local) == 1
    chosen = profile(train__global_weight=0.2, train__weigh_confidence=True).train
    assert train.sample_weight(chosen, whole) == pytest.approx(0.1)
    assert train.sample_weight(chosen, local) == pytest.approx(0.5)


def test_a_split_of_whole_image_edits_alone_is_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, every={"is_global": True})
    with pytest.raises(TrainingError, match="all 24 training samples are whole-picture edits"):
        run(make_job(tmp_path))
    with pytest.raises(TrainingError, match=r"no training sample is left: .*train.include_global"):
        run(make_job(tmp_path, train__include_global=False))


def test_too_large_a_step_says_what_to_lower(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    job = make_job(tmp_path, train__side_px=256, train__batch_size=512)
    limit = 6 * 2**30
    done = launched(job, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 1
    assert (
        "out of memory on the cpu with 512 samples of 256 px at once: raise train.accumulate" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "out of memory" in str(launch.read_failure(job))
