"""MLflow runs, registry look-ups and the promotion rules, without loading a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.learn import registry, tracking
from bananagrams_assets.learn.comparison import SampleIoUs
from bananagrams_assets.learn.promotion import promote, restore_previous
from bananagrams_assets.learn.registry import RegistryError

from .tiny import profile


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/missing folder/mlflow.db"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Profile:
    """Return a profile with a separate registered model per test."""
    return profile(mlflow__registered_model=request.node.name.replace("[", "-").strip("]"))


def samples(mean: float, dataset: str = "d1", photos: int = 40, seed: int = 0) -> SampleIoUs:
    """Return IoUs around `mean` of two samples per photo; photo difficulty is the same for all models."""
    hardness = np.random.default_rng(7).normal(0, 0.1, photos)
    noise = np.random.default_rng(seed).normal(0, 0.01, (photos, 2))
    ious = {
        f"s-{i:03d}-{j}": (f"photo-{i}", float(np.clip(mean + hardness[i] + noise[i, j], 0, 1)))
        for i in range(photos)
        for j in range(2)
    }
    return SampleIoUs("test", dataset, ious)


def add(
    uri: str, settings: Profile, score: float | str, own: SampleIoUs | None = None,
    champion: SampleIoUs | None = None, **tags: str,
) -> str:  # fmt: skip
    """Register a version with these scores, like a training does."""
    import mlflow

    run_id, _ = tracking.start_run(uri, settings, {})
    client = mlflow.MlflowClient(uri)
    name = settings.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    log = tracking.RunLog(uri, run_id)
    for file, ious in ((registry.OWN_IOUS, own), (registry.CHAMPION_IOUS, champion)):
        if ious:
            log.file(file, json.dumps(asdict(ious)).encode())
    version_tags = {"dev_iou": str(score), "baseline_iou": "0.3", "shuffled_iou": "0.1", **tags}
    source = client.get_run(run_id).info.artifact_uri
    return str(client.create_model_version(name, source, run_id, tags=version_tags).version)


def tags_of(uri: str, settings: Profile, version: str) -> dict[str, Any]:
    import mlflow

    return dict(mlflow.MlflowClient(uri).get_model_version(settings.mlflow.registered_model, version).tags)


def test_artifacts_are_stored_next_to_the_database_and_a_run_ends_once(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, url = tracking.start_run(uri, settings, {"dagster_run_id": "d-1"})
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert url == f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run_id}"
    assert run.data.tags["dagster_run_id"] == "d-1"
    folder = Path(uri.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "mlflow-artifacts").as_uri())
    tracking.end_run(uri, run_id, "FAILED")
    tracking.end_run(uri, run_id, "FINISHED")
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FAILED"


def test_connecting_does_not_set_the_tracking_uri_variable(
    uri: str, settings: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.start_run(uri, settings, {})
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    tracking.start_run(uri, settings, {})
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere"


def test_a_missing_champion_or_version_raises_with_a_remedy(uri: str, settings: Profile) -> None:
    with pytest.raises(RegistryError, match=r"no champion yet: .*`bananagrams train`"):
        registry.download_model(uri, settings)
    with pytest.raises(RegistryError, match=r"no version or alias '7'"):
        registry.download_model(uri, settings, "7")
    with pytest.raises(RegistryError, match=r"no version or alias 'challenger'"):
        registry.download_model(uri, settings, "challenger")


def test_a_model_below_its_baselines_is_not_promoted(uri: str, settings: Profile) -> None:
    promotion = promote(uri, settings, add(uri, settings, 0.31))
    assert not promotion.changed
    assert promotion.champion_version is None
    assert "dev IoU 0.310, needed 0.300 (best trivial mask) + 0.02" in promotion.reason
    assert registry.find_version(uri, settings, "champion") is None


def test_a_model_that_ignores_its_instructions_is_not_promoted(uri: str, settings: Profile) -> None:
    promotion = promote(uri, settings, add(uri, settings, 0.4, shuffled_iou="0.39"))
    assert not promotion.changed
    assert "dev IoU 0.400, needed 0.390 (same model, shuffled instructions) + 0.02" in promotion.reason
    assert registry.find_version(uri, settings, "champion") is None


def test_a_significant_gain_promotes_the_challenger(uri: str, settings: Profile) -> None:
    first = add(uri, settings, 0.5, samples(0.5))
    second = add(uri, settings, 0.6, samples(0.6, seed=1))
    assert promote(uri, settings, first).changed
    promotion = promote(uri, settings, int(second))
    assert (promotion.changed, promotion.champion_version, promotion.previous_version) == (
        True,
        second,
        first,
    )
    assert promotion.gain is not None
    assert 0.09 < promotion.gain.low < 0.1 < promotion.gain.high < 0.11
    assert promotion.reason.startswith("version 2 is the champion: test mean IoU 0.")
    assert "over 40 photographs" in promotion.reason
    assert registry.find_version(uri, settings, "champion") == second
    assert registry.find_version(uri, settings, "previous") == first
    assert tags_of(uri, settings, second)["decision"] == promotion.reason
    assert tags_of(uri, settings, second)["gain_interval"].startswith("0.09")


def test_an_insignificant_gain_promotes_nothing_and_is_recorded(uri: str, settings: Profile) -> None:
    champion = add(uri, settings, 0.5, samples(0.5))
    assert promote(uri, settings, champion).changed
    for mean, dev_iou in ((0.5001, 0.9), (0.4, 0.9)):  # better by dev IoU alone
        version = add(uri, settings, dev_iou, samples(mean, seed=2))
        result = promote(uri, settings, version)
        assert (result.changed, result.champion_version) == (False, champion)
        assert result.reason.endswith("not above zero")
        assert tags_of(uri, settings, version)["decision"] == result.reason


def test_restoring_the_previous_champion_withdraws_the_current_one(uri: str, settings: Profile) -> None:
    first, second = add(uri, settings, 0.5, samples(0.5)), add(uri, settings, 0.6, samples(0.6))
    promote(uri, settings, first)
    with pytest.raises(RegistryError, match="no previous champion to restore"):
        restore_previous(uri, settings)
    promote(uri, settings, second)
    restored = restore_previous(uri, settings)
    assert (restored.champion_version, restored.previous_version) == (first, second)
    assert registry.find_version(uri, settings, "champion") == first
    again = promote(uri, settings, second)
    assert not again.changed
    assert "it was withdrawn at" in again.reason
    restored = restore_previous(uri, settings)
    assert (restored.champion_version, restored.previous_version) == (second, first)
    assert "withdrawn" not in tags_of(uri, settings, second)


def test_the_champion_is_not_promoted_twice(uri: str, settings: Profile) -> None:
    version = add(uri, settings, 0.5)
    assert promote(uri, settings, version).changed
    again = promote(uri, settings, version)
    assert not again.changed
    assert again.reason == "version 1 is already the champion"


def test_ious_on_different_samples_are_not_compared(uri: str, settings: Profile) -> None:
    old = add(uri, settings, 0.9, samples(0.5))
    assert promote(uri, settings, old).changed
    unknown = promote(uri, settings, add(uri, settings, 0.6, samples(0.6, "d2")))
    assert not unknown.changed
    assert "was not scored on these samples" in unknown.reason
    other_champion = add(uri, settings, 0.6, samples(0.6, "d2"), samples(0.5, "d2"), champion_version="77")
    assert not promote(uri, settings, other_champion).changed
    scored = add(uri, settings, 0.6, samples(0.6, "d2"), samples(0.5, "d2"), champion_version=old)
    assert promote(uri, settings, scored).changed


def test_metrics_are_queued_while_the_server_is_unreachable(
    uri: str, settings: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    run_id, _ = tracking.start_run(uri, settings, {})
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    real = mlflow.MlflowClient.log_batch
    with tracking.RunLog(uri, run_id) as log:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *args, **kwargs: 1 / 0)
        log.metrics({"loss": 1.0}, 1)
        log.metrics({"loss": 0.5}, 2)
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", real)
    assert "2 values are queued" in capsys.readouterr().out
    history = mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]


def test_a_deleted_run_is_not_reopened(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, url = tracking.start_run(uri, settings, {})
    tracking.end_run(uri, run_id, "FAILED")
    assert tracking.reopen_run(uri, settings, run_id) == url
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "RUNNING"
    mlflow.MlflowClient(uri).delete_run(run_id)
    assert tracking.reopen_run(uri, settings, run_id) is None
    assert tracking.reopen_run(uri, settings, "0" * 32) is None


def test_a_run_is_tagged_with_the_git_commit(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, _ = tracking.start_run(uri, settings, {})
    tags = mlflow.MlflowClient(uri).get_run(run_id).data.tags
    folder = Path(tracking.__file__).parent
    head = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert tags.get("mlflow.source.git.commit") == (head.stdout.strip() or None)
    assert tags["bananagrams_version"]


def test_promoting_a_missing_or_foreign_version_raises(uri: str, settings: Profile) -> None:
    version = add(uri, settings, "")
    with pytest.raises(RegistryError, match="lacks the tags dev_iou, baseline_iou and shuffled_iou"):
        promote(uri, settings, version)
    with pytest.raises(RegistryError, match="has no version 99"):
        promote(uri, settings, 99)


def test_importing_the_registry_loads_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, bananagrams_assets.learn.registry\n"
        "print(sorted({'torch', 'torchvision', 'open_clip', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
