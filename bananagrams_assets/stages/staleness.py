"""Which partitions must be built, and why.

A partition is current while code version, settings and input versions equal those of its receipt and all
its files exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..config import Profile
from ..progress import Log, ignore_progress
from ..storage.store import Store
from .access import declared_settings
from .receipts import read_receipt
from .stage import ExternalInput, Stage

Stale = dict[tuple[str, str], list[str]]
"""Reasons by (stage name, partition)."""


def external_inputs(
    store: Store, profile: Profile, stage: Stage, partition: str, log: Log = ignore_progress
) -> Mapping[str, ExternalInput]:
    """Read the inputs from outside the graph, such as manifests, of one partition."""
    if stage.external is None:
        return {}
    return stage.external(store, declared_settings(stage, profile), partition, log)


def input_versions(
    store: Store, profile: Profile, stage: Stage, partition: str, log: Log = ignore_progress
) -> dict[str, str]:
    """Return the version of every input of a partition by name; "" for an input that was never built."""
    versions = {}
    for upstream, name in stage.input_partitions(profile, partition):
        receipt = read_receipt(store, upstream.name, name)
        versions[f"{upstream.name}/{name}"] = receipt.data_version if receipt else ""
    external = external_inputs(store, profile, stage, partition, log)
    return versions | {name: value.version for name, value in external.items()}


def why_stale(store: Store, profile: Profile, stage: Stage, partition: str) -> list[str]:
    """Return the reasons why a partition must be built; an empty list if it is current."""
    receipt = read_receipt(store, stage.name, partition)
    if receipt is None:
        return ["never built"]
    reasons = []
    if receipt.version != stage.version:
        reasons.append(f"code version {receipt.version} → {stage.version}")
    settings = json.loads(json.dumps(stage.settings_values(profile)))
    for path in sorted(settings.keys() | receipt.settings.keys()):
        before, now = receipt.settings.get(path), settings.get(path)
        if before != now:
            reasons.append(f"{path}: {before} → {now}")
    versions = input_versions(store, profile, stage, partition)
    for name in sorted(versions.keys() | receipt.upstream.keys()):
        if versions.get(name) != receipt.upstream.get(name):
            reasons.append(f"{name} changed")
    reasons += [f"{store.describe(name)} is missing" for name in receipt.files if not store.exists(name)]
    return reasons


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
