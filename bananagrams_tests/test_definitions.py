from __future__ import annotations

import subprocess
import sys

import dagster as dg
import pytest

from bananagrams_assets.definitions import defs

HEAVY = ["torch", "torchvision", "open_clip", "mlflow", "webdataset", "skimage", "sklearn", "matplotlib"]


def test_the_definitions_load_no_heavy_library() -> None:
    program = (
        "import sys, bananagrams_assets.definitions\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_definitions_warns_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import bananagrams_assets.definitions"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "bananagrams_assets" in line] == []


def test_the_whole_graph_is_valid() -> None:
    dg.Definitions.validate_loadable(defs)


def test_shards_map_to_the_index_of_their_own_split() -> None:
    graph = defs.resolve_asset_graph()
    mapping = graph.get(dg.AssetKey("split_index")).partition_mappings[dg.AssetKey("shards")]
    upstream = mapping.get_upstream_mapped_partitions_result_for_partitions(
        downstream_partitions_subset=graph.get(dg.AssetKey("split_index"))
        .partitions_def.subset_with_partition_keys(["train"]),  # type: ignore[union-attr]
        downstream_partitions_def=graph.get(dg.AssetKey("split_index")).partitions_def,
        upstream_partitions_def=graph.get(dg.AssetKey("shards")).partitions_def,  # type: ignore[arg-type]
    )  # fmt: skip
    keys = upstream.partitions_subset.get_partition_keys()
    assert sorted(keys) == ["train-00000", "train-00001", "train-00002", "train-00003"]


@pytest.mark.parametrize("name", ["refresh_manifest", "build_shard", "index_split", "train_model"])
def test_each_job_resolves(name: str) -> None:
    assert defs.resolve_job_def(name).name == name


def test_training_takes_the_gpu_pool_and_fetching_the_fetch_pool() -> None:
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey("mask_model")).pools == {"gpu"}
    assert graph.get(dg.AssetKey("image_pairs")).pools == {"fetch"}
