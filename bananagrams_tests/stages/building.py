"""The dataset's stages one after the other, as the assets run them, without Dagster."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bananagrams_assets.config import Profile
from bananagrams_assets.progress import Log
from bananagrams_assets.stages.aligned_pairs import align_pairs
from bananagrams_assets.stages.edit_masks import make_masks
from bananagrams_assets.stages.image_pairs import fetch_pairs
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.stages.shards import pack_shard
from bananagrams_assets.stages.split_index import index_split
from bananagrams_assets.stages.stage import StageResult, partitions_of, run_stage, write_receipt
from bananagrams_assets.stages.validation_overlays import draw_overlays
from bananagrams_assets.storage.store import Store

from ..photos import quiet


def whole_manifest(store: Store, profile: Profile, partition: str, log: Log) -> StageResult:
    results = build_manifest(store, profile, log)
    for shard, result in results.items():
        if shard:
            write_receipt(store, profile, "manifest", shard, result, {})
    return results[""]


BUILDERS: Mapping[str, Callable[[Store, Profile, str, Log], StageResult]] = {
    "manifest": whole_manifest,
    "image_pairs": fetch_pairs,
    "aligned_pairs": align_pairs,
    "edit_masks": make_masks,
    "shards": pack_shard,
    "validation_overlays": draw_overlays,
    "split_index": index_split,
}


def build_all(store: Store, profile: Profile, rebuild: bool = False) -> dict[str, list[str]]:
    """Build what is stale; the reasons of each partition (`asset/partition`) that was built."""
    built = {}
    for asset, build in BUILDERS.items():
        for partition in partitions_of(profile, asset):
            outcome = run_stage(store, profile, asset, partition, build, quiet, rebuild)
            if outcome.reasons:
                built[f"{asset}/{partition}"] = outcome.reasons
    return built
