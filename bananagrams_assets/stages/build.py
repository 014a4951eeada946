"""Build one partition of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config import Profile, digest_of
from ..errors import BananagramsError
from ..progress import Log
from ..storage.store import Store, StoreError
from .access import declared_run
from .receipts import Receipt, read_receipt, write_receipt
from .stage import Stage, settings_values
from .staleness import external_inputs, input_receipts, input_versions, stale_reasons


@dataclass(frozen=True)
class Outcome:
    """A finished partition: its receipt and the reasons for the build, empty if it was current."""

    receipt: Receipt
    reasons: list[str]


class UpstreamMissing(BananagramsError, RuntimeError):
    """An input of the partition was never built."""


class PublicStore(StoreError):
    """Anyone can read the store, and the profile does not allow that."""


_private_stores: set[str] = set()


def refuse_public(store: Store, profile: Profile, log: Log) -> None:
    """Raise PublicStore if anyone can read the store, unless `store.may_be_public` is set.

    The check runs once per process and store, and its findings go to `log`.
    """
    if profile.store.may_be_public or store.url in _private_stores:
        return
    access = store.public_access()
    if access.is_public:
        raise PublicStore(
            f"{store.url}: anyone can read this store ({'; '.join(access.findings)}), but data derived from "
            f"these sources must not be redistributed ({profile.source.license}). Make the bucket private, "
            "or set store.may_be_public=true if the licence of your sources allows it"
        )
    log(f"{store.url} is not public: {'; '.join(access.findings)}")
    _private_stores.add(store.url)


def build_partition(
    store: Store,
    profile: Profile,
    stage: Stage,
    partition: str,
    log: Log,
    rebuild: bool = False,
    extra_reason: str = "",
    **arguments: Any,
) -> Outcome:
    """Build one partition unless it is current.

    `rebuild` and a non-empty `extra_reason` build it even then. `arguments` go to the stage's function.
    Objects that another run writes under this partition's names meanwhile are not replaced, and the input
    files are compared with the digests in their receipts. Raises UpstreamMissing, PublicStore, Conflict,
    DamagedObject, StoreError, OSError, and the errors of the stage's function.
    """
    refuse_public(store, profile, log)
    receipts = input_receipts(store, profile, stage, partition)
    store = store.for_run(stage.output_prefixes(partition), _file_digests(receipts))
    external = external_inputs(store, profile, stage, partition, log)
    versions = input_versions(receipts, external)
    if missing := [name for name, version in versions.items() if not version]:
        raise UpstreamMissing(f"{stage.name}/{partition} reads {', '.join(missing)}: build that first")
    stale = ["rebuild requested"] if rebuild else stale_reasons(store, profile, stage, partition, versions)
    reasons = stale or ([extra_reason] if extra_reason else [])
    receipt = read_receipt(store, stage.name, partition)
    if receipt and not reasons:
        log(f"{stage.name}/{partition} is up to date ({receipt.data_version})")
        return Outcome(receipt, [])
    log(f"{stage.name}/{partition}: {'; '.join(reasons)}")
    run = replace(
        declared_run(stage, store, profile, partition, log),
        external=external,
        inputs_digest=digest_of([stage.version, settings_values(profile, stage.settings), versions]),
    )
    result = stage.function(run, **arguments)
    for part, part_result in result.parts.items():
        write_receipt(store, profile, stage, part, part_result, {})
    return Outcome(write_receipt(store, profile, stage, partition, result, versions), reasons)


def _file_digests(receipts: Mapping[str, Receipt | None]) -> dict[str, str]:
    """Return the digest of every file that these receipts list, by its store name."""
    return {
        name: info.sha256 for receipt in receipts.values() if receipt for name, info in receipt.files.items()
    }
