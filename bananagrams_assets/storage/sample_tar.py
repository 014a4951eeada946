"""Samples in a tar or a folder: files `<key>.<part>`, with the files of one key side by side.

This is the layout of WebDataset (https://github.com/webdataset/webdataset). The key ends at the first dot.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, cast

from ..errors import BananagramsError
from .digests import Data
from .hashed_files import HashingWriter, hashing_writer
from .store import Store

_READ = 2**18
_NAME = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")

SAMPLE_PARTS = ("input.jpg", "mask.png", "text.txt", "summary.txt", "meta.json")
"""The five files of a dataset sample, in the order of the tar."""


class SampleError(BananagramsError, ValueError):
    """A tar or a folder does not contain valid samples; the message gives the file and the reason."""


@dataclass(frozen=True)
class Sample:
    """A key, and the content of its parts by the name after the key's dot: `input.jpg`, `mask.png`, …"""

    key: str
    parts: dict[str, bytes]

    def part(self, name: str) -> bytes | None:
        """Return the part `name` in any format: `input` finds `input.jpg` or `input.webp`."""
        return next((data for part, data in self.parts.items() if part.partition(".")[0] == name), None)


def split_name(name: str) -> tuple[str, str]:
    """Split `a-1.input.jpg` into (`a-1`, `input.jpg`). Raises SampleError for any other form of name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise SampleError(
            f"{name!r} is not the name of a sample's part; expected KEY.PART, as in a-1.mask.png"
        )
    return match[1], match[2]


def read_samples(file: IO[bytes]) -> Iterator[Sample]:
    """Yield the samples of a tar in its order, reading it in one pass. Raises SampleError."""
    for key, members in groupby(_members(file), key=lambda member: member[0]):
        yield _sample(key, ((part, data) for _, part, data in members))


def read_folder(folder: Path) -> Iterator[Sample]:
    """Yield the samples of a folder in key order; hidden files are ignored. Raises SampleError."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    names = sorted((split_name(path.name), path) for path in files)
    for key, group in groupby(names, key=lambda item: item[0][0]):
        yield _sample(key, ((part, path.read_bytes()) for (_, part), path in group))


class SampleCursor:
    """Looks up samples by key in one forward pass over `samples`, which must be sorted by key."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self._samples = samples
        self._current: Sample | None = None

    def find(self, key: str) -> Sample | None:
        """Return the sample of `key`, or None if there is none. Raises SampleError.

        Successive calls must pass keys in ascending order; a key may repeat.
        """
        while self._current is None or self._current.key < key:
            self._current = next(self._samples, None)
            if self._current is None:
                return None
        return self._current if self._current.key == key else None

    def drain(self) -> None:
        """Read the remaining samples, so that a truncated tar raises SampleError."""
        self._current = None
        for _ in self._samples:
            continue


def join_by_key(left: Iterator[Sample], right: Iterator[Sample]) -> Iterator[tuple[Sample, Sample | None]]:
    """Yield each sample of `left` with the sample of the same key in `right`, or None if there is none.

    Both must be sorted by key. `right` is read to its end. Raises SampleError.
    """
    cursor = SampleCursor(right)
    for sample in left:
        yield sample, cursor.find(sample.key)
    cursor.drain()


class SampleWriter:
    """Writes a tar whose bytes depend only on the names and contents of its members."""

    def __init__(self, file: HashingWriter) -> None:
        self.file = file

    def add(self, key: str, part: str, data: Data) -> None:
        """Append `<key>.<part>`. Raises SampleError for an unsafe name."""
        for block in tar_member(key, part, data):
            self.file.write(block)


def tar_member(key: str, part: str, data: Data) -> tuple[bytes, Data, bytes]:
    """Return (header, content, padding) of `<key>.<part>` in a tar. Raises SampleError for an unsafe name."""
    name = f"{key}.{part}"
    split_name(name)
    # tarfile.TarFile would copy each content and keep every header in memory.
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(data), 0o644, 0
    return header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def end_of_tar(size: int) -> bytes:
    """Return the bytes that end a tar whose members take `size` bytes."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


@contextmanager
def sample_writer(store: Store, name: str) -> Iterator[SampleWriter]:
    """Create a tar in the store; `.file.info` is its FileInfo after the `with` block."""
    with hashing_writer(store, name) as file:
        yield SampleWriter(file)
        file.write(end_of_tar(file.tell()))


class _TailReader:
    """Keeps the last 1024 bytes read from a file, because a tar ends with two empty blocks of 512 bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.tail = data[-1024:] if len(data) >= 1024 else (self.tail + data)[-1024:]
        return data


def _members(file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    reader = _TailReader(file)
    try:
        # The default `bufsize` of 10 KB is slow.
        with tarfile.open(fileobj=cast("IO[bytes]", reader), mode="r|", bufsize=_READ) as tar:
            for member in tar:
                key, part = split_name(member.name)
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise SampleError(f"{member.name!r} is not a plain file")
                yield key, part, content.read()
                tar.members.clear()  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise SampleError(f"not a whole tar: {error}") from error
    # tarfile accepts a file that was cut between two members.
    while reader.read(2**16):
        continue
    if reader.tail.strip(b"\0"):
        raise SampleError("not a whole tar: its end is missing")


def _sample(key: str, parts: Iterator[tuple[str, bytes]]) -> Sample:
    contents: dict[str, bytes] = {}
    for part, data in parts:
        if part in contents:
            raise SampleError(f"{key}.{part} exists twice")
        contents[part] = data
    return Sample(key, contents)
