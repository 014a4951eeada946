"""The declaration of a stage, and what a stage function receives and returns.

`graph.py` declares every stage once. Dagster's assets, staleness, the command line and the documentation
derive from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import Profile, Section, digest_of, flatten
from ..errors import BananagramsError
from ..progress import Log
from ..storage import paths
from ..storage.store import FileInfo, Store

Partitioning = Literal["none", "shard", "split"]

UNPARTITIONED = "whole"
"""The partition name of a stage without partitions. Receipts in existing stores are named after it."""


class UndeclaredAccess(BananagramsError, RuntimeError):
    """A stage function read or wrote something that its declaration in `graph.py` does not list."""


@dataclass(frozen=True)
class StageResult:
    """The output of a stage function for one partition.

    `files` maps store names to what was written. `stats` holds JSON-serialisable numbers for people.
    `preview` is one JPEG of at most 40 KB. `content` is the data version; the default is a digest of the
    files' digests, which a stage replaces if its files contain timings. `parts` holds the results by shard of
    a stage that declares `part_outputs`.
    """

    files: Mapping[str, FileInfo]
    stats: Mapping[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    content: str | None = None
    parts: Mapping[str, StageResult] = field(default_factory=dict)


@dataclass(frozen=True)
class ExternalInput:
    """An input from outside the graph: its version, and its value if the stage function uses it."""

    version: str
    value: Any = None


@dataclass(frozen=True)
class StageRun:
    """Everything that a stage function may use to build one partition.

    `stage` is the declaration. `store` has only the names that the declared inputs and outputs cover, and
    `settings` only the declared settings. `inputs` lists the partitions to read by input stage, `external`
    the inputs from outside the graph by name. Two runs with equal `inputs_digest` have the same code version,
    settings and input versions, and therefore the same result.
    """

    stage: Stage
    store: Store
    settings: Profile
    partition: str
    log: Log
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    external: Mapping[str, ExternalInput] = field(default_factory=dict)
    inputs_digest: str = ""


ReadExternal = Callable[[Store, Profile, str, Log], Mapping[str, ExternalInput]]
"""Reads the inputs from outside the graph of one partition: (store, declared settings, partition, log)."""


@dataclass(frozen=True)
class Stage:
    """One asset of the graph.

    `function` builds one partition from a StageRun; further keyword arguments come from the caller of
    `build_partition`. `version` is the code version: raise it when the code gives other results for the same
    inputs. `settings` are the paths of the settings that make a partition stale; `unversioned_settings` may
    be read too, but do not change the partition's own outputs. `outputs` are prefixes of store names, with
    `{partition}` and `{split}`; `shared_outputs` are written by every partition with equal content. With
    `part_outputs` an unpartitioned stage leaves these outputs and a receipt for each shard, and downstream
    stages read those. `group`, `kinds`, `owner` and `pool` are what Dagster shows and schedules by.
    """

    name: str
    function: Callable[..., StageResult]
    version: str
    description: str
    partitioning: Partitioning
    outputs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    unversioned_settings: tuple[str, ...] = ()
    inputs: tuple[Stage, ...] = ()
    external: ReadExternal | None = None
    shared_outputs: tuple[str, ...] = ()
    part_outputs: tuple[str, ...] = ()
    group: str = "dataset"
    kinds: tuple[str, ...] = ()
    owner: str = "team:dataset"
    pool: str | None = None

    def code_version(self, profile: Profile) -> str:
        """Return the version of code and settings together, as Dagster shows it."""
        values = settings_values(profile, self.settings)
        return f"{self.version}-{digest_of(values)}" if values else self.version

    def partitions(self, profile: Profile) -> list[str]:
        """Return the partition names of this stage, in order."""
        return partition_names(profile, self.partitioning)

    def input_partitions(self, profile: Profile, partition: str) -> Iterator[tuple[Stage, str]]:
        """Yield every (input stage, partition) that one partition of this stage reads."""
        for stage in self.inputs:
            provided = "shard" if stage.part_outputs else stage.partitioning
            if provided == self.partitioning:
                yield stage, partition
            elif provided == "shard" and self.partitioning == "split":
                yield from ((stage, shard) for shard in profile.splits.shard_keys(partition))
            else:
                yield from ((stage, name) for name in partition_names(profile, provided))

    def output_prefixes(self, partition: str) -> tuple[str, ...]:
        """Return the prefixes of the names that one partition (or part) leaves in the store.

        They include its receipt. `shared_outputs` are not included.
        """
        if self.part_outputs and partition == UNPARTITIONED:
            part_folders = sorted({template.partition("{")[0] for template in self.part_outputs})
            return (*self.outputs, *part_folders, f"receipts/{self.name}/")
        names = {"partition": partition, "split": paths.split_of(partition)}
        templates = self.part_outputs or self.outputs
        return (
            *(template.format(**names) for template in templates),
            f"receipts/{self.name}/{partition}.",
        )


def partition_names(profile: Profile, partitioning: Partitioning) -> list[str]:
    """Return the partition names of a partitioning, in order."""
    if partitioning == "none":
        return [UNPARTITIONED]
    return profile.splits.shard_keys() if partitioning == "shard" else list(profile.splits.by_name())


def settings_values(profile: Profile, settings: Sequence[str]) -> dict[str, Any]:
    """Return the settings under these dotted paths, as JSON-serialisable values by full dotted path.

    Operational settings of a section, which never change a result, are left out.
    """
    values: dict[str, Any] = {}
    for path in settings:
        section: Any = profile
        for name in path.split("."):
            section = getattr(section, name)
        if isinstance(section, Section):
            content = section.model_dump(mode="json", exclude=set(section.operational))
            values.update({f"{path}.{key}": value for key, value in flatten(content)})
        else:
            values[path] = section
    return values
