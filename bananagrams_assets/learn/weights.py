"""Initial weights of an encoder: downloaded, none, or from a local file; nothing is unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
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
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"weights file {path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # safetensors has its own exception, not a subclass of the above
        if type(error).__name__ != "SafetensorError":
            raise
        raise WeightsError(f"weights file {path} cannot be read: {first_line(error)}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"weights file {path} contains no state dict (tensors by name)")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def fetch_error(setting: str, name: str, weights: str, error: BaseException) -> WeightsError:
    """Return the one-line error for a failed download: the reason and the three choices."""
    return WeightsError(
        f"{setting}: weights {weights!r} of {name} could not be fetched ({first_line(error)}). Choose one: "
        f"{setting}: {weights} on a machine with network, {setting}: PATH of a local file, or {setting}: none"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
