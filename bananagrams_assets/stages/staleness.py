"""Which partitions must be built, and why.

A partition is current while code version, settings and input versions equal those of its receipt and all
its files exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..config import Profile
from ..progress import Log, ignore_progress
from ..storage import paths
from ..storage.store import Store
from .access import declared_settings
from .receipts import Receipt, read_receipt
from .stage import ExternalInput, Stage, settings_values

Stale = dict[tuple[str, str], list[str]]
"""Reasons by (stage name, partition)."""


def external_inputs(
    store: Store, profile: Profile, stage: Stage, partition: str, log: Log = ignore_progress
) -> Mapping[str, ExternalInput]:
    """Read the inputs from outside the graph, such as manifests, of one partition."""
    if stage.external is None:
        return {}
    return stage.external(store, declared_settings(stage, profile), partition, log)


def input_receipts(store: Store, profile: Profile, stage: Stage, partition: str) -> dict[str, Receipt | None]:
    """Return the receipt of every input partition by `<stage>/<partition>`; None if it was never built."""
    return {
        f"{upstream.name}/{name}": read_receipt(store, upstream.name, name)
        for upstream, name in stage.input_partitions(profile, partition)
    }


def input_versions(
    receipts: Mapping[str, Receipt | None], external: Mapping[str, ExternalInput]
) -> dict[str, str]:
    """Return the version of every input by name; "" for an input that was never built."""
    built = {name: receipt.data_version if receipt else "" for name, receipt in receipts.items()}
    return built | {name: value.version for name, value in external.items()}


def why_stale(store: Store, profile: Profile, stage: Stage, partition: str) -> list[str]:
    """Return the reasons why a partition must be built; an empty list if it is current."""
    versions = input_versions(
        input_receipts(store, profile, stage, partition), external_inputs(store, profile, stage, partition)
    )
    return stale_reasons(store, profile, stage, partition, versions)


def stale_reasons(
    store: Store, profile: Profile, stage: Stage, partition: str, versions: Mapping[str, str]
) -> list[str]:
    """Return the reasons why a partition must be built, for the given versions of its inputs."""
    receipt = read_receipt(store, stage.name, partition)
    if receipt is None:
        return ["never built"]
    reasons = []
    if receipt.version != stage.version:
        reasons.append(f"code version {receipt.version} → {stage.version}")
    settings = json.loads(json.dumps(settings_values(profile, stage.settings)))
    for path in sorted(settings.keys() | receipt.settings.keys()):
        before, now = receipt.settings.get(path), settings.get(path)
        if before != now:
            reasons.append(f"{path}: {before} → {now}")
    for name in sorted(versions.keys() | receipt.upstream.keys()):
        if versions.get(name) != receipt.upstream.get(name):
            reasons.append(f"{name} changed")
    files = [*receipt.files]
    for part in profile.shard_keys() if stage.part_outputs else ():
        part_receipt = read_receipt(store, stage.name, part)
        files += part_receipt.files if part_receipt else [paths.receipt(stage.name, part)]
    return reasons + [f"{store.describe(name)} is missing" for name in files if not store.exists(name)]


def stale_partitions(store: Store, profile: Profile, stages: Iterable[Stage]) -> Stale:
    """Return the reasons of every partition of `stages` that must be built, inputs before outputs.

    A partition whose input is stale is stale too.
    """
    stale: Stale = {}
    for stage in stages:
        for partition in stage.partitions(profile):
            reasons = why_stale(store, profile, stage, partition) or [
                f"{upstream.name}/{name} is stale"
                for upstream, name in stage.input_partitions(profile, partition)
                if (upstream.name, name) in stale
            ]
            if reasons:
                stale[stage.name, partition] = reasons
    return stale
