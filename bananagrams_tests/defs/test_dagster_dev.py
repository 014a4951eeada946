"""Web server, daemon and browser."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .server import Server, dagster_dev, wait_for

SHARD_ASSETS = ["image_pairs", "aligned_pairs", "edit_masks", "shards", "validation_overlays"]
LAUNCH_RUN = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
LAUNCH_BACKFILL = """mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename
  ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  status error { message } runs(limit: 50) { id status } } } }"""
ASSETS = """{ assetNodes { assetKey { path } groupName kinds owners { ... on TeamAssetOwner { team } }
  description isPartitioned } }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with dagster_dev(tmp_path_factory.mktemp("dev")) as running:
        yield running


@pytest.fixture(scope="module")
def built(server: Server) -> Server:
    """The server after the job refresh_manifest and a backfill of every shard and split index."""
    data = server.query(
        LAUNCH_RUN,
        params={
            "selector": {
                "repositoryLocationName": "bananagrams",
                "repositoryName": "__repository__",
                "jobName": "refresh_manifest",
            },
            "runConfigData": {},
        },
    )["launchRun"]
    assert data["__typename"] == "LaunchRunSuccess", data
    run_id = data["run"]["runId"]

    def final_status() -> str | None:
        status = server.query(RUN, id=run_id)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    assert wait_for(server, "the run of refresh_manifest", final_status, 120) == "SUCCESS", (
        server.log.read_text()[-6000:]
    )
    selection = [{"path": [name]} for name in [*SHARD_ASSETS, "split_index"]]
    data = server.query(LAUNCH_BACKFILL, params={"assetSelection": selection, "allPartitions": True})[
        "launchPartitionBackfill"
    ]
    assert data["__typename"] == "LaunchBackfillSuccess", data

    def completed() -> dict[str, Any] | None:
        backfill: dict[str, Any] = server.query(BACKFILL, id=data["backfillId"])["partitionBackfillOrError"]
        return backfill if backfill["status"] not in ("REQUESTED", "CANCELING") else None

    backfill = wait_for(server, "the backfill", completed, 600)
    assert backfill["status"] == "COMPLETED_SUCCESS", (backfill, server.log.read_text()[-6000:])
    return server


def test_every_asset_has_kinds_owners_and_a_description(server: Server) -> None:
    nodes = {node["assetKey"]["path"][-1]: node for node in server.query(ASSETS)["assetNodes"]}
    assert len(nodes) == 9
    for name, node in nodes.items():
        assert node["kinds"], name
        assert node["owners"], name
        assert node["description"], name
    assert {name for name, node in nodes.items() if not node["isPartitioned"]} == {
        "manifest",
        "mask_model",
        "champion",
    }


def test_our_code_causes_no_warning_at_start(server: Server) -> None:
    warnings = [line for line in server.log.read_text().splitlines() if "Warning" in line]
    assert not [line for line in warnings if "SupersessionWarning" not in line]


def test_a_backfill_of_every_shard_leaves_readable_shards(built: Server) -> None:
    shards = sorted((built.home / "store" / "shards").rglob("*.tar"))
    assert [path.stem for path in shards] == ["dev-00000", "test-00000", "train-00000", "train-00001"]
    keys: list[str] = []
    for path in shards:
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert len(names) % 5 == 0
            for member in tar:
                if member.name.endswith(".meta.json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    meta = json.load(io.BytesIO(file.read()))
                    assert meta["shard"] == path.stem
                    keys.append(meta["key"])
    assert len(keys) == len(set(keys)) > 50
    for split in ("train", "dev", "test"):
        index = json.loads((built.home / "store" / "index" / f"{split}.json").read_text())
        assert sum(shard["samples"] for shard in index["shards"]) > 0


def test_materializations_have_a_preview_image(built: Server) -> None:
    query = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
      assetMaterializations(limit: 1) {
        metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } } } }"""
    for asset in ("aligned_pairs", "edit_masks"):
        data = built.query(query, key={"path": [asset]})["assetOrError"]["assetMaterializations"][0]
        entries = {entry["label"]: entry for entry in data["metadataEntries"]}
        assert "data:image/jpeg;base64," in entries["preview"]["mdStr"]


def test_checks_passed_for_every_shard(built: Server) -> None:
    query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
      assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization {
        status } } } } } } }"""
    for asset in ("manifest", "shards"):
        node = built.query(query, key={"path": [asset]})["assetNodeOrError"]
        checks = node["assetChecksOrError"]["checks"]
        assert checks
        for check in checks:
            assert check["executionForLatestMaterialization"]["status"] == "SUCCEEDED", check


@pytest.mark.slow
def test_a_browser_shows_the_graph_and_an_overlay_page(built: Server, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    browser_program = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser_program, "this test needs a Chromium: apt-get install chromium"
    page_file = built.home / "store" / "overlays" / "train-00000" / "index.html"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"],
        )
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        groups = ",".join(f"global@global:{group}" for group in ("dataset", "review", "model"))
        page.goto(f"{built.url}/asset-groups?expanded={groups}")
        for asset in [*SHARD_ASSETS, "manifest", "split_index", "mask_model", "champion"]:
            # The UI abbreviates long names in the middle.
            page.get_by_text(asset[:8]).first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path / "graph.png")

        page.goto(page_file.as_uri())
        images = page.locator("img")
        images.first.wait_for()
        assert images.count() > 10
        images.first.scroll_into_view_if_needed()
        page.wait_for_function("document.images[0].complete && document.images[0].naturalWidth > 0")
        browser.close()
