"""The whole graph on one page: every stage, declared once.

    manifest ─► image_pairs ─► aligned_pairs ─► edit_masks ─► shards ─► split_index ─► mask_model ─► champion
    (none)      (shard)        (shard)          (shard)       (shard)   (split)        (none)        (none)
                                                    └─► validation_overlays (shard)

Dagster's assets, staleness, the command line's lists and the table in docs/architecture.md derive from these
declarations. A stage function can read only the inputs and settings that its declaration lists.
"""

from __future__ import annotations

from .learn.champion import choose_champion
from .learn.mask_model import train_mask_model
from .stages.aligned_pairs import align_pairs
from .stages.edit_masks import make_masks
from .stages.image_pairs import fetch_pairs
from .stages.manifest import build_manifest, source_versions
from .stages.reviews import review_input
from .stages.shards import SAMPLE_SETTINGS, pack_shard
from .stages.split_index import index_split
from .stages.stage import Stage
from .stages.validation_overlays import draw_overlays

MANIFEST = Stage(
    "manifest",
    build_manifest,
    version="3",
    description="""The records of all sources, validated, deduplicated, assigned to shards by source photo.

Invalid records are listed in `manifest/rejects.parquet` with line number and reason.""",
    partitioning="none",
    external=source_versions,
    settings=("source", "splits"),
    unversioned_settings=("fetch",),
    outputs=("manifest/rejects.parquet",),
    part_outputs=("manifest/{partition}.parquet",),
    kinds=("json", "parquet"),
)

IMAGE_PAIRS = Stage(
    "image_pairs",
    fetch_pairs,
    version="3",
    description="The shard's images before and after the edit, and a table with the outcome of each record.",
    partitioning="shard",
    inputs=(MANIFEST,),
    settings=("fetch",),
    outputs=("image_pairs/{partition}.",),
    kinds=("python", "parquet"),
    pool="fetch",
)

ALIGNED_PAIRS = Stage(
    "aligned_pairs",
    align_pairs,
    version="4",
    description="The homography from each edited image to its input, or the reason why there is none.",
    partitioning="shard",
    inputs=(IMAGE_PAIRS,),
    settings=("align", "fetch.max_pixels"),
    outputs=("aligned_pairs/{partition}.",),
    kinds=("opencv", "parquet"),
)

EDIT_MASKS = Stage(
    "edit_masks",
    make_masks,
    version="5",
    description="The pixels that the edit changed, corrected for tone, texture and position changes.",
    partitioning="shard",
    inputs=(MANIFEST, IMAGE_PAIRS, ALIGNED_PAIRS),
    settings=("mask", "fetch.max_pixels"),
    outputs=("edit_masks/{partition}.",),
    kinds=("opencv", "parquet"),
)

SHARDS = Stage(
    "shards",
    pack_shard,
    version="3",
    description="The dataset: a WebDataset tar with photo, mask, instruction, summary and metadata.",
    partitioning="shard",
    inputs=(MANIFEST, IMAGE_PAIRS, ALIGNED_PAIRS, EDIT_MASKS),
    external=review_input,
    settings=SAMPLE_SETTINGS,
    outputs=("shards/{split}/{partition}.",),
    kinds=("webdataset",),
)

VALIDATION_OVERLAYS = Stage(
    "validation_overlays",
    draw_overlays,
    version="2",
    description="A page for judging the shard's masks by eye: input, aligned edit, difference, mask overlay.",
    partitioning="shard",
    inputs=(MANIFEST, IMAGE_PAIRS, ALIGNED_PAIRS, EDIT_MASKS),
    settings=("overlays", "mask", "fetch.max_pixels"),
    unversioned_settings=("splits",),
    outputs=("overlays/{partition}/",),
    shared_outputs=("overlays/index.html",),
    group="review",
    kinds=("html",),
)

SPLIT_INDEX = Stage(
    "split_index",
    index_split,
    version="3",
    description="The shards of a split with counts, bytes and digests; statistics, card, attribution list.",
    partitioning="split",
    inputs=(SHARDS,),
    settings=(*SAMPLE_SETTINGS, "source.manifests"),
    outputs=("index/{partition}.", "index/{partition}/"),
    kinds=("json",),
)

MASK_MODEL = Stage(
    "mask_model",
    train_mask_model,
    version="4",
    description="""The trained checkpoint, registered in MLflow as `challenger`.

Training runs under `torchrun` in its own process: on this machine, as an ECS task or as a Ray job
(`launcher` in the profile). Loss, dev IoU and checkpoints arrive in the run's log through Dagster Pipes. A
training that died continues from its last checkpoint: at once by the retry, or when the same dataset,
settings and code are materialized again.""",
    partitioning="none",
    inputs=(SPLIT_INDEX,),
    settings=("model", "train"),
    unversioned_settings=("launcher", "mlflow"),
    outputs=(),
    shared_outputs=("mask_model/",),
    group="model",
    kinds=("pytorch", "mlflow"),
    owner="team:model",
    pool="gpu",
)

CHAMPION = Stage(
    "champion",
    choose_champion,
    version="3",
    description="""The registry alias `champion`, moved to a new version that is better on the same samples.

With `back: true` it returns to the alias `previous`, and the withdrawn version is not promoted again.""",
    partitioning="none",
    inputs=(MASK_MODEL,),
    settings=("mlflow", "checks.min_gain"),
    outputs=(),
    group="model",
    kinds=("mlflow",),
    owner="team:model",
)

STAGES = (
    MANIFEST, IMAGE_PAIRS, ALIGNED_PAIRS, EDIT_MASKS, SHARDS, VALIDATION_OVERLAYS, SPLIT_INDEX, MASK_MODEL,
    CHAMPION,
)  # fmt: skip
"""Every stage, inputs before outputs."""

SHARD_STAGES = tuple(stage for stage in STAGES if stage.partitioning == "shard")
MODEL_STAGES = tuple(stage for stage in STAGES if stage.group == "model")
DATASET_STAGES = tuple(stage for stage in STAGES if stage.group != "model")
