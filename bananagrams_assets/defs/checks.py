"""Asset checks. A failed blocking check keeps downstream assets from being built."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dagster as dg

from ..config import Profile
from ..dataset.shard_checks import find_split_leaks, read_back
from ..evaluation.mask_check import measured_mask_ious
from ..graph import ALIGNED_PAIRS, EDIT_MASKS, IMAGE_PAIRS, MANIFEST, MASK_MODEL, SHARDS
from ..progress import Log
from ..stages.receipts import read_receipt
from ..stages.stage import UNPARTITIONED, Stage
from ..storage import paths
from ..storage.store import Store
from .partitions import partitions_of
from .resources import StoreResource


@dataclass(frozen=True)
class _Target:
    """The input of a check: a store, the profile, and the run's partitions of the checked asset."""

    store: Store
    profile: Profile
    partitions: Sequence[str]
    log: Log


@dataclass(frozen=True)
class _Check:
    """A check of an asset. Its name and description are the function's name and docstring."""

    stage: Stage
    function: Callable[[_Target], dg.AssetCheckResult]
    blocking: bool = False
    partitioned: bool = True


def build_checks(profile: Profile) -> list[dg.AssetChecksDefinition]:
    """Return every asset check, with the limits of the profile."""
    with warnings.catch_warnings():
        # Partitioned checks are a preview feature of Dagster 1.13. They show which shard failed.
        warnings.filterwarnings("ignore", message=".*partitions_def on an AssetCheckSpec")
        return [_asset_check(check, profile) for check in CHECKS]


def _asset_check(check: _Check, profile: Profile) -> dg.AssetChecksDefinition:
    partitions_def = partitions_of(check.stage, profile) if check.partitioned else None

    @dg.asset_check(
        asset=check.stage.name,
        name=check.function.__name__,
        description=check.function.__doc__,
        blocking=check.blocking,
        partitions_def=partitions_def,
    )
    def run(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
        partitions = context.partition_keys if partitions_def else [UNPARTITIONED]
        return check.function(_Target(store.open(), profile, partitions, context.log.info))

    return run


def no_photograph_in_two_splits(target: _Target) -> dg.AssetCheckResult:
    """All records of one source photo are in one split, so that no photo leaks from train to dev or test."""
    leaks = find_split_leaks(target.store, target.profile.shard_keys())
    return dg.AssetCheckResult(
        passed=not leaks,
        description=f"{len(leaks)} source photos are in more than one split",
        metadata={"photographs": dict(list(leaks.items())[:20])},
    )


def few_lost(target: _Target) -> dg.AssetCheckResult:
    """The share of records without both images is at most `checks.max_lost`."""
    receipts = [read_receipt(target.store, IMAGE_PAIRS.name, shard) for shard in target.partitions]
    stats = [receipt.stats for receipt in receipts if receipt]
    records = sum(shard["records"] for shard in stats)
    lost = records - sum(shard["ok"] for shard in stats)
    to_retry = sum(shard["to_retry"] for shard in stats)
    share, limit = lost / max(1, records), target.profile.checks.max_lost
    return dg.AssetCheckResult(
        passed=share <= limit,
        description=f"{lost} of {records} records lack an image; {to_retry} of these failures are retryable",
        metadata={"share": share, "limit": limit, "to_retry": to_retry},
    )


def masks_reach_iou(target: _Target) -> dg.AssetCheckResult:
    """The masks of a few made pairs with known true masks reach a mean IoU of `checks.min_mask_iou`.

    The result depends on settings and code, not on a shard, so it is measured once for each combination.
    """
    versions = {stage.name: stage.code_version(target.profile) for stage in (ALIGNED_PAIRS, EDIT_MASKS)}
    ious = measured_mask_ious(target.store, target.profile, versions, target.log)
    values = [iou for family in ious.values() for iou in family]
    mean, limit = sum(values) / len(values), target.profile.checks.min_mask_iou
    return dg.AssetCheckResult(
        passed=mean >= limit,
        description=f"mean IoU {mean:.3f} on {len(values)} made pairs; {limit} needed",
        metadata={
            "mean_iou": mean,
            "limit": limit,
            **{f"iou of {family}": sum(values) / len(values) for family, values in ious.items()},
        },
    )


def samples_read_back(target: _Target) -> dg.AssetCheckResult:
    """Every sample reads back through `webdataset` with its five parts and consistent sizes."""
    results = [read_back(target.store, paths.shard_tar(shard)) for shard in target.partitions]
    faults = [fault for result in results for fault in result.faults]
    return dg.AssetCheckResult(
        passed=not faults,
        description=faults[0] if faults else "all samples read back",
        metadata={"samples": sum(result.samples for result in results), "faults": faults[:20]},
    )


def few_rejected(target: _Target) -> dg.AssetCheckResult:
    """The share of records without a sample is at most `checks.max_rejected`."""
    receipts = [read_receipt(target.store, SHARDS.name, shard) for shard in target.partitions]
    written = sum(receipt.stats["written"] for receipt in receipts if receipt)
    dropped = sum(receipt.stats["dropped"] for receipt in receipts if receipt)
    share, limit = dropped / max(1, written + dropped), target.profile.checks.max_rejected
    return dg.AssetCheckResult(
        passed=share <= limit,
        description=f"{dropped} of {written + dropped} records have no sample",
        metadata={"share": share, "limit": limit},
    )


def beats_trivial_baselines(target: _Target) -> dg.AssetCheckResult:
    """Dev IoU exceeds the best of the empty, the full and the mean mask by `checks.min_gain`."""
    receipt = read_receipt(target.store, MASK_MODEL.name, UNPARTITIONED)
    if receipt is None:
        return dg.AssetCheckResult(passed=False, description="no model has been trained yet")
    model, baselines = receipt.stats["dev_iou"], receipt.stats["baselines"]
    name, best = max(baselines.items(), key=lambda item: item[1])
    return dg.AssetCheckResult(
        passed=model >= best + target.profile.checks.min_gain,
        description=f"dev IoU {model:.3f}; best trivial baseline ({name}) {best:.3f}",
        metadata={"dev_iou": model, **{f"{key}_mask_iou": value for key, value in baselines.items()}},
    )


def reads_instructions(target: _Target) -> dg.AssetCheckResult:
    """Dev IoU exceeds the dev IoU with shuffled instructions by `checks.min_gain`."""
    receipt = read_receipt(target.store, MASK_MODEL.name, UNPARTITIONED)
    if receipt is None:
        return dg.AssetCheckResult(passed=False, description="no model has been trained yet")
    model, shuffled = receipt.stats["dev_iou"], receipt.stats["shuffled_iou"]
    return dg.AssetCheckResult(
        passed=model >= shuffled + target.profile.checks.min_gain,
        description=f"dev IoU {model:.3f}; with shuffled instructions {shuffled:.3f}",
        metadata={"dev_iou": model, "shuffled_iou": shuffled},
    )


CHECKS = (
    _Check(MANIFEST, no_photograph_in_two_splits, blocking=True),
    _Check(IMAGE_PAIRS, few_lost),
    _Check(EDIT_MASKS, masks_reach_iou, partitioned=False),
    _Check(SHARDS, samples_read_back, blocking=True),
    _Check(SHARDS, few_rejected),
    _Check(MASK_MODEL, beats_trivial_baselines, blocking=True),
    _Check(MASK_MODEL, reads_instructions, blocking=True),
)
