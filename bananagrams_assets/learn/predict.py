"""Load a model by its name and predict the mask of an image file."""

from __future__ import annotations

import json
from pathlib import Path

from ..config import Profile
from ..profiles import default_store, load_profile, validate
from ..storage.local import LocalStore
from ..storage.open_store import open_store
from ..storage.store import Store, StoreError
from ..vision.images import decode
from . import checkpoint, registry
from .network import MaskNet
from .predictor import (
    DESCRIPTION,
    MAX_PIXELS,
    Predictor,
    Probability,
    load_predictor,
    make_predictor,
    predict_masks,
)
from .tracking import default_tracking_uri


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
            raise registry.RegistryError(f"{name}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        settings = profile.mlflow.model_copy(update={"registered_model": registered})
        profile, name = profile.model_copy(update={"mlflow": settings}), version
    elif "/" in name:
        return load_checkpoint(open_store(default_store(profile)), name)
    tracking_uri = default_tracking_uri(default_store(profile))
    return load_predictor(registry.download_model(tracking_uri, profile, name))


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


def predict_file(predictor: Predictor, photo: str | Path, instruction: str) -> Probability:
    """Predict the mask of one image file, upright; see `predict_masks`. Raise ImageError or OSError."""
    return predict_masks(predictor, [decode(Path(photo).read_bytes(), MAX_PIXELS)], [instruction])[0]
