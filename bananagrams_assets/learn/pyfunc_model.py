"""The model as MLflow loads it; MLflow runs this file when `mlflow.pyfunc.load_model` is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from bananagrams_assets.learn.predict import MAX_PIXELS, encode_soft, load_predictor, predict
from bananagrams_assets.vision.images import RGB, ImageError, decode, encode_png_mask


class MaskModel(PythonModel):
    """A table of `image` (bytes of a picture file) and `instruction` (text) → `mask` (bytes of a PNG).

    The PNG is single-channel, of the upright picture's size; 255 where the instruction will change it.
    Over HTTP both columns of bytes are base64. Raises MlflowException, which a server answers as HTTP 400,
    for bytes that give no picture; it names the row.
    """

    def load_context(self, context: Any) -> None:
        """Called by MLflow once, with the version's files."""
        self._predictor = load_predictor(Path(context.artifacts["weights"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One mask for each row.

        `params` may hold `threshold`, the least probability of a mask pixel in place of the model's own,
        and `soft`: true for 8-bit probabilities in place of 0 and 255.
        """
        params = params or {}
        threshold = params.get("threshold")
        if threshold is None:
            threshold = self._predictor.threshold
        images = [_image(row, bytes(data)) for row, data in enumerate(model_input["image"])]
        found = predict(self._predictor, images, [str(text) for text in model_input["instruction"]])
        if params.get("soft"):
            return pd.DataFrame({"mask": [encode_soft(probability) for probability in found]})
        masks = [encode_png_mask(probability >= threshold, one_bit=False) for probability in found]
        return pd.DataFrame({"mask": masks})


def _image(row: int, data: bytes) -> RGB:
    try:
        return decode(data, MAX_PIXELS)
    except ImageError as error:
        raise MlflowException.invalid_parameter_value(f"row {row}: image: {error}") from None


set_model(MaskModel())
