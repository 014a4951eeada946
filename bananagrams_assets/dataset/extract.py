"""Extract a shard to plain files."""

from __future__ import annotations

from pathlib import Path

from ..storage.sample_tar import SampleError, read_samples


def extract_shard(tar: Path, folder: Path) -> int:
    """Write every part of every sample of a shard to `folder`. Returns the number of samples.

    Accepts only names of letters, digits, `-`, `_` and dots, so that no name is a path. Raises SampleError,
    which names the shard, and OSError.
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
