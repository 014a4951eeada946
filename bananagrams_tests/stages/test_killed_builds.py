"""kill -9 of a shard's build at random moments: whole objects only, and the same bytes in the end."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from bananagrams_assets.graph import ALIGNED_PAIRS, EDIT_MASKS, IMAGE_PAIRS, MANIFEST, SHARDS
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.receipts import read_receipt
from bananagrams_assets.stages.stage import UNPARTITIONED
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store

from ..photos import local_pairs, one_shard
from ..weed import BUCKET, Weed

pytestmark = pytest.mark.slow

SHARD = "train-00000"
KILLS = 20
STAGES = (IMAGE_PAIRS, ALIGNED_PAIRS, EDIT_MASKS, SHARDS)


def build(url: str, manifest: str, variables: dict[str, str]) -> None:
    """All stages of the shard, built anew; in a process of its own."""
    os.environ.update(variables)
    store, profile = open_store(url), one_shard(manifest)
    for stage in STAGES:
        build_partition(store, profile, stage, SHARD, ignore_progress, rebuild=True)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes that have imported all that they need before they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build.__module__, "boto3", "pyarrow.parquet", "cv2"])
    return context


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A store's URL, and the environment of who uses it."""
    home = {"DAGSTER_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    if request.param == "folder":
        return str(tmp_path / "store"), home
    weed: Weed = request.getfixturevalue("weed")
    return f"s3://{BUCKET}/killed", {**home, **weed.variables}


def digests(store: Store) -> dict[str, str]:
    """SHA-256 of what is deterministic: all but times."""
    return {
        name: hashlib.sha256(store.read(name)).hexdigest()
        for name in store.list("")
        if not name.startswith("receipts/") and name != paths.pairs_table(SHARD)
    }


def test_kill_9_leaves_whole_objects_only(
    place: tuple[str, dict[str, str]], workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, variables = place
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    manifest = local_pairs(tmp_path, 5)
    profile, store = one_shard(manifest), open_store(url)
    reference = LocalStore(tmp_path / "reference")
    for one in (store, reference):
        build_partition(one, profile, MANIFEST, UNPARTITIONED, ignore_progress)
    build(reference.url, str(manifest), variables)
    expected = digests(reference)

    def started() -> Any:
        process = workers.Process(target=build, args=(url, str(manifest), variables))
        process.start()
        return process

    # The first process waits for the imports of all.
    for _ in range(2):
        began = time.monotonic()
        first = started()
        first.join()
        assert first.exitcode == 0
        span = time.monotonic() - began
    assert digests(store) == expected

    generator, killed = random.Random(1), 0
    while killed < KILLS:
        if killed % 3 == 0:  # a shard that was never built, and not only one that is built again
            for name in store.list(""):
                if not name.startswith(("manifest/", "receipts/manifest/")):
                    store.delete(name)
        process = started()
        process.join(generator.uniform(0.02, 1.0) * span)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        found = digests(store)
        assert found == {name: expected[name] for name in found}
        for name in store.list(""):
            if name.endswith(".parquet"):
                with store.local_path(name) as path:
                    parquet.read_table(path)
            elif name.endswith(".json"):
                json.loads(store.read(name))
        for stage in STAGES:
            receipt = read_receipt(store, stage.name, SHARD)
            assert receipt is None or all(store.exists(name) for name in receipt.files)

    last = started()
    last.join()
    assert last.exitcode == 0
    assert digests(store) == expected
    if isinstance(store, LocalStore):
        assert not list(store.folder.rglob(".tmp-*"))
    else:
        weed_client = store._client  # type: ignore[attr-defined]
        assert "Uploads" not in weed_client.list_multipart_uploads(Bucket=BUCKET, Prefix="killed/")
