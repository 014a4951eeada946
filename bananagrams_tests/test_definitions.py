from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from bananagrams_assets.definitions import build_definitions
from bananagrams_assets.graph import STAGES
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.stages.stage import Stage

HEAVY = ["torch", "torchvision", "open_clip", "mlflow", "webdataset", "skimage", "sklearn", "matplotlib"]
PROFILE = load_profile("demo").profile
DEFS = build_definitions(PROFILE, "/nonexistent", "sqlite:///unused.db")
BY_NAME = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def test_the_definitions_load_no_heavy_library() -> None:
    program = (
        "import sys, bananagrams_assets.definitions as definitions\n"
        "definitions.defs()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_definitions_warns_of_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import bananagrams_assets.definitions as d; d.defs()"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "bananagrams_assets" in line] == []


def test_the_definitions_are_valid() -> None:
    dg.Definitions.validate_loadable(DEFS)


def test_the_code_location_has_the_profile_and_store_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bananagrams_assets.definitions import defs

    monkeypatch.setenv("BANANAGRAMS_SET", "splits.train.shards=7")
    monkeypatch.setenv("BANANAGRAMS_STORE", str(tmp_path / "elsewhere"))
    found = defs()
    keys = found.resolve_asset_graph().get(dg.AssetKey("shards")).partitions_def
    assert keys is not None
    assert len([key for key in keys.get_partition_keys() if key.startswith("train")]) == 7
    assert found.resources is not None
    assert found.resources["store"].url == str(tmp_path / "elsewhere")


def test_every_stage_is_an_asset_and_every_asset_a_stage() -> None:
    keys = {key.to_user_string() for key in DEFS.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {stage.name for stage in STAGES}


@BY_NAME
def test_an_asset_equals_its_declaration(stage: Stage) -> None:
    node = DEFS.resolve_asset_graph().get(dg.AssetKey(stage.name))
    assert {key.to_user_string() for key in node.parent_keys} == {upstream.name for upstream in stage.inputs}
    partitions = node.partitions_def.get_partition_keys() if node.partitions_def else ["whole"]
    assert list(partitions) == stage.partitions(PROFILE)
    assert node.code_version == stage.code_version(PROFILE)
    assert node.description == stage.description
    assert (node.group_name, node.owners, node.kinds) == (stage.group, [stage.owner], set(stage.kinds))
    assert node.pools == ({stage.pool} if stage.pool else set())


@BY_NAME
def test_dagster_maps_partitions_as_the_declaration_does(stage: Stage) -> None:
    graph = DEFS.resolve_asset_graph()
    node = graph.get(dg.AssetKey(stage.name))
    for upstream in stage.inputs:
        parent = graph.get(dg.AssetKey(upstream.name))
        if parent.partitions_def is None:
            continue
        mapping = node.partition_mappings.get(parent.key, dg.IdentityPartitionMapping())
        for partition in stage.partitions(PROFILE)[:1]:
            definition = node.partitions_def
            subset = definition.subset_with_partition_keys([partition]) if definition else None
            mapped = mapping.get_upstream_mapped_partitions_result_for_partitions(
                subset, definition, parent.partitions_def
            )
            expected = {name for read, name in stage.input_partitions(PROFILE, partition) if read is upstream}
            assert set(mapped.partitions_subset.get_partition_keys()) == expected


def test_shards_map_to_the_index_of_their_own_split() -> None:
    index = next(stage for stage in STAGES if stage.name == "split_index")
    shards = [name for _, name in index.input_partitions(PROFILE, "train")]
    assert shards == ["train-00000", "train-00001", "train-00002", "train-00003"]


@pytest.mark.parametrize(
    "name", ["refresh_manifest", "build_shard", "index_split", "train_model", "choose_champion"]
)
def test_each_job_resolves(name: str) -> None:
    assert DEFS.resolve_job_def(name).name == name
