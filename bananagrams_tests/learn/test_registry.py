"""The rules by which a version becomes champion, on a registry of its own; no model is loaded here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.learn import registry
from bananagrams_assets.learn.comparison import Scored
from bananagrams_assets.learn.registry import RegistryError

from .tiny import profile


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/not yet there/mlflow.db"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Profile:
    """A registered model of its own for each test."""
    return profile(mlflow__registered_model=request.node.name.replace("[", "-").strip("]"))


def samples(mean: float, dataset: str = "d1", photos: int = 40, seed: int = 0) -> Scored:
    """Two samples of each photograph, their IoUs about `mean`, the same photographs hard for all."""
    hardness = np.random.default_rng(7).normal(0, 0.1, photos)
    noise = np.random.default_rng(seed).normal(0, 0.01, (photos, 2))
    found = {
        f"s-{i:03d}-{j}": (f"photo-{i}", float(np.clip(mean + hardness[i] + noise[i, j], 0, 1)))
        for i in range(photos)
        for j in range(2)
    }
    return Scored("test", dataset, found)


def add(
    uri: str, settings: Profile, score: float | str, own: Scored | None = None, rival: Scored | None = None,
    **tags: str,
) -> str:  # fmt: skip
    """Register a version with these figures, as a training does."""
    import mlflow

    run_id, _ = registry.start_run(uri, settings, {})
    client = mlflow.MlflowClient(uri)
    name = settings.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    log = registry.RunLog(uri, run_id)
    for file, scored in ((registry.SAMPLES, own), (registry.CHAMPION_SAMPLES, rival)):
        if scored:
            log.file(file, json.dumps(scored.as_json()).encode())
    figures = {"dev_iou": str(score), "baseline_iou": "0.3", "shuffled_iou": "0.1", **tags}
    source = client.get_run(run_id).info.artifact_uri
    return str(client.create_model_version(name, source, run_id, tags=figures).version)


def tags_of(uri: str, settings: Profile, version: str) -> dict[str, Any]:
    import mlflow

    return dict(mlflow.MlflowClient(uri).get_model_version(settings.mlflow.registered_model, version).tags)


def test_a_run_is_started_beside_its_database_and_ends_once(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, url = registry.start_run(uri, settings, {"dagster_run_id": "d-1"})
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert url == f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run_id}"
    assert run.data.tags["dagster_run_id"] == "d-1"
    folder = Path(uri.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "mlflow-artifacts").as_uri())
    registry.end_run(uri, run_id, "FAILED")
    registry.end_run(uri, run_id, "FINISHED")
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FAILED"


def test_using_a_server_does_not_make_it_the_environments_choice(
    uri: str, settings: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry.start_run(uri, settings, {})
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    registry.start_run(uri, settings, {})
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://elsewhere"


def test_without_a_champion_loading_says_how_to_get_one(uri: str, settings: Profile) -> None:
    with pytest.raises(RegistryError, match=r"no champion yet: .*`bananagrams train`"):
        registry.load(uri, settings)
    with pytest.raises(RegistryError, match=r"no version or alias '7'"):
        registry.load(uri, settings, "7")
    with pytest.raises(RegistryError, match=r"no version or alias 'challenger'"):
        registry.load(uri, settings, "challenger")


def test_a_model_below_its_baselines_is_not_promoted(uri: str, settings: Profile) -> None:
    promotion = registry.promote(uri, settings, add(uri, settings, 0.31))
    assert not promotion.moved
    assert promotion.champion_version is None
    assert "dev IoU 0.310, needed 0.300 (best trivial) + 0.02" in promotion.reason
    assert registry.find(uri, settings, "champion") is None


def test_a_model_that_ignores_its_instructions_is_not_promoted(uri: str, settings: Profile) -> None:
    promotion = registry.promote(uri, settings, add(uri, settings, 0.4, shuffled_iou="0.39"))
    assert not promotion.moved
    assert "dev IoU 0.400, needed 0.390 (itself, with shuffled instructions) + 0.02" in promotion.reason
    assert registry.find(uri, settings, "champion") is None


def test_a_clear_gain_makes_the_challenger_champion_and_the_other_previous(
    uri: str, settings: Profile
) -> None:
    first = add(uri, settings, 0.5, samples(0.5))
    second = add(uri, settings, 0.6, samples(0.6, seed=1))
    assert registry.promote(uri, settings, first).moved
    promotion = registry.promote(uri, settings, int(second))
    assert (promotion.moved, promotion.champion_version, promotion.previous_version) == (True, second, first)
    assert promotion.gain is not None
    assert 0.09 < promotion.gain.low < 0.1 < promotion.gain.high < 0.11
    assert promotion.reason.startswith("version 2 is the champion: test mean IoU 0.")
    assert "over 40 photographs" in promotion.reason
    assert registry.find(uri, settings, "champion") == second
    assert registry.find(uri, settings, "previous") == first
    assert tags_of(uri, settings, second)["decision"] == promotion.reason
    assert tags_of(uri, settings, second)["gain_interval"].startswith("0.09")


def test_a_gain_within_its_interval_moves_nothing_and_says_so_on_the_version(
    uri: str, settings: Profile
) -> None:
    champion = add(uri, settings, 0.5, samples(0.5))
    assert registry.promote(uri, settings, champion).moved
    for mean, dev_iou in ((0.5001, 0.9), (0.4, 0.9)):  # by dev alone it would be the better one
        version = add(uri, settings, dev_iou, samples(mean, seed=2))
        refused = registry.promote(uri, settings, version)
        assert (refused.moved, refused.champion_version) == (False, champion)
        assert refused.reason.endswith("not above zero")
        assert tags_of(uri, settings, version)["decision"] == refused.reason


def test_the_way_back_restores_the_previous_champion_and_keeps_the_other_out(
    uri: str, settings: Profile
) -> None:
    first, second = add(uri, settings, 0.5, samples(0.5)), add(uri, settings, 0.6, samples(0.6))
    registry.promote(uri, settings, first)
    with pytest.raises(RegistryError, match="no previous champion to go back to"):
        registry.go_back(uri, settings)
    registry.promote(uri, settings, second)
    back = registry.go_back(uri, settings)
    assert (back.champion_version, back.previous_version) == (first, second)
    assert registry.find(uri, settings, "champion") == first
    again = registry.promote(uri, settings, second)
    assert not again.moved
    assert "it was taken back at" in again.reason
    forth = registry.go_back(uri, settings)
    assert (forth.champion_version, forth.previous_version) == (second, first)
    assert "withdrawn" not in tags_of(uri, settings, second)


def test_the_champion_is_not_promoted_twice(uri: str, settings: Profile) -> None:
    version = add(uri, settings, 0.5)
    assert registry.promote(uri, settings, version).moved
    again = registry.promote(uri, settings, version)
    assert not again.moved
    assert again.reason == "version 1 is the champion already"


def test_scores_on_different_samples_are_never_compared(uri: str, settings: Profile) -> None:
    old = add(uri, settings, 0.9, samples(0.5))
    assert registry.promote(uri, settings, old).moved
    unknown = registry.promote(uri, settings, add(uri, settings, 0.6, samples(0.6, "d2")))
    assert not unknown.moved
    assert "was not scored on these samples" in unknown.reason
    other_champion = add(uri, settings, 0.6, samples(0.6, "d2"), samples(0.5, "d2"), champion_version="77")
    assert not registry.promote(uri, settings, other_champion).moved
    scored = add(uri, settings, 0.6, samples(0.6, "d2"), samples(0.5, "d2"), champion_version=old)
    assert registry.promote(uri, settings, scored).moved


def test_metrics_wait_for_a_server_that_is_away(
    uri: str, settings: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    run_id, _ = registry.start_run(uri, settings, {})
    monkeypatch.setattr(registry, "FLUSH_S", 0.0)
    real = mlflow.MlflowClient.log_batch
    with registry.RunLog(uri, run_id) as log:
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *given, **named: 1 / 0)
        log.metrics({"loss": 1.0}, 1)
        log.metrics({"loss": 0.5}, 2)
        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", real)
    assert "2 figures wait" in capsys.readouterr().out
    history = mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]


def test_a_run_that_is_gone_is_not_reopened(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, url = registry.start_run(uri, settings, {})
    registry.end_run(uri, run_id, "FAILED")
    assert registry.reopen_run(uri, settings, run_id) == url
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "RUNNING"
    mlflow.MlflowClient(uri).delete_run(run_id)
    assert registry.reopen_run(uri, settings, run_id) is None
    assert registry.reopen_run(uri, settings, "0" * 32) is None


def test_a_run_carries_the_code_it_came_from(uri: str, settings: Profile) -> None:
    import mlflow

    run_id, _ = registry.start_run(uri, settings, {})
    tags = mlflow.MlflowClient(uri).get_run(run_id).data.tags
    folder = Path(registry.__file__).parent
    head = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert tags.get("mlflow.source.git.commit") == (head.stdout.strip() or None)
    assert tags["bananagrams_version"]


def test_a_version_of_unknown_origin_or_none_is_an_error(uri: str, settings: Profile) -> None:
    version = add(uri, settings, "")
    with pytest.raises(RegistryError, match="carries no dev_iou, baseline_iou and shuffled_iou"):
        registry.promote(uri, settings, version)
    with pytest.raises(RegistryError, match="has no version 99"):
        registry.promote(uri, settings, 99)


def test_the_registry_loads_neither_torch_nor_mlflow_before_it_is_used() -> None:
    code = (
        "import sys, bananagrams_assets.learn.registry\n"
        "print(sorted({'torch', 'torchvision', 'open_clip', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
