"""The rules by which a version becomes champion, on a registry of its own; no model is loaded here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.learn import registry
from bananagrams_assets.learn.registry import RegistryError

from .tiny import profile


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/not yet there/mlflow.db"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Profile:
    """A registered model of its own for each test."""
    return profile(mlflow__registered_model=request.node.name.replace("[", "-").strip("]"))


def add(uri: str, settings: Profile, score: float | str, **tags: str) -> str:
    """Register a version with these figures, as a training does."""
    import mlflow

    run_id, _ = registry.start_run(uri, settings, {})
    client = mlflow.MlflowClient(uri)
    name = settings.mlflow.registered_model
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    figures = {"dev_iou": str(score), "baseline_iou": "0.3", "dev_dataset": "d1", **tags}
    source = client.get_run(run_id).info.artifact_uri
    return str(client.create_model_version(name, source, run_id, tags=figures).version)


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


def test_the_better_of_two_is_champion_and_the_other_stays_as_previous(uri: str, settings: Profile) -> None:
    first, second, third = (add(uri, settings, score) for score in (0.5, 0.6, 0.55))
    assert registry.promote(uri, settings, first).moved
    promotion = registry.promote(uri, settings, int(second))
    assert promotion == registry.Promotion(
        True, "version 2 is the champion: dev IoU 0.600 (best trivial 0.300, version 1 0.500)", second, first
    )
    refused = registry.promote(uri, settings, third)
    assert (refused.moved, refused.champion_version, refused.previous_version) == (False, second, first)
    assert refused.reason == "version 3 stays challenger: dev IoU 0.550, champion version 2 has 0.600"
    assert registry.find(uri, settings, "champion") == second
    assert registry.find(uri, settings, "previous") == first


def test_the_champion_is_not_promoted_twice(uri: str, settings: Profile) -> None:
    version = add(uri, settings, 0.5)
    assert registry.promote(uri, settings, version).moved
    again = registry.promote(uri, settings, version)
    assert not again.moved
    assert again.reason == "version 1 is the champion already"


def test_figures_of_different_datasets_are_never_compared(uri: str, settings: Profile) -> None:
    old = add(uri, settings, 0.9)
    assert registry.promote(uri, settings, old).moved
    unknown = registry.promote(uri, settings, add(uri, settings, 0.6, dev_dataset="d2"))
    assert not unknown.moved
    assert "was not scored on this dataset" in unknown.reason
    scored = {"dev_dataset": "d2", "champion_version": old, "champion_dev_iou": "0.55"}
    assert registry.promote(uri, settings, add(uri, settings, 0.6, **scored)).moved


def test_a_version_of_unknown_origin_or_none_is_an_error(uri: str, settings: Profile) -> None:
    version = add(uri, settings, "")
    with pytest.raises(RegistryError, match="carries no dev_iou and baseline_iou tags"):
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
