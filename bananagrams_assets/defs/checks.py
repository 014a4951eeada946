"""What must hold of an asset before others may rely on it."""

import warnings

import dagster as dg

from ..dataset.verify import photos_in_two_splits, read_back
from ..evaluation.mask_check import measured_mask_ious
from ..stages.stage import UNPARTITIONED, read_receipt
from ..storage import paths
from .dataset import edit_masks, image_pairs, manifest, shards
from .model import mask_model
from .partitions import PROFILE, shard_partitions
from .resources import StoreResource

# Partitioned checks are a preview in Dagster 1.13. They are what tells a person which shard is bad.
warnings.filterwarnings("ignore", message=".*partitions_def on an AssetCheckSpec", category=dg.PreviewWarning)


@dg.asset_check(asset=manifest, blocking=True)
def no_photo_in_two_splits(store: StoreResource) -> dg.AssetCheckResult:
    """Every record of one source photograph is in one split: nothing leaks from train to dev or test."""
    leaks = photos_in_two_splits(store.open(), PROFILE.shard_keys())
    return dg.AssetCheckResult(
        passed=not leaks,
        description=f"{len(leaks)} source photographs are in more than one split",
        metadata={"photographs": dict(list(leaks.items())[:20])},
    )


@dg.asset_check(asset=image_pairs, partitions_def=shard_partitions)
def few_lost(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
    """The share of records whose pictures could not be had stays under `checks.max_lost`."""
    opened = store.open()
    receipts = [read_receipt(opened, "image_pairs", shard) for shard in context.partition_keys]
    found = [receipt.stats for receipt in receipts if receipt]
    records = sum(stats["records"] for stats in found)
    lost = records - sum(stats["ok"] for stats in found)
    to_retry = sum(stats["to_retry"] for stats in found)
    share = lost / max(1, records)
    return dg.AssetCheckResult(
        passed=share <= PROFILE.checks.max_lost,
        description=f"{lost} of {records} records lack a picture, {to_retry} of them may pass",
        metadata={"share": share, "limit": PROFILE.checks.max_lost, "to_retry": to_retry},
    )


@dg.asset_check(asset=edit_masks)
def masks_reach_iou(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
    """Masks of a few made pairs, whose true masks are known, reach a mean IoU of `checks.min_mask_iou`.

    It tells of settings and code, not of a shard, so it is measured once for each of them.
    """
    ious = measured_mask_ious(store.open(), PROFILE, context.log.info)
    every = [iou for family in ious.values() for iou in family]
    mean = sum(every) / len(every)
    return dg.AssetCheckResult(
        passed=mean >= PROFILE.checks.min_mask_iou,
        description=f"mean IoU {mean:.3f} on {len(every)} made pairs; {PROFILE.checks.min_mask_iou} needed",
        metadata={
            "mean_iou": mean,
            "limit": PROFILE.checks.min_mask_iou,
            **{f"iou of {family}": sum(found) / len(found) for family, found in ious.items()},
        },
    )


@dg.asset_check(asset=shards, partitions_def=shard_partitions, blocking=True)
def samples_read_back(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
    """Every sample reads back through `webdataset` with its five parts, sizes agreeing."""
    opened = store.open()
    results = [read_back(opened, paths.shard_tar(shard)) for shard in context.partition_keys]
    faults = [fault for result in results for fault in result.faults]
    return dg.AssetCheckResult(
        passed=not faults,
        description=faults[0] if faults else "all samples read back whole",
        metadata={"samples": sum(result.samples for result in results), "faults": faults[:20]},
    )


@dg.asset_check(asset=shards, partitions_def=shard_partitions)
def few_rejected(context: dg.AssetCheckExecutionContext, store: StoreResource) -> dg.AssetCheckResult:
    """The share of records that became no sample stays under `checks.max_rejected`."""
    opened = store.open()
    receipts = [read_receipt(opened, "shards", shard) for shard in context.partition_keys]
    written = sum(receipt.stats["written"] for receipt in receipts if receipt)
    dropped = sum(receipt.stats["dropped"] for receipt in receipts if receipt)
    share = dropped / max(1, written + dropped)
    return dg.AssetCheckResult(
        passed=share <= PROFILE.checks.max_rejected,
        description=f"{dropped} of {written + dropped} records became no sample",
        metadata={"share": share, "limit": PROFILE.checks.max_rejected},
    )


@dg.asset_check(asset=mask_model, blocking=True)
def beats_trivial_baselines(store: StoreResource) -> dg.AssetCheckResult:
    """Dev IoU is over the best of the empty, the full and the mean mask by `checks.min_gain`."""
    receipt = read_receipt(store.open(), "mask_model", UNPARTITIONED)
    if receipt is None:
        return dg.AssetCheckResult(passed=False, description="no model has been trained yet")
    model, baselines = receipt.stats["dev_iou"], receipt.stats["baselines"]
    name, best = max(baselines.items(), key=lambda item: item[1])
    return dg.AssetCheckResult(
        passed=model >= best + PROFILE.checks.min_gain,
        description=f"dev IoU {model:.3f}; best trivial baseline ({name}) {best:.3f}",
        metadata={"dev_iou": model, **{f"{key}_mask_iou": value for key, value in baselines.items()}},
    )


@dg.asset_check(asset=mask_model, blocking=True)
def reads_instructions(store: StoreResource) -> dg.AssetCheckResult:
    """Dev IoU is over that with another picture's instruction by `checks.min_gain`."""
    receipt = read_receipt(store.open(), "mask_model", UNPARTITIONED)
    if receipt is None:
        return dg.AssetCheckResult(passed=False, description="no model has been trained yet")
    model, shuffled = receipt.stats["dev_iou"], receipt.stats["shuffled_iou"]
    return dg.AssetCheckResult(
        passed=model >= shuffled + PROFILE.checks.min_gain,
        description=f"dev IoU {model:.3f}; with shuffled instructions {shuffled:.3f}",
        metadata={"dev_iou": model, "shuffled_iou": shuffled},
    )
