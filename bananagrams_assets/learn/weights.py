"""Initial weights of an encoder: fetched, none, or read from a local file; nothing is ever unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BananagramsError


class WeightsError(BananagramsError, RuntimeError):
    """Weights that were asked for and cannot be had; the message names the choices."""


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file that holds a state dict (or {"state_dict": …}).

    Raises WeightsError if the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"weights file {path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # safetensors raises its own class, which is no subclass of the above
        if type(error).__name__ != "SafetensorError":
            raise
        raise WeightsError(f"weights file {path} cannot be read: {first_line(error)}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {path} holds no state dict (tensors by name)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def cannot_fetch(setting: str, name: str, fetched: str, error: BaseException) -> WeightsError:
    """The one-line error for weights that could not be fetched: why, and the three choices."""
    return WeightsError(
        f"{setting}: weights {fetched!r} of {name} could not be fetched ({first_line(error)}). Choose one: "
        f"{setting}: {fetched} on a machine with network, {setting}: PATH of a local file, or {setting}: none"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
