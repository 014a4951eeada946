"""The result of an edit: a pair of images with its true mask and its instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .photos import RGB, Mask
from .visibility import color_difference
from .vocabulary import family_of


@dataclass(frozen=True)
class Edit:
    """A pair before re-encoding: uint8 RGB `before` and `after`, and bool `mask` (H, W) of `before`.

    `text` is the instruction, `summary` its short form. `homography` maps pixels of `after` to pixels of
    `before`; None stands for the identity. The mask is empty if the images are equal, or one is a part of the
    other.
    """

    family: str
    before: RGB
    after: RGB
    mask: Mask
    text: str
    summary: str
    is_global: bool
    homography: npt.NDArray[np.float64] | None = None

    @property
    def edit_type(self) -> str:
        """The name of the edit type in the manifest."""
        return family_of(self.family)[0]

    @property
    def verdict(self) -> str:
        """The class of the mask: `local`, `global` or `nothing`."""
        return "global" if self.is_global else "local" if self.mask.any() else "nothing"

    @property
    def visibility(self) -> float:
        """Mean CIE Lab dE of the change inside the mask; 0 for an empty mask."""
        if not self.mask.any():
            return 0.0
        return float(color_difference(self.before, self.after)[self.mask].mean())
