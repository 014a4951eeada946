"""Make pairs with exactly known homographies from photos, for `align_benchmark`.

The editor is that of the sample (`bananagrams_assets.sample.editor`): another size, a small movement, changed
tone and texture. Crops, zooms and extensions are applied around it, so the truth is a product of known
matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from bananagrams_assets.sample import editor, filters
from bananagrams_assets.sample.drawn_edits import make_drawn_edit
from bananagrams_assets.sample.photos import folder_photos, packaged_photos, read_photo
from bananagrams_assets.sample.visibility import Invisible
from bananagrams_assets.vision.geometry import Floats, image_size, resize_homography
from bananagrams_assets.vision.images import RGB, decode, encode_jpeg, resize

LOCAL = ("add", "remove", "replace", "recolor", "region material", "add text", "region scene", "keep object")
GLOBAL = ("tone", "vintage", "lighting", "season", "weather", "sketch")
GRAIN = 1.5
"""Standard deviation of the noise added to an enlarged photo, which lacks fine detail."""


@dataclass(frozen=True)
class MadePair:
    """One made pair; `truth` maps edited px to input px, None for unrelated images."""

    kind: str
    strength: float
    before: RGB
    after: RGB
    truth: Floats | None
    model: str = "homography"


def photos(half: str, folder: Path | None = None) -> list[Path]:
    """Return the photos of `folder` (default: the packaged ones) at `even` or `odd` positions, by name."""
    photos = folder_photos(folder, lambda message: None) if folder else packaged_photos()
    return [photo.path for photo in photos][half == "odd" :: 2]


def pairs(
    paths: Sequence[Path], number: int, side_px: int, plan: Mapping[str, Sequence[float]]
) -> Iterator[MadePair]:
    """Make a pair of each kind and strength of `plan` from photo `number`, with longest side `side_px`.

    The same arguments give the same pairs. Large edits and mismatched pairs show another photo, far from it
    in the list.
    """
    other_number = (number + len(paths) // 2) % len(paths)
    image, other = (_at_side(read_photo(paths[index]), side_px) for index in (number, other_number))
    for kind, strengths in plan.items():
        for strength in strengths:
            rng = np.random.default_rng([number, sorted(KINDS).index(kind), round(10 * strength)])
            before, after, truth = KINDS[kind](image, other, strength, rng)
            before, after = (decode(encode_jpeg(rgb, 92), rgb.size) for rgb in (before, after))
            model = kind.split()[0] if kind.endswith(" model") else "homography"
            yield MadePair(kind, strength, before, after, truth, model)


def _at_side(image: RGB, side_px: int) -> RGB:
    scale = side_px / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    if scale <= 1:
        return resize(image, size)
    large = cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4).astype(np.float32)
    grain = np.random.default_rng(0).standard_normal(large.shape, dtype=np.float32)
    return _to_uint8(large + GRAIN * grain)


def _to_uint8(image: Any) -> RGB:
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def _shift(x: float, y: float) -> Floats:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _window(image: RGB, share: float, rng: np.random.Generator) -> tuple[RGB, Floats]:
    """Return a crop with both sides `share` of the image's, and its homography (crop px → image px)."""
    height, width = image.shape[:2]
    w, h = max(1, round(width * share)), max(1, round(height * share))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return np.ascontiguousarray(image[y : y + h, x : x + w]), _shift(x, y)


Pair: TypeAlias = tuple[RGB, RGB, Floats | None]
Maker: TypeAlias = Callable[[RGB, RGB, float, np.random.Generator], Pair]


