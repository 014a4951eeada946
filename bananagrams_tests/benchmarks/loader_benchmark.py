"""Images/s per core of the training loader, compared with webdataset's plain decoding of the same shard.

python -m bananagrams_tests.benchmarks.loader_benchmark [--side 512] [--samples 256]

The training loader reads the tar by random access and returns uint8 batches, augmented or not. The reference
streams it with `decode("torchrgb")`, which returns float tensors. Both run alternately in this process on
one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset

from bananagrams_assets.config import AugmentSettings
from bananagrams_assets.learn.dataset import StepSampler, TrainingSet, data_loader, open_split
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store
from bananagrams_assets.vision.images import encode_jpeg, encode_png_mask
from bananagrams_tests.learn.tiny import write_shard

BATCH = 32


def make_shard(folder: Path, samples: int, side: int) -> Store:
    """Write a dataset of one train shard: smooth noise images of `side` px with ellipses as masks."""
    rng = np.random.default_rng(0)
    corners = [[-0.5, -0.5], [side - 0.5, -0.5], [side - 0.5, side - 0.5], [-0.5, side - 0.5]]
    parts = {}
    for index in range(samples):
        coarse = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.integers(0, 24, image.shape), 0, 255).astype(np.uint8)
        mask = np.zeros((side, side), np.uint8)
        center, axes = rng.integers(side // 4, 3 * side // 4, 2), rng.integers(side // 16, side // 4, 2)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        meta = {
            "edit_type": "Remove an existing object",
            "scope": "local",
            "overlap": corners,
            "mask": {"area": float(mask.mean()), "confidence": 1.0, "is_global": False},
        }
        parts[f"s{index:06d}"] = {
            "input.jpg": encode_jpeg(image, 95),
            "mask.png": encode_png_mask(mask.astype(bool), one_bit=False),
            "text.txt": f"Remove thing {index}.".encode(),
            "summary.txt": b"Thing removed.",
            "meta.json": json.dumps(meta).encode(),
        }
    store = open_store(str(folder))
    entry = write_shard(store, "train-00000", parts)
    index_of_split = {"split": "train", "samples": samples, "shards": [entry]}
    store.write("index/train.json", json.dumps(index_of_split).encode())
    return store


def main() -> None:
    """Print images/s of each loader."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_shard(Path(folder), arguments.samples, arguments.side)
        tar = Path(folder) / "shards/train/train-00000.tar"
        with open_split(store, "train") as split:

            def ours(settings: AugmentSettings | None) -> Callable[[], int]:
                data = TrainingSet(split, arguments.side, settings, 0, cache=False)
                sampler = StepSampler(len(split), BATCH, 0, range(len(split) // BATCH))
                return lambda: sum(len(batch.keys) for batch in data_loader(data, sampler, 0))

            def reference() -> int:
                data = webdataset.WebDataset(str(tar), shardshuffle=False).decode("torchrgb")
                pairs = data.to_tuple("input.jpg", "mask.png", "text.txt", "meta.json")
                return sum(len(batch[0]) for batch in pairs.batched(BATCH))

            loaders = {
                "webdataset torchrgb": reference,
                "ours": ours(None),
                "ours, augmented": ours(AugmentSettings()),
            }
            rates: dict[str, list[float]] = {name: [] for name in loaders}
            for turn in range(arguments.rounds + 1):
                for name, read in loaders.items():
                    start = time.process_time()
                    count = read()
                    if turn:  # the first round is a warm-up
                        rates[name].append(count / (time.process_time() - start))
    base = statistics.median(rates["webdataset torchrgb"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(
            f"{name}: {rate:.0f} images/s per core at {arguments.side} px; "
            f"{rate / base:.2f} times webdataset's"
        )


if __name__ == "__main__":
    main()
