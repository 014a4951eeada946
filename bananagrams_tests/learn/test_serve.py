"""The registered model: loaded by name, through MLflow without Dagster, and served over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
import torch
from PIL import Image

from bananagrams_assets.config import Profile
from bananagrams_assets.learn import registry, tracking
from bananagrams_assets.learn.dataset import open_split
from bananagrams_assets.learn.job_file import TrainingJob
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.predict import encode_soft, load_model, make_predictor, predict_file
from bananagrams_assets.learn.publish import publish
from bananagrams_assets.vision.images import encode_png_mask

from .tiny import make_dataset, profile

INSTRUCTION = "Tint the left half."


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, str, Path]:
    """Publish an untrained network and make it champion; return settings, tracking URI and an image file."""
    folder = tmp_path_factory.mktemp("published")
    settings = profile(store__url=str(folder / "store"))
    store = make_dataset(folder / "store")
    uri = tracking.default_tracking_uri(store.url)
    run_id, _ = tracking.start_run(uri, settings, {})
    document, tags = settings.model_dump(mode="json"), {"dagster_run_id": "d-1"}
    job = TrainingJob(settings, document, store.url, uri, run_id, None, tags)
    torch.manual_seed(1)
    net = MaskNet(settings.model, fetch=False)
    with open_split(store, "train") as train, open_split(store, "dev") as dev:
        log = tracking.RunLog(uri, run_id)
        facts = {"steps": 4, "best_step": 4, "seconds": 1.0}
        content = publish(job, store, net, train, dev, facts, log, print)
    client = mlflow.MlflowClient(uri)
    client.set_registered_model_alias("bananagrams-mask", "champion", content["version"])
    pixels = np.random.default_rng(0).integers(0, 255, (75, 130, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "cat.jpg", exif=exif.tobytes())
    return settings, uri, folder / "cat.jpg"


def test_a_version_has_a_card_dataset_digests_and_an_input_example(published: Any) -> None:
    _, uri, _ = published
    client = mlflow.MlflowClient(uri)
    version = client.get_model_version_by_alias("bananagrams-mask", "challenger")
    assert version.description is not None
    assert "## Limits" in version.description
    assert "| dev | 8 | unknown |" in version.description
    assert "resnet10" in version.description
    run = client.get_run(str(version.run_id))
    assert run.inputs is not None
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"test"}
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"card.md", "metrics.json", "samples.json", "dev_predictions.png"} <= names
    assert {
        "dagster_run_id",
        "dev_iou",
        "dataset_train",
        "dataset_dev",
        "dataset_test",
    } <= version.tags.keys()
    info = mlflow.models.get_model_info("models:/bananagrams-mask@champion")
    assert [column.name for column in info.signature.inputs.inputs] == ["image", "instruction"]
    assert {parameter.name for parameter in info.signature.params} == {"threshold", "soft"}
    assert info.saved_input_example_info is not None


def test_the_champion_loads_by_alias_version_and_uri_without_dagster(published: Any) -> None:
    settings, uri, photo = published
    expected = predict_file(load_model("champion", settings), photo, INSTRUCTION)
    assert expected.shape == (130, 75)
    for name in ("1", "models:/bananagrams-mask@challenger", "models:/bananagrams-mask/1"):
        assert np.array_equal(predict_file(load_model(name, settings), photo, INSTRUCTION), expected)
    with pytest.raises(registry.RegistryError, match="expected models:/NAME@ALIAS"):
        load_model("models:/bananagrams-mask", settings)
    program = f"""
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/bananagrams-mask@champion")
rows = pd.DataFrame({{"image": [open({str(photo)!r}, "rb").read()], "instruction": [{INSTRUCTION!r}]}})
data = model.predict(rows, params={{"soft": True}})["mask"][0]
print(data.hex(), sorted({{"dagster", "boto3", "webdataset"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True,
                          check=False, cwd=photo.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    data, _, modules = done.stdout.strip().partition(" ")
    assert modules == "[]"
    assert bytes.fromhex(data) == encode_soft(expected)


@pytest.fixture(scope="module")
def server(published: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `mlflow models serve` for the champion; yield its URL."""
    _, uri, _ = published
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/bananagrams-mask@champion",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PATH": path}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
        try:
            for _ in range(600):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                try:
                    if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.2)
            else:
                raise AssertionError((folder / "log").read_text()[-3000:])
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def request(server: str, image: bytes, **params: Any) -> requests.Response:
    row = {"image": base64.b64encode(image).decode(), "instruction": INSTRUCTION}
    return requests.post(server, json={"dataframe_records": [row], "params": params}, timeout=120)


@pytest.mark.slow
def test_the_server_returns_the_mask_of_an_image_and_an_instruction(server: str, published: Any) -> None:
    settings, _, photo = published
    model = load_model("champion", settings)
    probability = predict_file(model, photo, INSTRUCTION)
    threshold = float(np.median(probability))
    for params, expected in (
        ({}, encode_png_mask(probability >= model.threshold, one_bit=False)),
        ({"threshold": threshold}, encode_png_mask(probability >= threshold, one_bit=False)),
        ({"soft": True}, encode_soft(probability)),
    ):
        response = request(server, photo.read_bytes(), **params)
        assert response.ok, response.text
        mask = base64.b64decode(response.json()["predictions"][0]["mask"])
        found, wanted = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (mask, expected))
        assert found.shape == (130, 75)
        # Another process may sum floats in another order, which can flip pixels at the threshold.
        assert (np.abs(found - wanted) > 1).mean() < 0.001


@pytest.mark.slow
def test_the_server_rejects_an_invalid_image_and_keeps_running(server: str, published: Any) -> None:
    response = request(server, b"<html>not an image</html>")
    assert response.status_code == 400
    assert "row 0: image: not a picture" in json.dumps(response.json())
    assert request(server, published[2].read_bytes()).ok


def test_a_predictor_uses_the_threshold_from_its_description() -> None:
    net = MaskNet(profile().model, fetch=False)
    assert make_predictor(net, 32, "cpu").threshold == 0.5
    assert make_predictor(net, 32, "cpu", {"threshold": 0.25}).threshold == 0.25
