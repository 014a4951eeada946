"""The whole graph on one page.

    manifest ─► image_pairs ─► aligned_pairs ─► edit_masks ─► shards ─► split_index ─► mask_model ─► champion
    (whole)     (shard)        (shard)          (shard)       (shard)   (split)        (whole)       (whole)
                                                    └─► validation_overlays (shard)

The profile (BANANAGRAMS_PROFILE) fixes the partitions; the store (BANANAGRAMS_STORE) holds the files.
"""

import dagster as dg

from .defs import automation, checks, dataset, model, resources

defs = dg.Definitions(
    assets=[
        dataset.manifest,
        dataset.image_pairs,
        dataset.aligned_pairs,
        dataset.edit_masks,
        dataset.shards,
        dataset.validation_overlays,
        dataset.split_index,
        model.mask_model,
        model.champion,
    ],
    asset_checks=[
        checks.no_photo_in_two_splits,
        checks.few_lost,
        checks.masks_reach_iou,
        checks.samples_read_back,
        checks.few_rejected,
        checks.beats_trivial_baselines,
        checks.reads_instructions,
    ],
    jobs=[
        automation.refresh_manifest,
        automation.build_shard,
        automation.index_split,
        automation.train_model,
        automation.choose_champion,
    ],
    schedules=[automation.nightly_refresh],
    sensors=[automation.stale_partitions],
    resources=resources.RESOURCES,
    executor=dg.in_process_executor,
)