def _untouched(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    return image, *editor.reencode(image, strength, rng)


def _edited(families: Sequence[str]) -> Maker:
    def make(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
        for _ in range(30):  # some edits are invisible on some photos
            try:
                edit = make_drawn_edit(str(rng.choice(families)), image, rng)
            except Invisible:
                continue
            return edit.before, *editor.reencode(edit.after, strength, rng)
        return _untouched(image, other, strength, rng)

    return make


def _replace_part(image: RGB, other: RGB, low: float, high: float, rng: np.random.Generator) -> RGB:
    """Replace a share low..high by another photo: a half-plane, a box, or all but a disc."""
    share = rng.uniform(low, high)
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shape = rng.integers(3)
    if shape == 0:
        angle = rng.uniform(0, 2 * np.pi)
        field = x * np.cos(angle) + y * np.sin(angle)
    elif shape == 1:
        field = np.maximum(np.abs(x - rng.uniform(-0.4, 0.4)), np.abs(y - rng.uniform(-0.4, 0.4)))
    else:
        field = -np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
    replaced = field <= np.quantile(field, share)
    return np.where(replaced[..., None], resize(other, (width, height)), image)


def _large(low: float, high: float) -> Maker:
    def make(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
        return image, *editor.reencode(_replace_part(image, other, low, high, rng), strength, rng)

    return make


def _crop(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    part, shift = _window(image, rng.uniform(0.6, 0.9), rng)
    after, homography = editor.reencode(part, strength, rng)
    return image, after, shift @ homography


def _zoom(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    """Edit a part, then zoom by up to 1.5 at the input's size."""
    part, shift = _window(_replace_part(image, other, 0.1, 0.2, rng), 1 / rng.uniform(1.1, 1.5), rng)
    size = image_size(image)
    after, homography = editor.reencode(resize(part, size), strength, rng)
    return image, after, shift @ resize_homography(size, image_size(part)) @ homography


def _outpaint(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    part, shift = _window(image, rng.uniform(0.55, 0.85), rng)
    after, homography = editor.reencode(image, strength, rng)
    return part, after, np.linalg.inv(shift) @ homography


def _after(change: Callable[[RGB, np.random.Generator], RGB]) -> Maker:
    def make(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
        return image, *editor.reencode(change(image, rng), strength, rng)

    return make


def _grey(image: RGB, rng: np.random.Generator) -> RGB:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def _noisy(image: RGB, rng: np.random.Generator) -> RGB:
    return _to_uint8(image + rng.uniform(10, 30) * rng.standard_normal(image.shape, dtype=np.float32))


def _blocky(image: RGB, rng: np.random.Generator) -> RGB:
    return decode(encode_jpeg(image, int(rng.integers(8, 25))), image.size)


def _inverted(image: RGB, rng: np.random.Generator) -> RGB:
    return 255 - image


def _night(image: RGB, rng: np.random.Generator) -> RGB:
    return filters.GLOBAL_FILTERS["lighting"]["moonlight"](image, rng)


def _drawn(image: RGB, rng: np.random.Generator) -> RGB:
    """Apply a style that the sample does not have: a posterised image in arbitrary colours."""
    smooth = cv2.bilateralFilter(image, 9, 70, 9)
    levels = rng.permutation(np.linspace(30, 225, 6))
    colours = np.stack([np.roll(levels, k)[smooth[..., k] // 43] for k in range(3)], axis=2)
    return _to_uint8(0.6 * colours + 0.4 * smooth)


def _smooth(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    """Blur the photo so that it has little texture, and add grain."""
    blurred = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.004, 0.015) * max(image.shape)).astype(np.float32)
    soft = _to_uint8(128 + rng.uniform(0.3, 1) * (blurred - 128) + rng.standard_normal(image.shape))
    return soft, *editor.reencode(soft, strength, rng)


def _hard(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    """Crop to 55-75 %, replace 20-60 % and, in half of the cases, stylise."""
    changed = _replace_part(image, other, 0.2, 0.6, rng)
    if rng.random() < 0.5:
        style = rng.choice(["pencil sketch", "cartoon", "comic drawing"])
        changed = filters.GLOBAL_FILTERS["sketch"][str(style)](changed, rng)
    part, shift = _window(changed, rng.uniform(0.55, 0.75), rng)
    after, homography = editor.reencode(part, strength, rng)
    return image, after, shift @ homography


def _mismatched(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    after, _ = editor.reencode(other, strength, rng)
    return image, after, None


def _strip(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
    """Cut a panorama of ten to one."""
    height, width = image.shape[:2]
    tall = max(8, width // 10)
    top = int(rng.integers(max(1, height - tall)))
    part = np.ascontiguousarray(image[top : top + tall])
    return part, *editor.reencode(part, strength, rng)


def _model(name: str) -> Maker:
    """Apply the geometry of exactly one model, then change tone and add grain."""

    def make(image: RGB, other: RGB, strength: float, rng: np.random.Generator) -> Pair:
        width, height = image_size(image)
        size = round(width * rng.uniform(0.85, 1.2) / 8) * 8, round(height * rng.uniform(0.85, 1.2) / 8) * 8
        transform = np.eye(3)
        if name != "resize":
            zoom = rng.uniform(0.85, 0.98) * np.array([1, rng.uniform(0.99, 1.01)])
            transform[:2, :2] = np.diag(zoom)
            transform[:2, 2] = rng.uniform(0, 1, 2) * (1 - zoom) * [width, height]
        if name in ("affine", "homography"):
            angle = np.deg2rad(rng.choice([-1, 1]) * rng.uniform(0.4, 2))
            turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            transform[:2, :2] = transform[:2, :2] @ np.array(turn)
        if name == "homography":
            transform[2, :2] = rng.choice([-1, 1], 2) * rng.uniform(0.01, 0.04, 2) / max(width, height)
        truth = transform @ resize_homography(size, (width, height))
        truth /= truth[2, 2]
        after = cv2.warpPerspective(
            image,
            truth,
            size,
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        grain = rng.standard_normal(after.shape, dtype=np.float32)
        return image, _to_uint8(after * (1 + 0.1 * strength) + 6 * strength * grain), truth

    return make


KINDS: dict[str, Maker] = {
    "untouched": _untouched,
    "local": _edited(LOCAL),
    "half": _large(0.4, 0.65),
    "most": _large(0.65, 0.9),
    "global": _edited(GLOBAL),
    "crop": _crop,
    "zoom": _zoom,
    "outpaint": _outpaint,
    "grey": _after(_grey),
    "noisy": _after(_noisy),
    "jpeg": _after(_blocky),
    "inverted": _after(_inverted),
    "night": _after(_night),
    "drawn": _after(_drawn),
    "smooth": _smooth,
    "hard": _hard,
    "strip": _strip,
    "mismatched": _mismatched,
    "resize model": _model("resize"),
    "scale model": _model("scale"),
    "affine model": _model("affine"),
    "homography model": _model("homography"),
}
USUAL = ("untouched", "local", "half", "global", "crop", "zoom", "outpaint")
"""Typical editor outputs for the 35 edit types. The accuracy figures are of these."""

PLAN: dict[str, Sequence[float]] = {
    **dict.fromkeys(USUAL, (0, 1, 2)),
    **dict.fromkeys(("grey", "noisy", "jpeg", "inverted", "night", "drawn", "smooth", "strip"), (1,)),
    **dict.fromkeys(("most", "hard", "mismatched"), (1, 2)),
    **{kind: (0.5,) for kind in KINDS if kind.endswith(" model")},
}
FITTING_PLAN: dict[str, Sequence[float]] = {
    **dict.fromkeys(("most", "hard", "mismatched"), (0.5, 1, 2)),
    **dict.fromkeys(("drawn", "smooth", "half", "global", "outpaint", "local", "zoom"), (1, 2)),
}
"""Pairs for fitting the confidence; many of them fail."""
