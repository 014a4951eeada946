"""From bytes to a mask, with the pictures that turn up on the web beside ordinary ones."""

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


def _bytes(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _through(before: bytes, after: bytes, scope: str = "local") -> tuple[Alignment, EditMask | None]:
    """Decode, align and mask; everything that comes out is finite."""
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
    found = edit_mask(first, second, alignment.homography, alignment.overlap, MaskSettings(), scope)
    assert found.mask.shape == found.difference.shape == first.shape[:2]
    assert np.isfinite(found.difference).all()
    assert np.isfinite([found.area, found.confidence, found.noise]).all()
    assert 0 <= found.confidence <= 1
    return alignment, found


def _edited(seed: int = 4, width: int = 240, height: int = 180) -> tuple[RGB, RGB, Mask]:
    before = textured(seed, width, height)
    truth = box(before, 0.35, 0.3, 0.65, 0.7)
    after = np.where(truth[..., None], np.array([230, 40, 120]), before).astype(np.uint8)
    return before, after, truth


def _finds_the_edit(before: bytes, after: bytes, truth: Mask) -> None:
    alignment, found = _through(before, after)
    assert alignment.accepted, alignment.reason
    assert found is not None
    assert iou(found.mask, truth) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 3)])
def test_images_of_a_pixel_or_a_line(size: tuple[int, int]) -> None:
    tiny = _bytes(Image.new("RGB", size, (200, 30, 30)))
    large = _bytes(Image.fromarray(textured(1)))
    for before, after in ((tiny, tiny), (tiny, large), (large, tiny)):
        _through(before, after)


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (90, 120, 30)])
def test_images_of_one_colour(color: tuple[int, int, int]) -> None:
    plain = _bytes(Image.new("RGB", (160, 120), color))
    other = _bytes(Image.new("RGB", (176, 128), (40, 40, 200)))
    _, found = _through(plain, plain)
    assert found is not None
    assert not found.mask.any()
    _through(plain, other)
    _through(plain, _bytes(Image.fromarray(textured(1))))


def test_sixteen_bit_colour() -> None:
    before, after, truth = _edited()
    done, deep = cv2.imencode(".png", cv2.cvtColor(before, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    assert done
    _finds_the_edit(deep.tobytes(), _bytes(Image.fromarray(after)), truth)


def test_sixteen_bit_grey() -> None:
    grey = textured(4)[..., 1]
    truth = box(textured(4), 0.35, 0.3, 0.65, 0.7)
    changed = np.where(truth, 255 - grey // 2, grey)
    images = [Image.fromarray(image.astype(np.uint16) * 257) for image in (grey, changed)]
    _through(_bytes(images[0]), _bytes(images[1]))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "YCbCr", "1"])
def test_other_colour_models(mode: str) -> None:
    before, after, truth = _edited()
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    options = {"quality": 97} if form == "JPEG" else {}
    converted = [_bytes(Image.fromarray(image).convert(mode), form, **options) for image in (before, after)]
    alignment, found = _through(converted[0], converted[1])
    if mode != "1":  # dithering drowns what was there
        assert alignment.accepted, alignment.reason
        assert found is not None
        assert iou(found.mask, truth) > 0.6


def test_grey_before_and_colour_after_is_an_edit_of_everything() -> None:
    image = Image.fromarray(textured(4))
    _, found = _through(_bytes(image.convert("L")), _bytes(image), "global")
    assert found is not None
    assert found.is_global


def test_what_is_transparent_lies_over_white() -> None:
    before, _, truth = _edited()
    alpha = np.where(truth, 0, 255).astype(np.uint8)
    cut = Image.fromarray(np.dstack([before, alpha]))
    _finds_the_edit(_bytes(Image.fromarray(before)), _bytes(cut), truth)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_photograph_turned_by_exif_alone(orientation: int) -> None:
    before, after, truth = _edited()
    lying = np.rot90(before, {3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    photograph = _bytes(Image.fromarray(np.ascontiguousarray(lying)), "JPEG", quality=97, exif=exif)
    assert decode(photograph, MAX_PIXELS).shape == before.shape
    _finds_the_edit(photograph, _bytes(Image.fromarray(after)), truth)


@pytest.mark.parametrize("size", [(900, 90), (90, 900)])
def test_a_panorama_of_ten_to_one(size: tuple[int, int]) -> None:
    before, after, truth = _edited(5, *size)
    _finds_the_edit(_bytes(Image.fromarray(before)), _bytes(Image.fromarray(after)), truth)


def test_a_huge_image_is_masked_at_its_own_size() -> None:
    before, after, truth = _edited(6, 400, 300)
    scale = 9
    huge = [
        _bytes(
            Image.fromarray(image).resize((400 * scale, 300 * scale), Image.Resampling.BICUBIC),
            "JPEG",
            quality=95,
        )
        for image in (before, after)
    ]
    _, found = _through(huge[0], huge[1])
    assert found is not None
    assert found.mask.shape == (300 * scale, 400 * scale)
    assert iou(found.mask, cv2.resize(truth.astype(np.uint8), (400 * scale, 300 * scale)) > 0) > 0.9


def test_a_image_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode(_bytes(Image.new("RGB", (300, 300))), 10_000)


def test_images_with_nothing_in_common_are_refused_in_words() -> None:
    alignment, found = _through(_bytes(Image.fromarray(textured(1))), _bytes(Image.fromarray(textured(2))))
    assert found is None
    assert alignment.confidence == 0


@pytest.mark.parametrize("scope", ["local", "global", "geometric", ""])
def test_pure_noise_gives_finite_numbers(scope: str) -> None:
    rng = np.random.default_rng(0)
    noisy = [_bytes(Image.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8))) for _ in range(2)]
    _through(noisy[0], noisy[1], scope)
    _through(noisy[0], noisy[0], scope)
