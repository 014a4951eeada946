"""A shard as plain files in a folder, to look at and to try things on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .samples import read_samples
from .store import Store


def extract_shard(store: Store, name: str, folder: Path, say: Callable[[str], None] | None = None) -> int:
    """Write every part of every sample of a shard tar into `folder`; returns how many samples.

    Names are checked before anything is written: letters, digits, `-`, `_` and dots, never a path.
    Raises SampleError, StoreError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with store.open(name) as file:
        for sample in read_samples(file):
            for part, data in sample.parts.items():
                (folder / f"{sample.key}.{part}").write_bytes(data)
            count += 1
    if say is not None:
        say(f"{count} samples of {store.describe(name)} extracted into {folder}")
    return count
