"""A dataset and a profile small enough to train on in seconds."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bananagrams_assets.config import Profile
from bananagrams_assets.data.store import Store, open_store
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.vision.images import encode_jpeg, encode_png_mask

HALVES = {
    "left": np.s_[:, :24],
    "right": np.s_[:, 24:],
    "top": np.s_[:20, :],
    "bottom": np.s_[20:, :],
}
HEIGHT, WIDTH = 40, 48


def profile(**overrides: Any) -> Profile:
    """The demo profile at 32 px with a narrow network; `train__side_px=64` overrides train.side_px."""
    settings = {
        "model.fusion": {"width": 32, "heads": 2, "layers": 2, "strides": [32, 16]},
        "model.decoder_channels": [32, 16, 16, 8],
        "model.text_width": 32,
        "model.text_context": 12,
        "train.side_px": 32,
        "train.batch_size": 8,
        "train.max_steps": 4,
        "train.warmup_steps": 2,
        "train.precision": "float32",
        "train.log_every_steps": 2,
        "train.evaluate_every_steps": 2,
        "train.checkpoint_every_steps": 2,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return load_profile("demo", settings).profile


def make_dataset(
    folder: Path, counts: Mapping[str, int] | None = None, every: Mapping[str, Any] | None = None
) -> Store:
    """Noise pictures of 48 x 40 px, "Tint the left half." and its like, in two shards a split.

    `every` replaces parts of the `mask` in each sample's meta.
    """
    store = open_store(str(folder))
    for split, count in (counts or {"train": 24, "dev": 8, "test": 8}).items():
        rng = np.random.default_rng(len(split) + count)
        shards = []
        for number in range(2):
            indices = range(number * count // 2, (number + 1) * count // 2)
            name = f"shards/{split}/{split}-{number:05d}.tar"
            data = shard({f"{split}-{index:03d}": sample_parts(index, rng, every=every) for index in indices})
            store.write(name, data)
            shards.append(
                {
                    "shard": f"{split}-{number:05d}",
                    "name": name,
                    "samples": len(indices),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
        index_of_split = {"split": split, "samples": count, "shards": shards}
        store.write(f"index/{split}.json", json.dumps(index_of_split).encode())
    return store


def sample_parts(
    index: int, rng: np.random.Generator, overlap: Any = None, every: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """The five files of one sample."""
    side = list(HALVES)[index % len(HALVES)]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[HALVES[side]] = True
    picture = np.full((HEIGHT, WIDTH, 3), rng.integers(40, 200, 3), np.uint8)
    picture += rng.integers(0, 40, picture.shape).astype(np.uint8)
    text = f"Tint the {side} half."
    corners = [[-0.5, -0.5], [WIDTH - 0.5, -0.5], [WIDTH - 0.5, HEIGHT - 0.5], [-0.5, HEIGHT - 0.5]]
    meta = {
        "edit_type": "Change an object's attribute",
        "scope": "local",
        "overlap": corners if overlap is None else overlap,
        "mask": {
            "area": 0.5,
            "components": 1,
            "confidence": 0.5 + index % 2 * 0.4,
            "is_global": index % 8 == 7,
            **(every or {}),
        },
    }
    return {
        "input.jpg": encode_jpeg(picture, 95),
        "mask.png": encode_png_mask(mask, one_bit=False),
        "text.txt": text.encode(),
        "summary.txt": text.encode(),
        "meta.json": json.dumps(meta).encode(),
    }


def shard(samples: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """A tar of samples in key order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, parts in sorted(samples.items()):
            for part, data in parts.items():
                header = tarfile.TarInfo(f"{key}.{part}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return file.getvalue()
