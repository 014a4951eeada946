"""Decode, align and mask unusual images, as they occur on the web."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from bananagrams_assets.config import AlignSettings, MaskSettings
from bananagrams_assets.vision.align import Alignment, align
from bananagrams_assets.vision.images import RGB, ImageError, Mask, decode
from bananagrams_assets.vision.mask import EditMask, edit_mask

from .images import box, iou, textured

MAX_PIXELS = 100_000_000


def _bytes(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _process(before: bytes, after: bytes, scope: str = "local") -> tuple[Alignment, EditMask | None]:
    """Decode, align and mask a pair; check that all results are finite."""
    first, second = decode(before, MAX_PIXELS), decode(after, MAX_PIXELS)
    alignment = align(first, second, AlignSettings())
    for numbers in (alignment.homography, alignment.overlap):
        assert np.isfinite(numbers).all()
    for number in (
        alignment.residual_px,
        alignment.overlap_share,
        alignment.confidence,
        alignment.inlier_ratio,
    ):
        assert np.isfinite(number)
    assert 0 <= alignment.confidence <= 1
    if not alignment.accepted:
        assert alignment.reason
        return alignment, None
    mask = edit_mask(first, second, alignment.homography, alignment.overlap, MaskSettings(), scope)
    assert mask.mask.shape == mask.difference.shape == first.shape[:2]
    assert np.isfinite(mask.difference).all()
    assert np.isfinite([mask.area, mask.confidence, mask.noise]).all()
    assert 0 <= mask.confidence <= 1
    return alignment, mask


def _edited_pair(seed: int = 4, width: int = 240, height: int = 180) -> tuple[RGB, RGB, Mask]:
    before = textured(seed, width, height)
    truth = box(before, 0.35, 0.3, 0.65, 0.7)
    after = np.where(truth[..., None], np.array([230, 40, 120]), before).astype(np.uint8)
    return before, after, truth


def _assert_edit_is_found(before: bytes, after: bytes, truth: Mask) -> None:
    alignment, mask = _process(before, after)
    assert alignment.accepted, alignment.reason
    assert mask is not None
    assert iou(mask.mask, truth) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3)])
def test_one_pixel_and_one_line_images(size: tuple[int, int]) -> None:
    tiny = _bytes(Image.new("RGB", size, (200, 30, 30)))
    large = _bytes(Image.fromarray(textured(1)))
    for before, after in ((tiny, tiny), (tiny, large), (large, tiny)):
        _process(before, after)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (90, 120, 30)])
def test_uniform_images(color: tuple[int, int, int]) -> None:
    plain = _bytes(Image.new("RGB", (160, 120), color))
    other = _bytes(Image.new("RGB", (176, 128), (40, 40, 200)))
    _, mask = _process(plain, plain)
    assert mask is not None
    assert not mask.mask.any()
    _process(plain, other)
    _process(plain, _bytes(Image.fromarray(textured(1))))


def test_sixteen_bit_colour() -> None:
    before, after, truth = _edited_pair()
    done, deep = cv2.imencode(".png", cv2.cvtColor(before, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    assert done
    _assert_edit_is_found(deep.tobytes(), _bytes(Image.fromarray(after)), truth)


def test_sixteen_bit_grey() -> None:
    grey = textured(4)[..., 1]
    truth = box(textured(4), 0.35, 0.3, 0.65, 0.7)
    changed = np.where(truth, 255 - grey // 2, grey)
    images = [Image.fromarray(image.astype(np.uint16) * 257) for image in (grey, changed)]
    _process(_bytes(images[0]), _bytes(images[1]))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "YCbCr", "1"])
def test_other_colour_models(mode: str) -> None:
    before, after, truth = _edited_pair()
    image_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    options = {"quality": 97} if image_format == "JPEG" else {}
    converted = [
        _bytes(Image.fromarray(image).convert(mode), image_format, **options) for image in (before, after)
    ]
    alignment, mask = _process(converted[0], converted[1])
    if mode != "1":  # dithering hides the content
        assert alignment.accepted, alignment.reason
        assert mask is not None
        assert iou(mask.mask, truth) > 0.6


def test_colourisation_is_a_global_edit() -> None:
    image = Image.fromarray(textured(4))
    _, mask = _process(_bytes(image.convert("L")), _bytes(image), "global")
    assert mask is not None
    assert mask.is_global


def test_transparent_pixels_are_white() -> None:
    before, _, truth = _edited_pair()
    alpha = np.where(truth, 0, 255).astype(np.uint8)
    cut = Image.fromarray(np.dstack([before, alpha]))
    _assert_edit_is_found(_bytes(Image.fromarray(before)), _bytes(cut), truth)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied(orientation: int) -> None:
    before, after, truth = _edited_pair()
    lying = np.rot90(before, {3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    photo = _bytes(Image.fromarray(np.ascontiguousarray(lying)), "JPEG", quality=97, exif=exif)
    assert decode(photo, MAX_PIXELS).shape == before.shape
    _assert_edit_is_found(photo, _bytes(Image.fromarray(after)), truth)


@pytest.mark.parametrize("size", [(900, 90), (90, 900)])
def test_ten_to_one_panorama(size: tuple[int, int]) -> None:
    before, after, truth = _edited_pair(5, *size)
    _assert_edit_is_found(_bytes(Image.fromarray(before)), _bytes(Image.fromarray(after)), truth)


def test_large_image_is_masked_at_full_size() -> None:
    before, after, truth = _edited_pair(6, 400, 300)
    scale = 9
    huge = [
        _bytes(
            Image.fromarray(image).resize((400 * scale, 300 * scale), Image.Resampling.BICUBIC),
            "JPEG",
            quality=95,
        )
        for image in (before, after)
    ]
    _, mask = _process(huge[0], huge[1])
    assert mask is not None
    assert mask.mask.shape == (300 * scale, 400 * scale)
    assert iou(mask.mask, cv2.resize(truth.astype(np.uint8), (400 * scale, 300 * scale)) > 0) > 0.9


def test_image_over_the_pixel_limit_is_rejected() -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode(_bytes(Image.new("RGB", (300, 300))), 10_000)


def test_unrelated_images_are_rejected_with_a_reason() -> None:
    alignment, mask = _process(_bytes(Image.fromarray(textured(1))), _bytes(Image.fromarray(textured(2))))
    assert mask is None
    assert alignment.confidence == 0


@pytest.mark.parametrize("scope", ["local", "global", "geometric", ""])
def test_noise_gives_finite_numbers(scope: str) -> None:
    rng = np.random.default_rng(0)
    noisy = [_bytes(Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))) for _ in range(2)]
    _process(noisy[0], noisy[1], scope)
    _process(noisy[0], noisy[0], scope)
