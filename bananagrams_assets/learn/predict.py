"""Load a model by its name, and predict masks for images of any size."""

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

from ..config import Profile
from ..profiles import default_store, load_profile, validate
from ..storage.local import LocalStore
from ..storage.open_store import open_store
from ..storage.store import Store, StoreError
from ..vision.images import RGB, decode, resize
from . import checkpoint
from .network import MaskNet
from .registry import DESCRIPTION, WEIGHTS, RegistryError, download_model
from .tracking import default_tracking_uri

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


def load_model(model: str | Path = "champion", profile: Profile | None = None) -> Predictor:
    """Load a model by name, on the GPU if there is one.

    `model` is one of: an alias or version of the profile's registered model; a registry URI
    (`models:/bananagrams-mask@champion`, `models:/bananagrams-mask/3`); a local folder of a checkpoint or
    of `model.safetensors` and `model.json`; a checkpoint's name in the store. The tracking server is
    MLFLOW_TRACKING_URI or else the SQLite file in the store's folder.
    Raise RegistryError or CheckpointError.
    """
    profile = profile or load_profile().profile
    name, folder = str(model), Path(model).expanduser()
    if (folder / DESCRIPTION).is_file():
        return load_predictor(folder)
    if (folder / checkpoint.STATE).is_file():
        return load_checkpoint(LocalStore(folder.absolute().parent), folder.absolute().name)
    if name.startswith("models:/"):
        registered, separator, version = name.removeprefix("models:/").partition("@" if "@" in name else "/")
        if not (registered and separator and version):
            raise RegistryError(f"{name}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        settings = profile.mlflow.model_copy(update={"registered_model": registered})
        profile, name = profile.model_copy(update={"mlflow": settings}), version
    elif "/" in name:
        return load_checkpoint(open_store(default_store(profile)), name)
    tracking_uri = default_tracking_uri(default_store(profile))
    return load_predictor(download_model(tracking_uri, profile, name))


def load_checkpoint(store: Store, name: str) -> Predictor:
    """Load the model from a checkpoint in a store. Raise CheckpointError."""
    try:
        state = json.loads(store.read(f"{name}/{checkpoint.STATE}"))
        sections = {"model": state["model"], "train": state["train"]}
    except (StoreError, ValueError, KeyError):
        raise checkpoint.CheckpointError(
            f"{name} is no model: neither a folder with {DESCRIPTION} or {checkpoint.STATE}, nor a complete "
            f"checkpoint in {store.url}, nor an alias or version in the registry"
        ) from None
    profile = validate(sections, name)
    net = MaskNet(profile.model, fetch=False)
    checkpoint.load(store, name, net)
    return make_predictor(net, profile.train.side_px, description=state)


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
        squares = [resize(image, (predictor.side_px, predictor.side_px)) for image in batch]
        planes = predict_squares(predictor, squares, instructions[start : start + batch_size])
        masks += [from_square(plane, image.shape[:2]) for image, plane in zip(batch, planes, strict=True)]
    return masks


def predict_file(predictor: Predictor, photo: str | Path, instruction: str) -> Probability:
    """Predict the mask of one image file, upright; see `predict_masks`. Raise ImageError or OSError."""
    return predict_masks(predictor, [decode(Path(photo).read_bytes(), MAX_PIXELS)], [instruction])[0]


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
