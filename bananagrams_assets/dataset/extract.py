"""A shard as plain files in a folder, to look at and to try things on."""

from __future__ import annotations

from pathlib import Path

from ..storage.sample_tar import SampleError, read_samples


def extract_shard(tar: Path, folder: Path) -> int:
    """Write every part of every sample of a shard into `folder`; returns how many samples.

    Each name is checked before it is written: letters, digits, `-`, `_` and dots, never a path. Raises
    SampleError that names the shard, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with tar.open("rb") as file:
        try:
            for sample in read_samples(file):
                for part, data in sample.parts.items():
                    (folder / f"{sample.key}.{part}").write_bytes(data)
                count += 1
        except SampleError as error:
            raise SampleError(f"{tar}: {error}") from error
    return count
