"""Checkpoints in the store: tensors as safetensors, the rest as JSON; nothing is unpickled.

A checkpoint is a folder of `model.safetensors`, `optimizer.safetensors`, with an EMA of the weights
`average.safetensors`, and `state.json`. `state.json` is written last and contains the digests of the other
files, so a checkpoint without it is incomplete and counts as absent.
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
from torch.optim import Optimizer

from ..errors import BananagramsError
from ..storage.local import LocalStore
from ..storage.store import Store, StoreError
from .network import MaskNet
from .optimizer import EMA
from .text import TextTower
from .weights import first_line

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
TENSOR_FILES = (MODEL, OPTIMIZER, AVERAGE)
STATE = "state.json"


class CheckpointError(BananagramsError, RuntimeError):
    """A checkpoint is missing, damaged or of another architecture; the message names it."""


def model_weights(net: MaskNet) -> dict[str, Tensor]:
    """Return all tensors of the network on the CPU; frozen ones of a text tower are float16.

    This is lossless: the tower was rounded to half precision when it was built.
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


def load_weights(net: MaskNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Load the result of `model_weights`. Raises CheckpointError if the architecture differs."""
    own = net.state_dict()
    wrong = [name for name in own.keys() | weights.keys() if _shape(own, name) != _shape(weights, name)]
    if wrong:
        name = min(wrong)
        raise CheckpointError(
            f"{source} has another architecture: {len(wrong)} of {len(own)} tensors differ, first {name}: "
            f"{_shape(weights, name)} in the file, {_shape(own, name)} by the profile's `model` section"
        )
    net.load_state_dict(dict(weights))


def save(
    store: Store,
    name: str,
    net: MaskNet,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    ema: EMA | None = None,
) -> None:
    """Write the checkpoint `name`. Training can resume from it only if it contains the optimizer."""
    files = {MODEL: safetensors.torch.save(model_weights(net))}
    if optimizer is not None:
        files[OPTIMIZER] = safetensors.torch.save(_optimizer_tensors(optimizer))
    if ema is not None:
        files[AVERAGE] = safetensors.torch.save(
            {name: value.detach().cpu().contiguous() for name, value in ema.tensors.items()}
        )
    for file, data in files.items():
        store.write(f"{name}/{file}", data)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    store.write(f"{name}/{STATE}", json.dumps({**state, "files": digests}, indent=1).encode())


def load(
    store: Store, name: str, net: MaskNet, optimizer: Optimizer | None = None, ema: EMA | None = None
) -> dict[str, Any]:
    """Load the network and, if given, optimizer and EMA; return the state. Raises CheckpointError.

    `name` is a checkpoint in the store or a local checkpoint folder. If the checkpoint contains no EMA,
    `ema` starts from the network's weights.
    """
    store, name = _locate(store, name)
    state = read_state(store, name)
    load_weights(net, _read_tensors(store, name, MODEL, state), name)
    if optimizer is not None:
        _load_optimizer(optimizer, _read_tensors(store, name, OPTIMIZER, state), name)
    if ema is not None:
        averaged = AVERAGE in state["files"]
        tensors = _read_tensors(store, name, AVERAGE, state) if averaged else net.state_dict()
        for key, value in ema.tensors.items():
            value.copy_(tensors[key])
    return state


def read_state(store: Store, name: str) -> dict[str, Any]:
    """Return the state given to `save`. Raises CheckpointError if there is no complete checkpoint."""
    store, name = _locate(store, name)
    try:
        state: dict[str, Any] = json.loads(store.read(f"{name}/{STATE}"))
    except (StoreError, ValueError) as error:
        raise CheckpointError(
            f"no complete checkpoint {name}, neither in {store.url} nor as a folder ({first_line(error)})"
        ) from None
    return state


def exists(store: Store, name: str) -> bool:
    """Return whether `name` is a complete checkpoint in the store or a local checkpoint folder."""
    return (Path(name).expanduser() / STATE).is_file() or store.exists(f"{name}/{STATE}")


def prune(store: Store, folder: str, run: str, keep: int) -> None:
    """Delete a run's checkpoints `<run>-<step>` except the last `keep`; `<run>-best` is kept."""
    names = {name.split("/")[-2] for name in store.list(f"{folder}/{run}-")} - {f"{run}-best"}
    # Sorted by number: from a million steps on, the names have different lengths.
    for name in sorted(names, key=lambda name: int(name.rpartition("-")[2]))[:-keep]:
        remove(store, f"{folder}/{name}")


def remove_other_runs(store: Store, folder: str, run: str) -> None:
    """Delete all checkpoints of other runs."""
    for name in sorted({name.split("/")[-2] for name in store.list(f"{folder}/")}):
        if not name.startswith(f"{run}-"):
            remove(store, f"{folder}/{name}")


def remove(store: Store, name: str) -> None:
    """Delete a checkpoint, its state first, so that an interrupted deletion does not look complete."""
    for file in (STATE, *TENSOR_FILES):
        store.delete(f"{name}/{file}")


def _locate(store: Store, name: str) -> tuple[Store, str]:
    """Return store and name of a checkpoint; `name` may be a local checkpoint folder."""
    folder = Path(name).expanduser()
    if (folder / STATE).is_file():
        return LocalStore(folder.absolute().parent), folder.absolute().name
    return store, name


def _read_tensors(store: Store, name: str, file: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    digest = state.get("files", {}).get(file)
    if digest is None:
        raise CheckpointError(f"{name} has no {file}: it is for prediction; training cannot resume from it")
    try:
        data = store.read(f"{name}/{file}")
    except StoreError as error:
        raise CheckpointError(f"{name} is incomplete: {error}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{name}/{file} is damaged: its SHA-256 is not that in {STATE}")
    return dict(safetensors.torch.load(data))


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state tensors by `<parameter index>.<name>`."""
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], name: str) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, field = key.partition(".")
        state.setdefault(int(index), {})[field] = value
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    fields = (
        {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    )
    for number, values in state.items():
        moments = [value for value in values.values() if value.dim()]
        if (
            values.keys() - fields
            or number >= len(parameters)
            or any(value.shape != parameters[number].shape for value in moments)
        ):
            raise CheckpointError(f"{name}: its optimizer state does not fit the network or train.optimizer")
        # Fused optimizers treat parameters and moments as flat memory, so both need the same memory layout.
        for field, value in values.items():
            if value.dim():
                values[field] = torch.empty_like(parameters[number], dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
