from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bananagrams_assets.config import ModelSettings
from bananagrams_assets.learn import checkpoint
from bananagrams_assets.learn.checkpoint import CheckpointError
from bananagrams_assets.learn.network import MaskNet
from bananagrams_assets.learn.optimizer import make_optimizer
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store

from .tiny import profile


@pytest.fixture(scope="module")
def trained() -> tuple[MaskNet, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = MaskNet(profile().model)
    optimizer = make_optimizer(net, profile().train)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), ["a", "b"]).mean().backward()
        optimizer.step()
    return net, optimizer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def fresh() -> tuple[MaskNet, torch.optim.Optimizer]:
    net = MaskNet(profile().model)
    return net, make_optimizer(net, profile().train)


Trained = tuple[MaskNet, torch.optim.Optimizer]


def test_network_optimizer_and_state_are_restored_bit_by_bit(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    net, optimizer = fresh()
    state = checkpoint.load(store, "c/run-000002", net, optimizer)
    assert state["step"] == 2
    for name, value in trained[0].state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    expected, found = trained[1].state_dict()["state"], optimizer.state_dict()["state"]
    assert expected.keys() == found.keys()
    for index, values in expected.items():
        for name, value in values.items():
            assert torch.equal(found[index][name], value)


def test_checkpoint_is_found_by_its_path(trained: Trained, store: Store, tmp_path: Path) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    assert checkpoint.exists(elsewhere, str(tmp_path / "c/run-000002"))
    assert checkpoint.load(elsewhere, str(tmp_path / "c/run-000002"), fresh()[0])["step"] == 2


def test_error_for_another_architecture_names_the_difference(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    other = MaskNet(profile(model__text_width=16).model)
    with pytest.raises(CheckpointError, match=r"run-000002 has another architecture: 1 of .*words.project"):
        checkpoint.load(store, "c/run-000002", other)


def test_checkpoint_without_state_does_not_exist(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    store.delete("c/run-000002/state.json")
    assert not checkpoint.exists(store, "c/run-000002")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint.load(store, "c/run-000002", fresh()[0])


def test_damaged_file_is_an_error(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    data = bytearray(store.read("c/run-000002/model.safetensors"))
    data[-1] ^= 1
    store.write("c/run-000002/model.safetensors", bytes(data))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        checkpoint.load(store, "c/run-000002", fresh()[0])


def test_checkpoint_without_optimizer_cannot_be_resumed(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-best", trained[0], None, {"step": 2})
    net, optimizer = fresh()
    with pytest.raises(CheckpointError, match="has no optimizer"):
        checkpoint.load(store, "c/run-best", net, optimizer)


def test_prune_keeps_the_last_and_the_best(trained: Trained, store: Store) -> None:
    for name in ("run-900000", "run-950000", "run-1000000", "run-best", "old-000009"):
        store.write(f"c/{name}/state.json", b"{}")
        store.write(f"c/{name}/model.safetensors", b"x")
    checkpoint.prune(store, "c", "run", 2)
    kept = {name.split("/")[1] for name in store.list("c/")}
    assert kept == {"run-950000", "run-1000000", "run-best", "old-000009"}
    checkpoint.remove_other_runs(store, "c", "run")
    assert {name.split("/")[1] for name in store.list("c/")} == {"run-950000", "run-1000000", "run-best"}


def test_frozen_tower_is_stored_in_half_precision_without_loss(store: Store) -> None:
    settings = ModelSettings.model_validate(
        {
            **profile().model.model_dump(),
            "text_encoder": "ViT-S-32-alt",
            "text_weights": "none",
        }
    )
    net, other = MaskNet(settings), MaskNet(settings)
    checkpoint.save(store, "c/run-best", net, None, {})
    tower = [v for k, v in checkpoint.model_weights(net).items() if k.startswith("text.tower.")]
    assert tower
    assert {value.dtype for value in tower} == {torch.float16}
    checkpoint.load(store, "c/run-best", other)
    net.eval(), other.eval()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(net(images, ["a red cat"]), other(images, ["a red cat"]))


def test_state_is_json(trained: Trained, store: Store) -> None:
    checkpoint.save(store, "c/run-000002", *trained, {"step": 2})
    assert set(json.loads(store.read("c/run-000002/state.json"))["files"]) == {
        "model.safetensors",
        "optimizer.safetensors",
    }
