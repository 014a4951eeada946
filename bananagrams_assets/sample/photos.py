"""Photos to edit: those in the wheels of dependencies, or a folder of photos."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ..errors import BananagramsError
from ..progress import Log
from ..vision.images import fit

RGB = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Rng = np.random.Generator
Box = tuple[int, int, int, int]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
LABELS = "objects.json"
"""Name of the file that lists the labelled objects of photos."""
TILE_SHARES = (1.0, 0.75, 0.55)
SMALLEST_SIDE_PX = 96


class PhotoError(BananagramsError, ValueError):
    """An unusable photo, label file or folder; the message names it and what to do."""


@dataclass(frozen=True)
class Photo:
    """One photo on disk, its origin, and its licence as its publisher states it."""

    name: str
    path: Path
    url: str
    author: str
    title: str
    license: str
    source: str


_UNRESTRICTED = "no known copyright restrictions"
_SKIMAGE_README = "see scikit-image's data/README.txt"
_MATPLOTLIB_README = "see matplotlib's sample_data/README.txt"

# (package, folder, URL of the folder) → (file, author, title, licence, origin) of each photo, as the package
# states them: the docstrings of skimage/data/_fetchers.py, sklearn/datasets/images/README.txt, matplotlib's
# sample_data/README.txt. Values that these do not state are left open. Gray-level textures serve as photos of
# walls and ground. Images without enough detail to align (moon, cell, clock) are excluded.
_PACKAGED: dict[tuple[str, str, str], tuple[tuple[str, str, str, str, str], ...]] = {
    (
        "skimage",
        "data",
        "https://raw.githubusercontent.com/scikit-image/scikit-image/v0.24.0/skimage/data/",
    ): (
        (
            "astronaut.png",
            "NASA Great Images database",
            "Eileen Collins, astronaut",
            f"{_UNRESTRICTED}; released into the public domain",
            "https://flic.kr/p/r9qvLn",
        ),
        ("brick.png", "CC0Textures", "Brick wall", "CC0", "https://cc0textures.com/view.php?tex=Bricks25"),
        (
            "camera.png",
            "Lav Varshney",
            "Camera",
            "CC0",
            "https://github.com/scikit-image/scikit-image/issues/3927",
        ),
        ("chelsea.png", "Stefan van der Walt", "Chelsea the cat", "CC0", _SKIMAGE_README),
        ("coffee.png", "Rachel Michetti", "Coffee cup, Pikolo Espresso Bar", "CC0", _SKIMAGE_README),
        (
            "coins.png",
            "Brooklyn Museum",
            "Greek coins from Pompeii",
            _UNRESTRICTED,
            "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
        ),
        (
            "grass.png",
            "linolafett",
            "Grass",
            "CC0",
            "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        ),
        ("gravel.png", "CC0Textures", "Gravel", "CC0", "https://cc0textures.com/view.php?tex=Gravel04"),
        (
            "hubble_deep_field.jpg",
            "NASA",
            "Hubble eXtreme Deep Field",
            "public domain, as NASA's guidelines say",
            "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        ),
        (
            "ihc.png",
            "Center for Microscopy And Molecular Imaging (CMMI)",
            "Colonic glands, immunohistochemical staining",
            _UNRESTRICTED,
            _SKIMAGE_README,
        ),
        (
            "motorcycle_left.png",
            "D. Scharstein et al., Middlebury 2014 stereo benchmark",
            "Motorcycle, left view",
            _SKIMAGE_README,
            "http://vision.middlebury.edu/stereo/data/scenes2014/",
        ),
        (
            "retina.jpg",
            "Mikael Häggström",
            "Human retina",
            "CC0 1.0",
            "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        ),
        (
            "rocket.jpg",
            "SpaceX",
            "Launch photo of DSCOVR on Falcon 9",
            "released in the public domain by SpaceX",
            "https://www.flickr.com/photos/spacexphotos/16511594820/in/photostream/",
        ),
    ),
    (
        "sklearn",
        "datasets/images",
        "https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.5.0/sklearn/datasets/images/",
    ): (
        (
            "china.jpg",
            "danielbuechele",
            "China",
            "CC BY 2.0",
            "https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/",
        ),
        (
            "flower.jpg",
            "vultilion",
            "Flower",
            "CC BY 2.0",
            "https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/",
        ),
    ),
    (
        "matplotlib",
        "mpl-data/sample_data",
        "https://raw.githubusercontent.com/matplotlib/matplotlib/v3.9.0/lib/matplotlib/mpl-data/sample_data/",
    ): (
        (
            "grace_hopper.jpg",
            "not stated; see matplotlib's sample_data/README.txt",
            "Grace Hopper",
            _MATPLOTLIB_README,
            _MATPLOTLIB_README,
        ),
    ),
}


def packaged_photos() -> list[Photo]:
    """Return the photos in scikit-image, scikit-learn and matplotlib, without importing the packages.

    Raises PhotoError if a package is not installed or lacks a photo.
    """
    photos = []
    for (package, folder, url), details in _PACKAGED.items():
        for file, author, title, licence, source in details:
            path = package_folder(package) / folder / file
            if not path.is_file():
                raise PhotoError(f"{path} is missing: reinstall {package}, or use a folder of photos")
            photos.append(Photo(path.stem, path, url + file, author, title, licence, source))
    return photos


def package_folder(package: str) -> Path:
    """Return the folder of a package without importing it. Raises PhotoError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PhotoError(f"the package {package} is not installed: the sample uses its files; install it")
    return Path(spec.submodule_search_locations[0])


