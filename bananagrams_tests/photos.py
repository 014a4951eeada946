"""Small synthetic photos, manifests and profiles for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bananagrams_assets.config import Profile
from bananagrams_assets.profiles import validate
from bananagrams_assets.vision.images import RGB, encode_jpeg

SIZE = (192, 144)


def make_photo(seed: int, size: tuple[int, int] = SIZE) -> RGB:
    """Return smooth noise with bright discs, uint8 (H, W, 3): enough texture and structure to align."""
    rng = np.random.default_rng(seed)
    width, height = size
    image: NDArray[Any] = np.zeros((height, width, 3), np.float32)
    for scale, weight in ((6, 0.5), (20, 0.35), (60, 0.15)):
        grid = rng.random((max(2, height * scale // width), scale, 3), np.float32)
        image += weight * cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    canvas = np.ascontiguousarray(np.clip(image * 255, 0, 255).astype(np.uint8))
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.circle(canvas, (x, y), int(rng.integers(3, 10)), color, -1, cv2.LINE_AA)
    return canvas


def edited(photo: RGB) -> RGB:
    """Return the photo with a magenta rectangle in its center."""
    image = photo.copy()
    height, width = image.shape[:2]
    image[height // 3 : height * 2 // 3, width // 3 : width * 2 // 3] = (230, 20, 200)
    return image


def png(rgb: RGB) -> bytes:
    success, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert success
    return data.tobytes()


def record(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a record as in the public manifest; a change to `...` removes the field."""
    content = {
        "open_image_input_url": f"https://photos.example.org/{number}_o.jpg",
        "text": "Remove the red flag from the upper right.",
        "output_image": f"images/positive-edit/{number}.png",
        "edit_type": "Remove an existing object",
        "summarized_text": "Flag removed.",
        **changes,
    }
    return {name: value for name, value in content.items() if value is not ...}


def write_manifest(folder: Path, records: Iterable[Mapping[str, Any] | str], name: str = "sft.jsonl") -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def local_pairs(folder: Path, count: int) -> Path:
    """Write pairs of images and their manifest into a folder; return the manifest's path."""
    records = []
    for number in range(count):
        photo = make_photo(number)
        before, after = folder / f"photos/{number}.jpg", folder / f"images/positive-edit/{number}.png"
        for path in (before, after):
            path.parent.mkdir(parents=True, exist_ok=True)
        before.write_bytes(encode_jpeg(photo, 95))
        after.write_bytes(png(edited(photo)))
        records.append(record(number, local_input_image=f"photos/{number}.jpg"))
    return write_manifest(folder, records)


def profile_of(*manifests: object, **sections: dict[str, Any]) -> Profile:
    """Return a profile with small shards and fast retries; `fetch={...}` changes settings of a section."""
    content: dict[str, Any] = {
        "source": {"manifests": [str(manifest) for manifest in manifests] or ["sample:"]},
        "fetch": {"concurrency": 4, "attempts": 3, "timeout_s": 2.0, "backoff_s": 0.01},
        "splits": {
            "train": {"ratio": 0.6, "shards": 2},
            "dev": {"ratio": 0.2, "shards": 1},
            "test": {"ratio": 0.2, "shards": 1},
        },
        "mask": {"working_side_px": None},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return validate(content)


def one_shard(*manifests: object, **sections: dict[str, Any]) -> Profile:
    """Return a profile as `profile_of`, with every record in `train-00000`."""
    splits = {
        "train": {"ratio": 1.0, "shards": 1},
        "dev": {"ratio": 0.0, "shards": 1},
        "test": {"ratio": 0.0, "shards": 1},
    }
    return profile_of(*manifests, splits=splits, **sections)


def quiet(line: str) -> None:
    """Ignore a line of progress."""
