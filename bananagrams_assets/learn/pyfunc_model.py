"""The model in MLflow's pyfunc format; `mlflow.pyfunc.load_model` executes this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from bananagrams_assets.learn.predict import MAX_PIXELS, encode_soft, load_predictor, predict_masks
from bananagrams_assets.vision.images import RGB, ImageError, decode, encode_png_mask


class MaskModel(PythonModel):
    """Map a table of `image` (bytes of an image file) and `instruction` (text) to `mask` (bytes of a PNG).

    The PNG has one channel and the size of the upright image; 255 marks pixels that the edit changes.
    Over HTTP, `image` and `mask` are base64. An image that cannot be decoded raises MlflowException with
    its row number, which the server returns as HTTP 400.
    """

    def load_context(self, context: Any) -> None:
        """Load the weights; MLflow calls this once with the files of the model version."""
        self._predictor = load_predictor(Path(context.artifacts["weights"]).parent)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return one mask per row.

        `params` may contain `threshold`, the lowest probability of a mask pixel (default: the model's), and
        `soft`: true for 8-bit probabilities instead of 0 and 255.
        """
        params = params or {}
        threshold = params.get("threshold")
        if threshold is None:
            threshold = self._predictor.threshold
        images = [_image(row, bytes(data)) for row, data in enumerate(model_input["image"])]
        instructions = [str(text) for text in model_input["instruction"]]
        probabilities = predict_masks(self._predictor, images, instructions)
        if params.get("soft"):
            return pd.DataFrame({"mask": [encode_soft(probability) for probability in probabilities]})
        masks = [encode_png_mask(probability >= threshold, one_bit=False) for probability in probabilities]
        return pd.DataFrame({"mask": masks})


def _image(row: int, data: bytes) -> RGB:
    try:
        return decode(data, MAX_PIXELS)
    except ImageError as error:
        raise MlflowException.invalid_parameter_value(f"row {row}: image: {error}") from None


set_model(MaskModel())
