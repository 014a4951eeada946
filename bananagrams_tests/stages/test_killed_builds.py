"""SIGKILL at random times leaves only complete objects, and the next build writes the same bytes."""

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
    """Rebuild all stages of the shard. Runs in its own process."""
    os.environ.update(variables)
    store, profile = open_store(url), one_shard(manifest)
    for stage in STAGES:
        build_partition(store, profile, stage, SHARD, ignore_progress, rebuild=True)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a process context whose processes start with all modules imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([build.__module__, "boto3", "pyarrow.parquet", "cv2"])
    return context


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Return the URL of a store and the environment variables for its use."""
    home = {"DAGSTER_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    if request.param == "folder":
        return str(tmp_path / "store"), home
    weed: Weed = request.getfixturevalue("weed")
    return f"s3://{BUCKET}/killed", {**home, **weed.variables}


def digests(store: Store) -> dict[str, str]:
    """Return the SHA-256 of the deterministic objects, those without times."""
    return {
        name: hashlib.sha256(store.read(name)).hexdigest()
        for name in store.list("")
        if not name.startswith("receipts/") and name != paths.pairs_table(SHARD)
    }


def test_sigkill_leaves_only_complete_objects(
    location: tuple[str, dict[str, str]], workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, variables = location
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    manifest = local_pairs(tmp_path, 5)
    profile, store = one_shard(manifest), open_store(url)
    reference = LocalStore(tmp_path / "reference")
    for built_store in (store, reference):
        build_partition(built_store, profile, MANIFEST, UNPARTITIONED, ignore_progress)
    build(reference.url, str(manifest), variables)
    expected = digests(reference)

    def start_build() -> Any:
        process = workers.Process(target=build, args=(url, str(manifest), variables))
        process.start()
        return process

    # The first process also waits for the imports, so only the second one measures a build.
    for _ in range(2):
        start = time.monotonic()
        first = start_build()
        first.join()
        assert first.exitcode == 0
        duration_s = time.monotonic() - start
    assert digests(store) == expected

    generator, killed = random.Random(1), 0
    while killed < KILLS:
        if killed % 3 == 0:  # test the first build of a shard as well as rebuilds
            for name in store.list(""):
                if not name.startswith(("manifest/", "receipts/manifest/")):
                    store.delete(name)
        process = start_build()
        process.join(generator.uniform(0.02, 1.0) * duration_s)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        stored = digests(store)
        assert stored == {name: expected[name] for name in stored}
        for name in store.list(""):
            if name.endswith(".parquet"):
                with store.local_path(name) as path:
                    parquet.read_table(path)
            elif name.endswith(".json"):
                json.loads(store.read(name))
        for stage in STAGES:
            receipt = read_receipt(store, stage.name, SHARD)
            assert receipt is None or all(store.exists(name) for name in receipt.files)

    last = start_build()
    last.join()
    assert last.exitcode == 0
    assert digests(store) == expected
    if isinstance(store, LocalStore):
        assert not list(store.folder.rglob(".tmp-*"))
    else:
        weed_client = store._client  # type: ignore[attr-defined]
        assert "Uploads" not in weed_client.list_multipart_uploads(Bucket=BUCKET, Prefix="killed/")
