"""The model as MLflow loads it; MLflow runs this file when `mlflow.pyfunc.load_model` is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from bananagrams_assets.learn.predict import load_predictor, predict
from bananagrams_assets.vision.images import decode, encode_png_mask

MAX_PIXELS = 100_000_000


class MaskModel(PythonModel):
    """A table of `image` (bytes of a picture file) and `instruction` (text) → `mask` (bytes of a PNG).

    The PNG is single-channel, of the upright picture's size; 255 where the instruction will change it.
    Raises PictureError for bytes that give no picture.
    """

    def load_context(self, context: Any) -> None:
        """Called by MLflow once, with the version's files."""
        self._predictor = load_predictor(Path(context.artifacts["weights"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One mask for each row; `params` may hold `threshold`, the least probability of a mask pixel."""
        threshold = float((params or {}).get("threshold", 0.5))
        pictures = [decode(bytes(data), MAX_PIXELS) for data in model_input["image"]]
        masks = predict(self._predictor, pictures, [str(text) for text in model_input["instruction"]])
        return pd.DataFrame({"mask": [encode_png_mask(mask >= threshold, one_bit=False) for mask in masks]})


set_model(MaskModel())
