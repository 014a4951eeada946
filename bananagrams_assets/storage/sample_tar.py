"""Samples in a tar or a folder: files `<key>.<part>`, those of one key side by side (the WebDataset layout).

The key ends at the first dot, as in WebDataset (https://github.com/webdataset/webdataset).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, TypeAlias, cast

from ..errors import BananagramsError
from .files import HashingWriter, hashing_writer
from .store import Store

Data: TypeAlias = "bytes | memoryview"

_READ = 2**18
_NAME = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")


class SampleError(BananagramsError, ValueError):
    """A tar or a folder that holds no samples as it should; the message names the file and why."""


@dataclass(frozen=True)
class Sample:
    """One key and its parts by what follows the key's dot: `input.jpg`, `mask.png`, …"""

    key: str
    parts: dict[str, bytes]

    def part(self, name: str) -> bytes | None:
        """The part called `name`, whatever its format: `input` finds `input.jpg` or `input.webp`."""
        return next((data for part, data in self.parts.items() if part.partition(".")[0] == name), None)


def split_name(name: str) -> tuple[str, str]:
    """`a-1.input.jpg` → (`a-1`, `input.jpg`). Raises SampleError for any name that is not of this form."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise SampleError(
            f"{name!r} is not the name of a sample's part: expected KEY.PART, as in a-1.mask.png"
        )
    return match[1], match[2]


def read_samples(file: IO[bytes]) -> Iterator[Sample]:
    """The samples of a tar, in its order, read in one pass and one at a time. Raises SampleError."""
    for key, members in groupby(_members(file), key=lambda member: member[0]):
        yield _sample(key, ((part, data) for _, part, data in members))


def read_folder(folder: Path) -> Iterator[Sample]:
    """The samples of a folder, in key order; hidden files are none. Raises SampleError."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    names = sorted((split_name(path.name), path) for path in files)
    for key, group in groupby(names, key=lambda item: item[0][0]):
        yield _sample(key, ((part, path.read_bytes()) for (_, part), path in group))


class SampleWriter:
    """Writes a tar whose bytes depend on names and contents alone."""

    def __init__(self, file: HashingWriter) -> None:
        self.file = file

    def add(self, key: str, part: str, data: Data) -> None:
        """Append `<key>.<part>`. Raises SampleError for an unsafe name."""
        for block in tar_member(key, part, data):
            self.file.write(block)

    def close(self) -> None:
        self.file.write(end_of_tar(self.file.tell()))


def tar_member(key: str, part: str, data: Data) -> tuple[bytes, Data, bytes]:
    """`<key>.<part>` in a tar: header, content, padding. Raises SampleError for an unsafe name."""
    name = f"{key}.{part}"
    split_name(name)
    # TarFile would copy each content, and remember every header.
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(data), 0o644, 0
    return header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def end_of_tar(size: int) -> bytes:
    """What ends a tar whose members are `size` bytes."""
    end = 2 * tarfile.BLOCKSIZE
    return bytes(end + -(size + end) % tarfile.RECORDSIZE)


@contextmanager
def sample_writer(store: Store, name: str) -> Iterator[SampleWriter]:
    """A tar in the store; `.file.info` is its FileInfo after the `with` block."""
    with hashing_writer(store, name) as file:
        writer = SampleWriter(file)
        yield writer
        writer.close()


class _Tail:
    """A file for reading that remembers its last bytes: a tar ends with two empty blocks of 512."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.last = data[-1024:] if len(data) >= 1024 else (self.last + data)[-1024:]
        return data


def _members(file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    tail = _Tail(file)
    try:
        # By default tarfile reads 10 KB at a time.
        with tarfile.open(fileobj=cast("IO[bytes]", tail), mode="r|", bufsize=_READ) as tar:
            for member in tar:
                key, part = split_name(member.name)
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise SampleError(f"{member.name!r} is not a plain file")
                yield key, part, content.read()
                tar.members.clear()  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise SampleError(f"not a whole tar: {error}") from error
    # tarfile takes a file that was cut between two members for a whole one.
    while tail.read(2**16):
        continue
    if tail.last.strip(b"\0"):
        raise SampleError("not a whole tar: its end is missing")


def _sample(key: str, parts: Iterator[tuple[str, bytes]]) -> Sample:
    found: dict[str, bytes] = {}
    for part, data in parts:
        if part in found:
            raise SampleError(f"{key}.{part} is there twice")
        found[part] = data
    return Sample(key, found)
