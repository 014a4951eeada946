"""Masks for photographs of any size, from a trained model's two files."""

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
from .launch import default_tracking_uri
from .network import MaskNet

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "card.md"


MAX_PIXELS = 100_000_000
THRESHOLD = 0.5

Probability: TypeAlias = npt.NDArray[np.float32]
"""(H, W), 0..1"""


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict at `side_px`, and what `model.json` says about it."""

    net: MaskNet
    side_px: int
    device: torch.device
    description: Mapping[str, Any]

    @property
    def threshold(self) -> float:
        """The least probability of a mask pixel that scored best on dev; 0.5 where none was chosen."""
        return float(self.description.get("threshold", THRESHOLD))


def load_model(model: str | Path = "champion", profile: Profile | None = None) -> Predictor:
    """The model of that name, ready to predict, on the GPU if there is one.

    `model` is an alias or version of the profile's registered model, a registry URI
    (`models:/bananagrams-mask@champion`, `models:/bananagrams-mask/3`), the folder of a checkpoint or of
    `model.safetensors` and `model.json`, or a checkpoint's name in the store. The tracking server is
    MLFLOW_TRACKING_URI, else the one in the store's folder. Raises RegistryError and CheckpointError.
    """
    from . import registry

    profile = profile or load_profile().profile
    name, folder = str(model), Path(model).expanduser()
    if (folder / DESCRIPTION).is_file():
        return load_predictor(folder)
    if (folder / checkpoint.STATE).is_file():
        return load_checkpoint(LocalStore(folder.absolute().parent), folder.absolute().name)
    if name.startswith("models:/"):
        registered, found, version = name.removeprefix("models:/").partition("@" if "@" in name else "/")
        if not (registered and found and version):
            raise registry.RegistryError(f"{name}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        settings = profile.mlflow.model_copy(update={"registered_model": registered})
        profile, name = profile.model_copy(update={"mlflow": settings}), version
    elif "/" in name:
        return load_checkpoint(open_store(default_store(profile)), name)
    return registry.load(default_tracking_uri(default_store(profile)), profile, name)


def load_predictor(folder: Path, device: str | None = None) -> Predictor:
    """The model in a folder of `model.safetensors` and `model.json`, on the GPU if there is one.

    Raises CheckpointError if the two do not fit together.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    profile = validate({"model": description["model"], "train": description["train"]}, str(folder))
    net = MaskNet(profile.model, fetch=False)
    checkpoint.fill(net, safetensors.torch.load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    return make_predictor(net, profile.train.side_px, device, description)


def load_checkpoint(store: Store, name: str, device: str | None = None) -> Predictor:
    """The model of a training's checkpoint in a store. Raises CheckpointError."""
    try:
        state = json.loads(store.read(f"{name}/{checkpoint.STATE}"))
        sections = {"model": state["model"], "train": state["train"]}
    except (StoreError, ValueError, KeyError):
        raise checkpoint.CheckpointError(
            f"{name} is no model: neither a folder with {DESCRIPTION} or {checkpoint.STATE}, nor a whole "
            f"checkpoint in {store.url}, nor an alias or version in the registry"
        ) from None
    profile = validate(sections, name)
    net = MaskNet(profile.model, fetch=False)
    checkpoint.load(store, name, net)
    return make_predictor(net, profile.train.side_px, device, state)


def make_predictor(
    net: MaskNet, side_px: int, device: str | None = None, description: Mapping[str, Any] | None = None
) -> Predictor:
    """A predictor around a network, which is put on the device and in evaluation mode."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.to(device=chosen, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Predictor(net, side_px, chosen, description or {})


def predict(
    predictor: Predictor, images: Sequence[RGB], instructions: Sequence[str], batch_size: int = 16
) -> list[Probability]:
    """Probability 0..1 that the instruction changes each pixel, float32 (H, W), for each RGB (H, W, 3).

    A picture is stretched to the square that the network was trained on, and its mask is stretched back.
    """
    if len(images) != len(instructions):
        raise ValueError(f"{len(images)} pictures and {len(instructions)} instructions: one each is needed")
    masks: list[Probability] = []
    for start in range(0, len(images), batch_size):
        group = images[start : start + batch_size]
        planes = predict_squares(
            predictor,
            [to_square(predictor, image) for image in group],
            instructions[start : start + batch_size],
        )
        masks += [from_square(plane, image.shape[:2]) for image, plane in zip(group, planes, strict=True)]
    return masks


def predict_file(predictor: Predictor, photo: str | Path, instruction: str) -> Probability:
    """`predict` of one picture file, which is read upright. Raises PictureError and OSError."""
    return predict(predictor, [decode(Path(photo).read_bytes(), MAX_PIXELS)], [instruction])[0]


def to_square(predictor: Predictor, image: RGB) -> RGB:
    """The picture (H, W, 3) at the network's size (S, S, 3)."""
    return resize(image, (predictor.side_px, predictor.side_px))


def predict_squares(
    predictor: Predictor, squares: Sequence[RGB], instructions: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Probabilities (N, S, S) for N pictures (S, S, 3), in one pass of the network."""
    batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(predictor.device)
    with torch.inference_mode():
        logits = predictor.net(batch, list(instructions))
        return np.asarray(logits[:, 0].float().sigmoid().cpu().numpy())


def from_square(plane: Probability, size: tuple[int, ...]) -> Probability:
    """A plane (S, S) at a picture's own (H, W)."""
    return resize(plane, (size[1], size[0])).astype(np.float32)


def encode_soft(probability: Probability) -> bytes:
    """A single-channel 8-bit PNG: 0 for probability 0, 255 for 1."""
    done, data = cv2.imencode(".png", np.round(probability * 255).astype(np.uint8))
    assert done  # a uint8 plane always encodes
    return data.tobytes()
