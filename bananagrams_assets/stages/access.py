"""Views of a store and a profile that are restricted to the declaration of a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..config import Profile, Section
from ..progress import Log
from ..storage.public_access import PublicAccess
from ..storage.store import FileInfo, Store
from .stage import Stage, StageRun, UndeclaredAccess


def declared_settings(stage: Stage, profile: Profile) -> Profile:
    """Return a view of the profile that raises UndeclaredAccess for settings the stage does not declare."""
    return restricted_settings(profile, stage.name, (*stage.settings, *stage.unversioned_settings))


def restricted_settings(profile: Profile, reader: str, declared: Sequence[str]) -> Profile:
    """Return a view of the profile that has only the settings under the dotted paths `declared`.

    Reading another one raises UndeclaredAccess, which names `reader`.
    """
    return cast(Profile, _Settings(profile, reader, tuple(declared), ""))


def declared_store(stage: Stage, profile: Profile, partition: str, store: Store) -> Store:
    """Return a view of the store for one partition of a stage.

    It reads the files and receipts of the declared inputs and of the partition itself, and writes the
    partition's declared outputs. Any other name raises UndeclaredAccess.
    """
    own = (*stage.output_prefixes(partition), *stage.shared_outputs)
    readable = [
        prefix
        for upstream, name in stage.input_partitions(profile, partition)
        for prefix in (*upstream.output_prefixes(name), *upstream.shared_outputs)
    ]
    return _Store(stage, store, (*own, *readable), own)


def declared_run(stage: Stage, store: Store, profile: Profile, partition: str, log: Log) -> StageRun:
    """Return the argument of the stage's function for one partition, without external inputs."""
    inputs: dict[str, list[str]] = {}
    for upstream, name in stage.input_partitions(profile, partition):
        inputs.setdefault(upstream.name, []).append(name)
    return StageRun(
        stage,
        declared_store(stage, profile, partition, store),
        declared_settings(stage, profile),
        partition,
        log,
        inputs,
    )


class _Settings:
    """A section of the profile, restricted to declared paths."""

    def __init__(self, section: Section, reader: str, declared: tuple[str, ...], prefix: str) -> None:
        self._section, self._reader, self._declared, self._prefix = section, reader, declared, prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        path = self._prefix + name
        value = getattr(self._section, name)
        if any(path == allowed or path.startswith(f"{allowed}.") for allowed in self._declared):
            return value
        if any(allowed.startswith(f"{path}.") for allowed in self._declared):
            return _Settings(value, self._reader, self._declared, f"{path}.")
        raise UndeclaredAccess(
            f"{self._reader} reads the setting {path}, which its declaration in graph.py does not list"
        )


class _Store:
    """A store, restricted to declared names. It implements the Store protocol."""

    def __init__(
        self, stage: Stage, store: Store, readable: tuple[str, ...], writable: tuple[str, ...]
    ) -> None:
        self._stage, self._store, self._readable, self._writable = stage, store, readable, writable
        self.url = store.url

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._store.create(self._written(name))

    def write(self, name: str, data: bytes) -> None:
        self._store.write(self._written(name), data)

    def adopt(self, name: str, path: Path, info: FileInfo) -> None:
        self._store.adopt(self._written(name), path, info)

    def delete(self, name: str) -> None:
        self._store.delete(self._written(name))

    def read(self, name: str) -> bytes:
        return self._store.read(self._read(name))

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._store.open(self._read(name))

    def exists(self, name: str) -> bool:
        return self._store.exists(self._read(name))

    def size(self, name: str) -> int:
        return self._store.size(self._read(name))

    def list(self, prefix: str) -> list[str]:
        return self._store.list(self._read(prefix))

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        return self._store.local_path(self._read(name))

    def describe(self, name: str) -> str:
        return self._store.describe(self._read(name))

    def for_run(self, prefixes: Sequence[str], digests: Mapping[str, str]) -> Store:
        raise UndeclaredAccess(f"stage {self._stage.name} begins a run inside its own run")

    def public_access(self) -> PublicAccess:
        return self._store.public_access()

    def _read(self, name: str) -> str:
        if name.startswith(self._readable):
            return name
        raise UndeclaredAccess(
            f"stage {self._stage.name} reads {self.url}/{name}, which is neither a declared input nor a "
            "declared output"
        )

    def _written(self, name: str) -> str:
        if name.startswith(self._writable):
            return name
        raise UndeclaredAccess(
            f"stage {self._stage.name} writes {self.url}/{name}, which is not a declared output"
        )
