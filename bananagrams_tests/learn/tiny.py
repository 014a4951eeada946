"""A dataset and a profile that train in seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bananagrams_assets.config import Profile
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.sample_tar import sample_writer
from bananagrams_assets.storage.store import Store
from bananagrams_assets.storage.tables import SHARDS_COLUMNS, write_table
from bananagrams_assets.vision.images import encode_jpeg, encode_png_mask

HALVES = {
    "left": np.s_[:, :24],
    "right": np.s_[:, 24:],
    "top": np.s_[:20, :],
    "bottom": np.s_[20:, :],
}
HEIGHT, WIDTH = 40, 48


def profile(**overrides: Any) -> Profile:
    """Return the demo profile at 32 px with a narrow network; `train__side_px=64` sets train.side_px."""
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
    folder: Path, counts: Mapping[str, int] | None = None, mask_meta: Mapping[str, Any] | None = None
) -> Store:
    """Write a dataset of noise images of 48 x 40 px, "Tint the left half." etc., with two shards per split.

    `mask_meta` updates `mask` in each sample's meta.json.
    """
    store = open_store(str(folder))
    for split, count in (counts or {"train": 24, "dev": 8, "test": 8}).items():
        rng = np.random.default_rng(len(split) + count)
        shards = []
        for number in range(2):
            indices = range(number * count // 2, (number + 1) * count // 2)
            shards.append(
                write_shard(
                    store,
                    f"{split}-{number:05d}",
                    {
                        f"{split}-{index:03d}": sample_parts(index, rng, mask_meta=mask_meta)
                        for index in indices
                    },
                )
            )
        index_of_split = {"split": split, "samples": count, "shards": shards}
        store.write(f"index/{split}.json", json.dumps(index_of_split).encode())
    return store


def sample_parts(
    index: int, rng: np.random.Generator, overlap: Any = None, mask_meta: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return the five files of one sample."""
    side = list(HALVES)[index % len(HALVES)]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[HALVES[side]] = True
    image = np.full((HEIGHT, WIDTH, 3), rng.integers(40, 200, 3), np.uint8)
    image += rng.integers(0, 40, image.shape).astype(np.uint8)
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
            **(mask_meta or {}),
        },
    }
    return {
        "input.jpg": encode_jpeg(image, 95),
        "mask.png": encode_png_mask(mask, one_bit=False),
        "text.txt": text.encode(),
        "summary.txt": text.encode(),
        "meta.json": json.dumps(meta).encode(),
    }


def write_shard(store: Store, shard: str, samples: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """Write a tar of samples in key order and its table; return the shard's entry in an index."""
    rows = []
    with sample_writer(store, paths.shard_tar(shard)) as tar:
        for key, parts in sorted(samples.items()):
            location = {
                "offset": tar.file.tell(),
                "part_bytes": [len(data) for data in parts.values()],
                "sha256": [hashlib.sha256(data).hexdigest() for data in parts.values()],
            }
            for part, data in parts.items():
                tar.add(key, part, data)
            rows.append({"key": key, "status": "written", **_row(parts["meta.json"]), **location})
    write_table(store, paths.shard_table(shard), SHARDS_COLUMNS, rows)
    info = tar.file.info
    return {
        "shard": shard,
        "name": paths.shard_tar(shard),
        "samples": len(rows),
        "bytes": info.bytes,
        "sha256": info.sha256,
    }


def _row(meta_json: bytes) -> dict[str, Any]:
    meta = json.loads(meta_json)
    mask = meta["mask"]
    return {
        "edit_type": meta["edit_type"],
        "scope": meta["scope"],
        "verdict": "global" if mask["is_global"] else "local",
        "area": mask["area"],
        "confidence": mask["confidence"],
    }
