"""Builds by command on a real S3 server and on full disks; every stored file must be complete."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananagrams_assets.dataset.verify import verify
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.store import Store

from .photos import quiet
from .weed import BUCKET, Weed, serving

pytestmark = pytest.mark.slow

FEW = [
    *("--set", "source.sample.pairs=12", "--set", "source.sample.side_px=160"),
    *("--set", "overlays.max_samples=2", "--set", "splits.train.shards=1"),
]
TIMED = ("receipts/", "image_pairs/")
"""Folders whose files other than tars hold times of a run."""


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """An S3 server of this module, which tests kill."""
    with serving(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DAGSTER_HOME of all builds in this module, so that the sample is made once."""
    return tmp_path_factory.mktemp("home")


def start_build(home: Path, store: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bananagrams_assets.cli", "build", "--store", store, *FEW],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "DAGSTER_HOME": str(home), **variables},
    )  # fmt: skip


def run_build(home: Path, store: str, **variables: str) -> tuple[int, str]:
    process = start_build(home, store, **variables)
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


@pytest.fixture(scope="module")
def local(home: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    folder = tmp_path_factory.mktemp("local") / "store"
    code, output = run_build(home, str(folder))
    assert code == 0, output
    return LocalStore(folder)


def contents(store: Store) -> dict[str, bytes]:
    return {
        name: store.read(name)
        for name in store.list("")
        if not name.startswith(TIMED) or name.endswith(".tar")
    }


def assert_one_line_error(output: str, *parts: str) -> None:
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, output
    for part in parts:
        assert part in errors[0]


def test_the_demo_dataset_is_the_same_in_a_bucket_and_a_folder(
    weed: Weed, home: Path, local: LocalStore
) -> None:
    code, output = run_build(home, f"s3://{BUCKET}/demo", **weed.variables)
    assert code == 0, output
    bucket = open_store(f"s3://{BUCKET}/demo", weed.client())
    assert set(bucket.list("")) == {name for name in local.list("") if name != "mlflow.db"}
    assert contents(bucket) == {name: data for name, data in contents(local).items() if name != "mlflow.db"}
    assert verify(bucket, 2, quiet).faults == []
    code, output = run_build(home, f"s3://{BUCKET}/demo", **weed.variables)
    assert (code, "everything is up to date" in output) == (0, True)


def test_a_build_survives_a_restart_of_the_server(weed: Weed, home: Path, local: LocalStore) -> None:
    url = f"s3://{BUCKET}/killed"
    process = start_build(home, url, **weed.variables)
    bucket = open_store(url, weed.client())
    while not any(name.endswith(".tar") for name in bucket.list("image_pairs/")):
        assert process.poll() is None
        time.sleep(0.1)
    weed.kill()
    weed.start()
    output, _ = process.communicate(timeout=400)
    expected = contents(local)
    stored = contents(bucket)
    assert stored == {name: expected[name] for name in stored}
    if process.returncode:
        assert "Error: " in output
    assert run_build(home, url, **weed.variables)[0] == 0
    assert contents(bucket) == expected


def test_a_wrong_key_a_missing_bucket_and_a_missing_server_are_one_line_errors(
    weed: Weed, home: Path
) -> None:
    code, output = run_build(home, f"s3://{BUCKET}/x", **{**weed.variables, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert code == 1
    assert_one_line_error(output, f"s3://{BUCKET}/x", "AWS_SECRET_ACCESS_KEY")
    code, output = run_build(home, "s3://no-such-bucket/x", **weed.variables)
    assert code == 1
    assert_one_line_error(output, "s3://no-such-bucket: there is no such bucket", weed.endpoint)
    code, output = run_build(
        home, f"s3://{BUCKET}/x", **{**weed.variables, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )
    assert code == 1
    assert_one_line_error(output, f"s3://{BUCKET}/x", "Could not connect")
    assert open_store(f"s3://{BUCKET}/x", weed.client()).list("") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"cannot mount a small disk: {mounting.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_one_line_error_and_leaves_no_incomplete_file(
    home: Path, local: LocalStore, small_disk: Path
) -> None:
    code, output = run_build(home, str(small_disk / "store"))
    assert code == 1
    assert_one_line_error(output, str(small_disk / "store"), "No space left on device")
    stored = contents(LocalStore(small_disk / "store"))
    assert stored == {name: data for name, data in contents(local).items() if name in stored}
    assert not list(small_disk.rglob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, output = run_build(home, str(small_disk / "store"))
    assert code == 0, output
    assert contents(LocalStore(small_disk / "store")) == contents(local)


def test_a_full_disk_for_pending_uploads_is_a_one_line_error(
    weed: Weed, home: Path, local: LocalStore, small_disk: Path
) -> None:
    url = f"s3://{BUCKET}/waiting"
    (small_disk / "full").write_bytes(bytes(550_000))
    code, output = run_build(home, url, **weed.variables, TMPDIR=str(small_disk))
    assert code == 1
    assert_one_line_error(output, "TMPDIR")
    stored = contents(open_store(url, weed.client()))
    assert stored == {name: data for name, data in contents(local).items() if name in stored}
