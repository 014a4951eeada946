"""What each asset partition depends on, and whether it must be built again.

A partition's **receipt** (`receipts/<asset>/<partition>.json`) is written after its files and says
what they were made from: the stage's code version, the settings it read and the data version of
every upstream partition. A partition is current while these are what they would be today and its
files are there. A data version is a digest of the content, so a rebuild that gives the same content
leaves everything downstream current.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import Profile, digest_of, flatten
from ..errors import BananagramsError
from ..progress import Log, ignore_progress
from ..records.sources import fingerprint
from ..storage import paths
from ..storage.store import Conflict, FileInfo, MissingObject, Store, StoreError
from .reviews import verdicts_version

UNPARTITIONED = "whole"
"""The partition name of an asset that has no partitions."""


@dataclass(frozen=True)
class Stage:
    """One asset: its code version, the settings that it reads, the assets that it reads."""

    name: str
    version: str
    sections: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    per: str = "shard"
    """What a partition is: `shard`, `split`, or `whole`."""

    def settings(self, profile: Profile) -> dict[str, Any]:
        """Every setting that this stage reads and that can change its result, by dotted path."""
        found: dict[str, Any] = {}
        for path in self.sections:
            section: Any = profile
            for part in path.split("."):
                section = getattr(section, part)
            if hasattr(section, "operational"):
                content = section.model_dump(mode="json", exclude=set(section.operational))
                found.update({f"{path}.{key}": value for key, value in flatten(content)})
            else:
                found[path] = section
        return found

    def code_version(self, profile: Profile) -> str:
        """Version of code and settings together, as Dagster shows it."""
        return f"{self.version}-{digest_of(self.settings(profile))}" if self.sections else self.version


SAMPLE_SETTINGS = ("fetch", "align", "mask", "shards", "source.license")
"""All that shapes a sample's files. Its metadata tells a digest of these, so they make it stale, too."""

