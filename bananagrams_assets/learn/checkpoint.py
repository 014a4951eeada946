"""Checkpoints in the store: tensors as safetensors, the rest as JSON; nothing is ever unpickled.

A checkpoint is a folder of `model.safetensors`, `optimizer.safetensors`, `average.safetensors` where
weights are averaged, and `state.json`. The last of them is written last and holds the digests of the
others, so a checkpoint is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import BananagramsError
from ..storage.local import LocalStore
from ..storage.store import Store, StoreError
from .network import MaskNet
from .optimizer import Average
from .text import TextTower
from .weights import first_line

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
FILES = (MODEL, OPTIMIZER, AVERAGE)
STATE = "state.json"


class CheckpointError(BananagramsError, RuntimeError):
    """A checkpoint that cannot be used; the message names it and says why."""


def weights_of(net: MaskNet) -> dict[str, Tensor]:
    """Every tensor of the network, on the CPU; what is frozen of a text tower at half precision.

    Halving loses nothing: a tower was rounded to half precision when it was built.
    """
    frozen = (
        {f"text.tower.{name}" for name, value in net.text.tower.named_parameters() if not value.requires_grad}
        if isinstance(net.text, TextTower)
        else set()
    )
    return {
        name: (value.half() if name in frozen else value).detach().cpu().contiguous()
        for name, value in net.state_dict().items()
    }


def fill(net: MaskNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Load what `weights_of` gave. Raises CheckpointError if it is of another architecture."""
    own = net.state_dict()
    wrong = [name for name in own.keys() | weights.keys() if _shape(own, name) != _shape(weights, name)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{source} is of another architecture: {len(wrong)} of {len(own)} tensors differ, first {name}: "
            f"{_shape(weights, name)} there, {_shape(own, name)} in the profile's `model` section"
        )
    net.load_state_dict(dict(weights))


def save(
    store: Store,
    name: str,
    net: MaskNet,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    average: Average | None = None,
) -> None:
    """Write the checkpoint `name`; without an optimizer it is one to predict with, not to go on from."""
    files = {MODEL: safetensors.torch.save(weights_of(net))}
    if optimizer is not None:
        files[OPTIMIZER] = safetensors.torch.save(_optimizer_tensors(optimizer))
    if average is not None:
        files[AVERAGE] = safetensors.torch.save(
            {name: value.detach().cpu().contiguous() for name, value in average.tensors.items()}
        )
    for file, data in files.items():
        store.write(f"{name}/{file}", data)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    store.write(f"{name}/{STATE}", json.dumps({**state, "files": digests}, indent=1).encode())


def load(
    store: Store,
    name: str,
    net: MaskNet,
    optimizer: torch.optim.Optimizer | None = None,
    average: Average | None = None,
) -> dict[str, Any]:
    """Fill the network, and optimizer and average if given, and return the state. Raises CheckpointError.

    An average starts from the network's weights where the checkpoint holds none. `name`
    is a checkpoint in the store, or the path of a checkpoint's folder on this machine.
    """
    store, name = _find(store, name)
    state = read_state(store, name)
    fill(net, _tensors(store, name, MODEL, state), name)
    if optimizer is not None:
        _fill_optimizer(optimizer, _tensors(store, name, OPTIMIZER, state), name)
    if average is not None:
        own = net.state_dict()
        kept = _tensors(store, name, AVERAGE, state) if AVERAGE in state["files"] else own
        for key, value in average.tensors.items():
            value.copy_(kept[key])
    return state


def read_state(store: Store, name: str) -> dict[str, Any]:
    """What `save` was given as the state. Raises CheckpointError if there is no whole checkpoint."""
    store, name = _find(store, name)
    try:
        state: dict[str, Any] = json.loads(store.read(f"{name}/{STATE}"))
    except (StoreError, ValueError) as error:
        raise CheckpointError(
            f"{name} is no complete checkpoint, neither in {store.url} nor as a folder ({first_line(error)})"
        ) from None
    return state


def exists(store: Store, name: str) -> bool:
    """Whether a whole checkpoint of this name is in the store, or in a folder of this path."""
    return (Path(name).expanduser() / STATE).is_file() or store.exists(f"{name}/{STATE}")


def prune(store: Store, folder: str, run: str, keep: int) -> None:
    """Keep the last `keep` checkpoints of a run (folders `<run>-<step>`) and its `<run>-best`."""
    names = {name.split("/")[-2] for name in store.list(f"{folder}/{run}-")} - {f"{run}-best"}
    # By number: the names of a run of more than a million steps are not all of one length.
    for name in sorted(names, key=lambda name: int(name.rpartition("-")[2]))[:-keep]:
        remove(store, f"{folder}/{name}")


def remove_other_runs(store: Store, folder: str, run: str) -> None:
    """Delete every checkpoint that is not of this run."""
    for name in sorted({name.split("/")[-2] for name in store.list(f"{folder}/")}):
        if not name.startswith(f"{run}-"):
            remove(store, f"{folder}/{name}")


def remove(store: Store, name: str) -> None:
    """Delete a checkpoint, its state first, so that what is left of it is never taken for whole."""
    for file in (STATE, *FILES):
        store.delete(f"{name}/{file}")


def _find(store: Store, name: str) -> tuple[Store, str]:
    """The store and name of a checkpoint that may be named by its folder's path."""
    folder = Path(name).expanduser()
    if (folder / STATE).is_file():
        return LocalStore(folder.absolute().parent), folder.absolute().name
    return store, name


def _tensors(store: Store, name: str, file: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    digest = state.get("files", {}).get(file)
    if digest is None:
        raise CheckpointError(f"{name} holds no {file}: it is a model to predict with, not to go on from")
    try:
        data = store.read(f"{name}/{file}")
    except StoreError as error:
        raise CheckpointError(f"{name} is incomplete: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{name}/{file} is damaged: its SHA-256 is not what {STATE} says")
    return dict(safetensors.torch.load(data))


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter's number>.<name>`."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], name: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, field = key.partition(".")
        state.setdefault(int(number), {})[field] = value
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    known = (
        {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    )
    for index, values in state.items():
        moments = [value for value in values.values() if value.dim()]
        if (
            values.keys() - known
            or index >= len(parameters)
            or any(value.shape != parameters[index].shape for value in moments)
        ):
            raise CheckpointError(f"{name}: its optimizer state does not fit the network or train.optimizer")
        # Fused optimizers walk parameters and moments as flat memory, so both need the same memory layout.
        for field, value in values.items():
            if value.dim():
                values[field] = torch.empty_like(parameters[index], dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