def folder_photos(folder: Path, log: Log) -> list[Photo]:
    """Return every readable photo under `folder`, in path order; label images (see `labels_of`) are excluded.

    Unreadable photos are logged and skipped. Raises PhotoError if `folder` is not a folder or has no readable
    photo.
    """
    if not folder.is_dir():
        raise PhotoError(f"{folder} is not a folder")
    photos = []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    labels = {labels_of(path) for path in paths}
    for path in paths:
        if path in labels:
            continue
        try:
            read_photo(path)
        except PhotoError as error:
            log(f"skipped: {error}")
            continue
        name = path.relative_to(folder).as_posix()
        # A manifest's URL must be http(s). `.invalid` (RFC 2606) cannot exist as a domain. The digest gives
        # all copies of a photo one source, hence one split.
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        url = f"https://photos.invalid/{digest}"
        photos.append(Photo(name, path, url, "not stated", name, "not stated", name))
    if not photos:
        raise PhotoError(f"{folder}: no readable photo ({', '.join(sorted(SUFFIXES))})")
    return photos


def labels_of(path: Path) -> Path | None:
    """Return the label image of a photo, `NAME.png` beside `NAME.jpg`, or None.

    A PNG is a label image only if `objects.json` is in its folder or in the parent folder.
    """
    labels = path.with_suffix(".png")
    listed = any((folder / LABELS).is_file() for folder in (path.parent, path.parent.parent))
    return labels if listed and path.suffix.lower() != ".png" and labels.is_file() else None


def read_photo(path: Path) -> RGB:
    """Decode a photo to uint8 RGB (H, W, 3), with EXIF rotation applied and transparency over white.

    Raises PhotoError, which names the file, if it is unreadable or a side is below SMALLEST_SIDE_PX.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.new("RGB", rgba.size, "white")
                image.paste(rgba, mask=rgba.getchannel("A"))
            rgb = np.ascontiguousarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path}: unreadable photo ({error})") from None
    if min(rgb.shape[:2]) < SMALLEST_SIDE_PX:
        raise PhotoError(f"{path}: a side is shorter than {SMALLEST_SIDE_PX} px")
    return rgb


def tile_boxes(width: int, height: int, side_px: int) -> list[Box]:
    """Return overlapping tiles (x, y, w, h): the whole image, then crops that need no enlarging."""
    boxes: list[Box] = []
    for share in TILE_SHARES:
        w, h = round(width * share), round(height * share)
        if share < 1 and max(w, h) < 0.9 * side_px:
            break
        steps = 1 if share == 1 else 2 if share > 0.6 else 3
        for row in range(steps):
            for column in range(steps):
                x = round((width - w) * column / max(steps - 1, 1))
                y = round((height - h) * row / max(steps - 1, 1))
                boxes.append((x, y, w, h))
    return boxes


def cut_tile(rgb: RGB, box: Box, side_px: int) -> RGB:
    """Return the pixels of `box`, reduced by area averaging to a longest side of at most `side_px`."""
    x, y, w, h = box
    return np.ascontiguousarray(fit(rgb[y : y + h, x : x + w], side_px))


def tile_url(photo: Photo, box: Box) -> str:
    """Return the photo's URL with the tile as a media fragment (W3C Media Fragments URI 1.0, `#xywh=`)."""
    x, y, w, h = box
    return f"{photo.url}#xywh={x},{y},{w},{h}"
