"""Builds from a server, as commands: what failed and may pass is fetched by the next one that is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from bananagrams_assets.fetching.spool import images_in
from bananagrams_assets.vision.images import encode_jpeg

from .photos import edited, photograph, png, record, write_manifest
from .servers import Server, body, serving, stalled, status

ONE_SHARD = ["train={ratio: 1.0, shards: 1}", "dev={ratio: 0.0, shards: 1}", "test={ratio: 0.0, shards: 1}"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", "127.0.0.1")
    with serving() as server:
        yield server


def arguments(server: Server, folder: Path) -> list[str]:
    records = []
    for number in range(6):
        photo = photograph(number)
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


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bananagrams_assets.cli", *words], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=dict(os.environ), start_new_session=True,
    )  # fmt: skip


def done(*words: str) -> str:
    process = started(*words)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.mark.slow
def test_status_tells_what_to_retry_and_a_build_retries_it(server: Server, tmp_path: Path) -> None:
    chosen = arguments(server, tmp_path)
    good = server.answers["/1.jpg"]
    server.answers.update({"/1.jpg": status(500), "/2.jpg": status(404)})
    done("build", *chosen)
    out = done("status", *chosen[2:])
    assert "input: HTTP 500" in out
    assert "1 failures may pass: bananagrams build --retry-failed" in out
    assert "time left: none" in out
    server.answers["/1.jpg"] = good
    server.asked.clear()
    assert "everything is up to date" in done("build", *chosen)
    assert not server.asked
    done("build", "--retry-failed", *chosen)
    assert {path for path in server.asked if path.endswith(".jpg")} == {"/1.jpg"}
    samples = pd.read_parquet(tmp_path / "store/shards/train/train-00000.parquet")
    assert (samples.status == "written").sum() == 5
    assert "everything is up to date" in done("build", "--retry-failed", *chosen)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_cancelled_build_ends_with_all_its_processes(
    server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    patient = ["--set", "fetch.timeout_s=3600", "--set", "fetch.deadline_s=3600"]
    chosen = [*arguments(server, tmp_path), *patient]
    server.answers["/5.jpg"] = stalled
    process = started("build", *chosen)
    spool = Path(os.environ["DAGSTER_HOME"]) / "spool"
    while not server.asked["/5.jpg"] or sum(map(len, map(images_in, spool.glob("*/")))) < 11:
        time.sleep(0.05)
        assert process.poll() is None
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does
    else:
        process.send_signal(signum)
    # The pipe is at its end when the last process that holds it is; the picture never comes.
    process.communicate(timeout=120)
    assert process.returncode != 0
    server.answers["/5.jpg"] = server.answers["/4.jpg"]
    server.asked.clear()
    done("build", *chosen)
    assert {path for path, times in server.asked.items() if times} <= {"/5.jpg"}
