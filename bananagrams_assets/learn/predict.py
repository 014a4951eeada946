"""Masks for photographs of any size, from a trained model's two files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from ..profiles import validate
from ..vision.images import RGB, resize
from .checkpoint import fill
from .network import MaskNet

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict at `side_px`, and what `model.json` says about it."""

    net: MaskNet
    side_px: int
    device: torch.device
    description: Mapping[str, Any]


def load_predictor(folder: Path, device: str | None = None) -> Predictor:
    """The model in a folder of `model.safetensors` and `model.json`, on the GPU if there is one.

    Raises CheckpointError if the two do not fit together.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    profile = validate({"model": description["model"], "train": description["train"]}, str(folder))
    net = MaskNet(profile.model, fetch=False)
    fill(net, safetensors.torch.load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    return make_predictor(net, profile.train.side_px, device, description)


def make_predictor(
    net: MaskNet, side_px: int, device: str | None = None, description: Mapping[str, Any] | None = None
) -> Predictor:
    """A predictor around a network, which is put on the device and in evaluation mode."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.to(device=chosen, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Predictor(net, side_px, chosen, description or {})


def predict(
    predictor: Predictor, pictures: Sequence[RGB], instructions: Sequence[str], batch_size: int = 16
) -> list[npt.NDArray[np.float32]]:
    """Probability 0..1 that the instruction changes each pixel, float32 (H, W), for each RGB (H, W, 3).

    A picture is stretched to the square that the network was trained on, and its mask is stretched back.
    """
    if len(pictures) != len(instructions):
        raise ValueError(f"{len(pictures)} pictures and {len(instructions)} instructions: one each is needed")
    side = predictor.side_px
    masks: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(pictures), batch_size):
        group = pictures[start : start + batch_size]
        squares = torch.from_numpy(np.stack([resize(picture, (side, side)) for picture in group]))
        squares = squares.permute(0, 3, 1, 2).to(predictor.device)
        with torch.inference_mode():
            logits = predictor.net(squares, instructions[start : start + batch_size])
            probabilities = logits[:, 0].sigmoid().cpu().numpy()
        for picture, plane in zip(group, probabilities, strict=True):
            masks.append(resize(plane, (picture.shape[1], picture.shape[0])).astype(np.float32))
    return masks
