"""Predict masks for images of any size with a trained network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from ..profiles import validate
from ..vision.images import RGB, resize
from . import checkpoint
from .network import MaskNet

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "card.md"

MAX_PIXELS = 100_000_000
THRESHOLD = 0.5

Probability: TypeAlias = npt.NDArray[np.float32]
"""(H, W), 0..1"""


@dataclass(frozen=True)
class Predictor:
    """A network in evaluation mode, its input size `side_px`, and the content of its `model.json`."""

    net: MaskNet
    side_px: int
    device: torch.device
    description: Mapping[str, Any]

    @property
    def threshold(self) -> float:
        """The lowest probability of a mask pixel: the best one on dev, or 0.5 if none was chosen."""
        return float(self.description.get("threshold", THRESHOLD))


def load_predictor(folder: Path) -> Predictor:
    """Load the model from a folder with `model.safetensors` and `model.json`; see `make_predictor`.

    Raise CheckpointError if the weights do not match the described network.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    profile = validate({"model": description["model"], "train": description["train"]}, str(folder))
    net = MaskNet(profile.model, fetch=False)
    checkpoint.load_weights(net, safetensors.torch.load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    return make_predictor(net, profile.train.side_px, description=description)


def make_predictor(
    net: MaskNet, side_px: int, device: str | None = None, description: Mapping[str, Any] | None = None
) -> Predictor:
    """Move a network to the device (default: GPU if available) and set it to evaluation mode."""
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.to(device=torch_device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Predictor(net, side_px, torch_device, description or {})


def predict_masks(
    predictor: Predictor, images: Sequence[RGB], instructions: Sequence[str], batch_size: int = 16
) -> list[Probability]:
    """Return for each RGB image (H, W, 3) the probability that its instruction changes each pixel.

    Results are float32 (H, W), 0..1. Images are stretched to the network's square input, and masks back.
    """
    if len(images) != len(instructions):
        raise ValueError(f"{len(images)} images and {len(instructions)} instructions: counts must be equal")
    masks: list[Probability] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        planes = predict_squares(
            predictor,
            [to_square(predictor, image) for image in batch],
            instructions[start : start + batch_size],
        )
        masks += [from_square(plane, image.shape[:2]) for image, plane in zip(batch, planes, strict=True)]
    return masks


def to_square(predictor: Predictor, image: RGB) -> RGB:
    """Stretch an image (H, W, 3) to the network's input size (S, S, 3)."""
    return resize(image, (predictor.side_px, predictor.side_px))


def predict_squares(
    predictor: Predictor, squares: Sequence[RGB], instructions: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return probabilities (N, S, S) for N images (S, S, 3), in one forward pass."""
    batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(predictor.device)
    with torch.inference_mode():
        logits = predictor.net(batch, list(instructions))
        return np.asarray(logits[:, 0].float().sigmoid().cpu().numpy())


def from_square(plane: Probability, size: tuple[int, ...]) -> Probability:
    """Stretch probabilities (S, S) to an image's size (H, W)."""
    return resize(plane, (size[1], size[0])).astype(np.float32)


def encode_soft(probability: Probability) -> bytes:
    """Encode probabilities as a single-channel 8-bit PNG: 0 for 0.0, 255 for 1.0."""
    ok, data = cv2.imencode(".png", np.round(probability * 255).astype(np.uint8))
    assert ok  # encoding a uint8 plane cannot fail
    return data.tobytes()
