"""Termination of a run through the web server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bananagrams_assets.fetching.spool import images_in
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.paths import pairs_tar
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, make_photo, png, record, write_manifest
from ..servers import body, serving, stalled
from .server import Server, dagster_dev, wait_for
from .test_dagster_dev import LAUNCH_RUN, RUN

SHARD = "train-00000"
TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"


def launch(server: Server, asset: str, partition: str | None) -> str:
    """Launch a run of one asset; return its id."""
    tags = [{"key": "dagster/partition", "value": partition}] if partition else []
    selector = {
        "repositoryLocationName": "bananagrams", "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB", "assetSelection": [{"path": [asset]}],
    }  # fmt: skip
    params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    result = server.query(LAUNCH_RUN, params=params)["launchRun"]
    assert result["__typename"] == "LaunchRunSuccess", result
    return str(result["run"]["runId"])


def status_of(server: Server, run: str) -> str:
    return str(server.query(RUN, id=run)["runOrError"]["status"])


def final_status(server: Server, run: str) -> str:
    def finished() -> str | None:
        status = status_of(server, run)
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    return str(wait_for(server, f"run {run}", finished, 120))


@pytest.mark.slow
def test_a_terminated_run_stops_at_once_and_keeps_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", "127.0.0.1")
    with serving() as images:
        records = []
        for number in range(6):
            photo = make_photo(number)
            images.answers[f"/{number}.jpg"] = body(encode_jpeg(photo, 95))
            images.answers[f"/nb/{number}.png"] = body(png(edited(photo)))
            url = f"{images.url}/{number}.jpg"
            records.append(record(number, open_image_input_url=url, output_image=f"{number}.png"))
        images.answers["/5.jpg"] = stalled
        settings = [
            f"source.manifests=[{write_manifest(tmp_path, records)}]",
            f"source.cdn_prefix={images.url}/nb/", "fetch.timeout_s=3600", "fetch.deadline_s=3600",
            *(f"splits.{name}={{ratio: {ratio}, shards: 1}}" for name, ratio in
              (("train", 1.0), ("dev", 0.0), ("test", 0.0))),
        ]  # fmt: skip
        with dagster_dev(tmp_path, settings) as server:
            assert final_status(server, launch(server, "manifest", None)) == "SUCCESS"
            run = launch(server, "image_pairs", SHARD)
            spool = server.home / "spool"
            wait_for(server, "11 images", lambda: sum(map(len, map(images_in, spool.glob("*/")))) >= 11, 120)
            assert images.requests["/5.jpg"] == 1
            server.query(TERMINATE, id=run)
            assert final_status(server, run) == "CANCELED"
            images.answers["/5.jpg"] = images.answers["/4.jpg"]
            images.requests.clear()
            assert final_status(server, launch(server, "image_pairs", SHARD)) == "SUCCESS"
            assert dict(images.requests) == {"/5.jpg": 1}
            assert LocalStore(server.home / "store").exists(pairs_tar(SHARD))
