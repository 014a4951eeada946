"""Initial weights of an encoder: downloaded, none, or from a local file; nothing is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import BananagramsError


class WeightsError(BananagramsError, RuntimeError):
    """The configured weights are not available; the message names the choices."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a torch file (of a state dict or {"state_dict": …}).

    Raises WeightsError if the file is missing, damaged, or contains objects other than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"weights file {path} cannot be read: {first_line(error)}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {path} contains no state dict (tensors by name)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def read_weights(
    setting: str, path: str, name: str, own: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Tensor]:
    """Read the tensors that a network `name` has (`own`) from a file, whose names may have a prefix.

    Raises WeightsError as `read_state_dict` does, or if a tensor is missing or has another shape.
    """
    state = {key.removeprefix(prefix): value for key, value in read_state_dict(path).items()}
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise WeightsError(
            f"{setting}: {path} does not fit {name}: {len(wrong)} of {len(own)} tensors are missing or have "
            f"another shape, first {wrong[0]}"
        )
    return {key: state[key] for key in own}


def fetch_error(setting: str, name: str, weights: str, error: BaseException) -> WeightsError:
    """Return the one-line error for a failed download: the reason and the three choices."""
    return WeightsError(
        f"{setting}: weights {weights!r} of {name} could not be fetched ({first_line(error)}). Choose one: "
        f"{setting}: {weights} on a machine with network, {setting}: PATH of a local file, or {setting}: none"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
