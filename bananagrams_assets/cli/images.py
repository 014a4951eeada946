"""Image files that commands read and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Profile

if TYPE_CHECKING:
    from ..vision.images import RGB, Mask


def read_image(path: str, profile: Profile) -> RGB:
    """Decode an image file. Raises ImageError with the file's name."""
    from ..vision.images import ImageError, decode

    try:
        return decode(Path(path).read_bytes(), profile.fetch.max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def write_overlay(path: str, image: RGB, mask: Mask) -> None:
    """Write the mask drawn over the image as a JPEG file."""
    from ..vision.images import encode_jpeg
    from ..vision.overlay import mask_overlay

    Path(path).write_bytes(encode_jpeg(mask_overlay(image, mask, max(image.shape)), 90))
    click.echo(path)
