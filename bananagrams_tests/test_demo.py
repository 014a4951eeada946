"""The demo end to end with a short training: dataset, model, registry, lineage and predictions."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import VARIABLES

# A model trained on fewer than 480 pairs does not beat the trivial baselines and is not promoted.
SHORT = [
    *("--set", "source.sample.pairs=480"),
    *("--set", "train.max_steps=150", "--set", "train.evaluate_every_steps=50"),
    *("--set", "train.warmup_steps=20"),
]


@dataclass
class Demo:
    """A finished demo: its DAGSTER_HOME and its output."""

    home: Path
    output: str

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same DAGSTER_HOME."""
        return run(self.home, *arguments, **variables)


def run(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "bananagrams_assets.cli", *arguments],
        capture_output=True, text=True, check=False, timeout=900,
        env={**environment, "DAGSTER_HOME": str(home), **variables},
    )  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    home = tmp_path_factory.mktemp("demo")
    process = run(home, "demo", *SHORT)
    assert process.returncode == 0, (process.stdout[-3000:], process.stderr[-6000:])
    return Demo(home, process.stdout)


def test_the_output_lists_locations_and_the_score_of_the_model(demo: Demo) -> None:
    for part in (
        "shards/train",
        "index.html",
        "models:/bananagrams-mask/1",
        "dev IoU",
        "full mask",
        "mlflow ui",
    ):
        assert part in demo.output
    assert (demo.home / "store" / "overlays" / "train-00000" / "index.html").is_file()


def test_training_logs_loss_and_dev_iou(demo: Demo) -> None:
    lines = [line for line in demo.output.splitlines() if line.startswith("step ")]
    assert any("loss" in line and "dev mean IoU" in line for line in lines)


def test_a_second_demo_is_up_to_date(demo: Demo) -> None:
    again = demo.command("demo", *SHORT)
    assert again.returncode == 0
    assert again.stdout.count("everything is up to date") == 2


def test_a_changed_setting_rebuilds_only_the_stages_that_use_it(demo: Demo) -> None:
    store = demo.home / "store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.tar")}
    changed = demo.command("build", *SHORT, "--set", "mask.open_px=3")
    assert changed.returncode == 0, changed.stderr[-3000:]
    after = {path: path.stat().st_mtime_ns for path in store.rglob("*.tar")}
    rebuilt = {path.relative_to(store).parts[0] for path in after if after[path] != before[path]}
    assert rebuilt == {"edit_masks", "shards"}
    assert demo.command("build", *SHORT).returncode == 0


def test_the_dagster_instance_has_the_lineage(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    monkeypatch.setenv("DAGSTER_HOME", str(demo.home))
    with dg.DagsterInstance.get() as instance:
        for asset in ("manifest", "image_pairs", "shards", "split_index", "mask_model", "champion"):
            event = instance.get_latest_materialization_event(dg.AssetKey(asset))
            assert event is not None, asset
            assert event.asset_materialization is not None
            if asset == "mask_model":
                metadata = event.asset_materialization.metadata
                assert str(metadata["mlflow_run"].value).startswith("http")
                assert str(metadata["model_version"].value) == "1"
        logged = [
            record.event_log_entry.user_message
            for run_record in instance.get_run_records(dg.RunsFilter(job_name="train_model"))
            for record in instance.get_records_for_run(run_record.dagster_run.run_id).records
        ]
        assert any("dev mean IoU" in message for message in logged)


def test_another_process_loads_the_champion_from_the_registry(demo: Demo, tmp_path: Path) -> None:
    program = f"""
import io, mlflow, numpy as np, pandas as pd
from PIL import Image
mlflow.set_tracking_uri("sqlite:///{demo.home}/store/mlflow.db")
model = mlflow.pyfunc.load_model("models:/bananagrams-mask@champion")
image = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 130, 3), dtype=np.uint8)).save(image, "PNG")
table = pd.DataFrame({{"image": [image.getvalue()], "instruction": ["Write HELLO in the top left"]}})
mask = Image.open(io.BytesIO(model.predict(table)["mask"][0]))
print(mask.size, mask.mode)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.stdout.strip().endswith("(130, 75) L"), done.stderr[-3000:]


def test_predict_writes_a_mask_of_the_size_of_the_photo(demo: Demo, tmp_path: Path) -> None:
    photo = next((demo.home).glob("sample-*/photos/*.jpg"))
    done = demo.command(
        "predict", str(photo), "Turn the left half blue", "--output", str(tmp_path / "mask.png"),
        "--overlay", str(tmp_path / "overlay.jpg"), *SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    mask = Image.open(tmp_path / "mask.png")
    assert mask.size == Image.open(photo).size == Image.open(tmp_path / "overlay.jpg").size
    assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_evaluate_prints_metrics_and_baselines(demo: Demo) -> None:
    done = demo.command("evaluate", "--split", "test", *SHORT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "baselines.full" in done.stdout
    assert "mean_iou" in done.stdout


def test_pretrained_weights_without_a_network_name_the_three_choices(demo: Demo, tmp_path: Path) -> None:
    dead_proxy = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    done = demo.command(
        "train", "--rebuild", *SHORT, "--set", "model.image_encoder=resnet18",
        "--set", "model.image_weights=pretrained",
        TORCH_HOME=str(tmp_path), HF_HOME=str(tmp_path), **dead_proxy,
    )  # fmt: skip
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "model.image_weights" in error
    assert "none" in error
    assert "file" in error


def test_a_text_blind_model_is_rejected_and_the_champion_stays(demo: Demo) -> None:
    text_blind = ("--set", "train.augment.drop_words=1", "--set", "train.max_steps=20")
    done = demo.command("train", *SHORT, *text_blind)
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "refused by asset checks" in error
    assert "reads_instructions of mask_model: dev IoU" in error
    assert "with shuffled instructions" in error
    assert "version 1" in demo.command("champion", *SHORT).stdout