_PAIR = ("manifest", "image_pairs", "aligned_pairs", "edit_masks")
STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("manifest", "3", ("source", "splits"), per="whole"),
        Stage("image_pairs", "3", ("fetch",), _PAIR[:1]),
        Stage("aligned_pairs", "4", ("align", "fetch.max_pixels"), _PAIR[1:2]),
        Stage("edit_masks", "5", ("mask", "fetch.max_pixels"), _PAIR[:3]),
        Stage("shards", "3", SAMPLE_SETTINGS, _PAIR),
        Stage("validation_overlays", "2", ("overlays", "mask"), _PAIR),
        Stage("split_index", "3", (*SAMPLE_SETTINGS, "source.manifests"), ("shards",), per="split"),
        Stage("mask_model", "4", ("model", "train"), ("split_index",), per="whole"),
        Stage("champion", "3", ("mlflow", "checks.min_gain"), ("mask_model",), per="whole"),
    )
}
SHARD_STAGES = tuple(name for name, stage in STAGES.items() if stage.per == "shard")


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    `files` maps store names to what was written, `stats` holds JSON-able numbers, `preview` is one small
    JPEG (at most 40 KB) and `content` the data version where the files' own digests will not do because
    they hold timings.
    """

    files: Mapping[str, FileInfo]
    stats: Mapping[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    content: str | None = None


@dataclass(frozen=True)
class Receipt:
    """What one asset partition was made from, and what it holds."""

    asset: str
    partition: str
    version: str
    settings: Mapping[str, Any]
    upstream: Mapping[str, str]
    data_version: str
    files: Mapping[str, FileInfo] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


def read_receipt(store: Store, asset: str, partition: str) -> Receipt | None:
    """The receipt of a partition; None if it was never finished."""
    try:
        content = json.loads(store.read(paths.receipt(asset, partition)))
    except MissingObject:
        return None
    content["files"] = {name: FileInfo(**info) for name, info in content["files"].items()}
    return Receipt(**content)


def read_preview(store: Store, asset: str, partition: str) -> bytes | None:
    """The small JPEG kept beside a receipt, if there is one."""
    try:
        return store.read(paths.receipt_preview(asset, partition))
    except MissingObject:
        return None


def write_receipt(
    store: Store,
    profile: Profile,
    asset: str,
    partition: str,
    result: StageResult,
    upstream: Mapping[str, str],
) -> Receipt:
    """Record that a partition is finished; call it after all its files are in the store.

    Another run's receipt of the same work is left as it is. Raises Conflict for one of other work.
    """
    stage = STAGES[asset]
    content = result.content or digest_of({name: info.sha256 for name, info in result.files.items()})
    receipt = Receipt(
        asset, partition, stage.version, stage.settings(profile), dict(upstream), content,
        dict(result.files), dict(result.stats),
    )  # fmt: skip
    if result.preview:
        store.write(paths.receipt_preview(asset, partition), result.preview)
    document = dict(vars(receipt), files={name: vars(info) for name, info in result.files.items()})
    try:
        store.write(paths.receipt(asset, partition), json.dumps(document, sort_keys=True, indent=1).encode())
    except Conflict:
        # Two runs that did the same tell different times.
        theirs = read_receipt(store, asset, partition)
        if theirs is None or _work(theirs) != _work(receipt):
            raise
        return theirs
    return receipt


def _work(receipt: Receipt) -> Any:
    """What was done, as JSON would tell it: from what, and what came of it."""
    told = (receipt.version, receipt.settings, receipt.upstream, receipt.data_version)
    files = {name: vars(info) for name, info in receipt.files.items()}
    return json.loads(json.dumps([*told, files]))


def partitions_of(profile: Profile, asset: str) -> list[str]:
    """Partition names of an asset, in order."""
    per = STAGES[asset].per
    return {"shard": profile.shard_keys(), "split": list(profile.splits.by_name()), "whole": [UNPARTITIONED]}[
        per
    ]


def upstream_partitions(profile: Profile, asset: str, partition: str) -> Iterator[tuple[str, str]]:
    """(asset, partition) that a partition reads. The manifest has a receipt for each shard too."""
    for upstream in STAGES[asset].upstream:
        per = STAGES[upstream].per
        if upstream == "manifest" or per == STAGES[asset].per:
            yield upstream, partition
        elif per == "shard":
            yield from ((upstream, shard) for shard in profile.shard_keys(partition))
        else:
            yield from ((upstream, name) for name in partitions_of(profile, upstream))


def upstream_versions(
    store: Store, profile: Profile, asset: str, partition: str, log: Log = ignore_progress
) -> dict[str, str]:
    """Data version of everything that a partition reads; "" where it was never built.

    For the manifest, whose inputs lie outside the store: a fingerprint of each source.
    """
    if asset == "manifest":
        sources = [*profile.source.manifests, *filter(None, [profile.source.open_images.csv])]
        return {source: fingerprint(source, profile.fetch, log) for source in sources}
    versions = {}
    for name, part in upstream_partitions(profile, asset, partition):
        receipt = read_receipt(store, name, part)
        versions[f"{name}/{part}"] = receipt.data_version if receipt else ""
    if asset == "shards" and (verdicts := verdicts_version(store, profile, partition)):
        versions["shards.verdicts"] = verdicts
    return versions


def _upstream_digests(store: Store, profile: Profile, asset: str, partition: str) -> dict[str, str]:
    """The digest of every file that a partition reads, by its name in the store."""
    digests = {}
    for name, part in upstream_partitions(profile, asset, partition):
        receipt = read_receipt(store, name, part)
        digests.update({file: info.sha256 for file, info in receipt.files.items()} if receipt else {})
    return digests


def why_stale(store: Store, profile: Profile, asset: str, partition: str) -> list[str]:
    """Why a partition must be built (again), in words; empty if it is current."""
    receipt = read_receipt(store, asset, partition)
    if receipt is None:
        return ["never built"]
    stage = STAGES[asset]
    reasons = []
    if receipt.version != stage.version:
        reasons.append(f"code version {receipt.version} → {stage.version}")
    settings = json.loads(json.dumps(stage.settings(profile)))
    for path in sorted(settings.keys() | receipt.settings.keys()):
        before, now = receipt.settings.get(path), settings.get(path)
        if before != now:
            reasons.append(f"{path}: {before} → {now}")
    versions = upstream_versions(store, profile, asset, partition)
    for name in sorted(versions.keys() | receipt.upstream.keys()):
        if versions.get(name) != receipt.upstream.get(name):
            reasons.append(f"{name} changed")
    reasons += [f"{store.describe(name)} is missing" for name in receipt.files if not store.exists(name)]
    return reasons


def stale_partitions(
    store: Store, profile: Profile, assets: Sequence[str]
) -> dict[tuple[str, str], list[str]]:
    """Every partition of `assets` that must be built, with the reasons, upstream before downstream."""
    stale: dict[tuple[str, str], list[str]] = {}
    for asset in assets:
        for partition in partitions_of(profile, asset):
            if reasons := why_stale(store, profile, asset, partition):
                stale[asset, partition] = reasons
                continue
            waiting = [
                f"{name}/{part} is stale"
                for name, part in upstream_partitions(profile, asset, partition)
                if (name, part) in stale
            ]
            if waiting:
                stale[asset, partition] = waiting
    return stale


@dataclass(frozen=True)
class Outcome:
    """A finished partition: its receipt, and why it was built; no reasons: it was up to date."""

    receipt: Receipt
    reasons: list[str]


class UpstreamMissing(BananagramsError, RuntimeError):
    """A partition was asked for before what it reads was built."""


class PublicStore(StoreError):
    """Anybody could read what is written there, and the profile does not say that they may."""


_private: set[str] = set()


def refuse_public(store: Store, profile: Profile, log: Log) -> None:
    """Raise PublicStore where anybody can read the store, unless `store.may_be_public`.

    Asked once a process and store; what was found out goes to `say`.
    """
    if profile.store.may_be_public or store.url in _private:
        return
    public, notes = store.who_can_read()
    if public:
        raise PublicStore(
            f"{store.url}: anybody can read what is written there ({'; '.join(notes)}), and data derived "
            f"from these sources is not to be passed on ({profile.source.license}). Make the bucket private, "
            "or set store.may_be_public=true where the licence of your own sources lets you"
        )
    log(f"{store.url} is not readable for everybody: {'; '.join(notes)}")
    _private.add(store.url)


def run_stage(
    store: Store,
    profile: Profile,
    asset: str,
    partition: str,
    build: Callable[[Store, Profile, str, Log], StageResult],
    log: Log,
    rebuild: bool = False,
    else_because: str = "",
) -> Outcome:
    """Build one partition unless it is current; `else_because` is a reason to build it even then.

    What another run writes under this partition's names from now on is not replaced, and what upstream
    files are read is compared with their receipts. Raises UpstreamMissing, PublicStore, Conflict,
    DamagedObject, StoreError, OSError.
    """
    refuse_public(store, profile, log)
    store = store.for_run(
        paths.outputs(asset, partition), _upstream_digests(store, profile, asset, partition)
    )
    upstream = upstream_versions(store, profile, asset, partition, log)
    if missing := [name for name, version in upstream.items() if not version]:
        raise UpstreamMissing(f"{asset}/{partition} reads {', '.join(missing)}: build that first")
    reasons = ["rebuild asked for"] if rebuild else why_stale(store, profile, asset, partition)
    if not reasons and else_because:
        reasons = [else_because]
    receipt = read_receipt(store, asset, partition)
    if receipt and not reasons:
        log(f"{asset}/{partition} is up to date ({receipt.data_version})")
        return Outcome(receipt, [])
    log(f"{asset}/{partition}: {'; '.join(reasons)}")
    result = build(store, profile, partition, log)
    return Outcome(write_receipt(store, profile, asset, partition, result, upstream), reasons)
