"""Builds from a local server through the command line: retrying failures and cancelling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from bananagrams_assets.fetching.spool import images_in
from bananagrams_assets.vision.images import encode_jpeg

from .photos import edited, make_photo, png, record, write_manifest
from .servers import Server, body, stalled, status

ONE_SHARD = ["train={ratio: 1.0, shards: 1}", "dev={ratio: 0.0, shards: 1}", "test={ratio: 0.0, shards: 1}"]


def build_arguments(server: Server, folder: Path) -> list[str]:
    """Serve six pairs and write their manifest; return arguments of `build` for one shard of them."""
    records = []
    for number in range(6):
        photo = make_photo(number)
        server.answers[f"/{number}.jpg"] = body(encode_jpeg(photo, 95))
        server.answers[f"/nb/{number}.png"] = body(png(edited(photo)))
        url = f"{server.url}/{number}.jpg"
        records.append(record(number, open_image_input_url=url, output_image=f"{number}.png"))
    settings = [
        f"source.cdn_prefix={server.url}/nb/", "fetch.attempts=1",
        *(f"splits.{split}" for split in ONE_SHARD),
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["--manifest", str(write_manifest(folder, records)), "--store", str(folder / "store"), *sets]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bananagrams_assets.cli", *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=dict(os.environ), start_new_session=True,
    )  # fmt: skip


def run(*arguments: str) -> str:
    process = start(*arguments)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.mark.slow
def test_status_lists_retryable_failures_and_a_build_retries_them(server: Server, tmp_path: Path) -> None:
    arguments = build_arguments(server, tmp_path)
    good = server.answers["/1.jpg"]
    server.answers.update({"/1.jpg": status(500), "/2.jpg": status(404)})
    run("build", *arguments)
    out = run("status", *arguments[2:])
    assert "input: HTTP 500" in out
    assert "1 failures can be retried: bananagrams build --retry-failed" in out
    assert "time left: none" in out
    server.answers["/1.jpg"] = good
    server.requests.clear()
    assert "everything is up to date" in run("build", *arguments)
    assert not server.requests
    run("build", "--retry-failed", *arguments)
    assert {path for path in server.requests if path.endswith(".jpg")} == {"/1.jpg"}
    samples = pd.read_parquet(tmp_path / "store/shards/train/train-00000.parquet")
    assert (samples.status == "written").sum() == 5
    assert "everything is up to date" in run("build", "--retry-failed", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_cancelled_build_ends_all_its_processes(
    server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    long_timeouts = ["--set", "fetch.timeout_s=3600", "--set", "fetch.deadline_s=3600"]
    arguments = [*build_arguments(server, tmp_path), *long_timeouts]
    server.answers["/5.jpg"] = stalled
    process = start("build", *arguments)
    spool = Path(os.environ["DAGSTER_HOME"]) / "spool"
    while not server.requests["/5.jpg"] or sum(map(len, map(images_in, spool.glob("*/")))) < 11:
        time.sleep(0.05)
        assert process.poll() is None
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does
    else:
        process.send_signal(signum)
    # The pipe closes when the last process of the build ends, while the image is still being sent.
    process.communicate(timeout=120)
    assert process.returncode != 0
    server.answers["/5.jpg"] = server.answers["/4.jpg"]
    server.requests.clear()
    run("build", *arguments)
    assert {path for path, times in server.requests.items() if times} <= {"/5.jpg"}
