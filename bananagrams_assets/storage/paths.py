"""Names of all objects in the store, relative to its root, with `/` between folders."""

from __future__ import annotations

MANIFEST_REJECTS = "manifest/rejects.parquet"
OVERLAYS = "overlays/"
OVERLAYS_CONTENTS = "overlays/index.html"
MASK_CHECK = "checks/mask_iou.json"


def split_of(shard: str) -> str:
    """Return the split of a shard: `train-00012` → `train`."""
    return shard.rpartition("-")[0]


def manifest_table(shard: str) -> str:
    return f"manifest/{shard}.parquet"


def pairs_tar(shard: str) -> str:
    return f"image_pairs/{shard}.tar"


def pairs_table(shard: str) -> str:
    return f"image_pairs/{shard}.parquet"


def aligned_table(shard: str) -> str:
    return f"aligned_pairs/{shard}.parquet"


def masks_tar(shard: str) -> str:
    return f"edit_masks/{shard}.tar"


def masks_table(shard: str) -> str:
    return f"edit_masks/{shard}.parquet"


def shard_tar(shard: str) -> str:
    return f"shards/{split_of(shard)}/{shard}.tar"


def shard_table(shard: str) -> str:
    return f"shards/{split_of(shard)}/{shard}.parquet"


def index_json(split: str) -> str:
    return f"index/{split}.json"


def index_card(split: str) -> str:
    return f"index/{split}/README.md"


def index_image(split: str) -> str:
    return f"index/{split}/samples.jpg"


def index_wids(split: str) -> str:
    return f"index/{split}/wids.json"


def index_attribution(split: str) -> str:
    return f"index/{split}.attribution.csv"


def overlays_page(shard: str) -> str:
    return f"overlays/{shard}/index.html"


def receipt(stage: str, partition: str) -> str:
    return f"receipts/{stage}/{partition}.json"


def receipt_preview(stage: str, partition: str) -> str:
    return f"receipts/{stage}/{partition}.jpg"
