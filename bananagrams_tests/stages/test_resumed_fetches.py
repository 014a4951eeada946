"""Runs over a shard that end too early, and the runs after them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.fetching.spool import Spool, image_name, images_in, open_spool, spool_folder
from bananagrams_assets.stages.image_pairs import fetch_pairs
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.store import Store, StoreError
from bananagrams_assets.storage.tables import MANIFEST, read_table, write_table
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, one_shard, photograph, png, quiet, record, write_manifest
from ..servers import Answer, Handler, Server, body, cut_first, stalled, status

SHARD = "train-00000"
BEFORE = [encode_jpeg(photograph(number), 95) for number in range(3)]
AFTER = [png(edited(photograph(number))) for number in range(3)]
TIMINGS = ("seconds", "attempts")


def slowly(data: bytes, seconds: float) -> Answer:
    def answer(request: Handler, before: int) -> None:
        request.server.stopping.wait(seconds)
        request.reply(200, data)

    return answer


def remote(server: Server, folder: Path, count: int, latency_s: float = 0.0, **fetch: Any) -> Profile:
    """A profile of `count` good pairs on the server; no two share a picture."""
    records = []
    for number in range(count):
        server.answers[f"/{number}.jpg"] = slowly(BEFORE[number % 3], latency_s)
        server.answers[f"/nb/images/{number}.png"] = slowly(AFTER[number % 3], latency_s)
        records.append(
            record(
                number, open_image_input_url=f"{server.url}/{number}.jpg", output_image=f"images/{number}.png"
            )
        )
    source = {"cdn_prefix": f"{server.url}/nb/"}
    return one_shard(write_manifest(folder / "remote", records), source=source, fetch=fetch)


def rows(store: Store) -> list[dict[str, Any]]:
    return read_table(store, paths.pairs_table(SHARD))


def timeless(store: Store) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows(store)]


PROGRAM = """
import json, sys
from bananagrams_assets.profiles import validate
from bananagrams_assets.stages.image_pairs import fetch_pairs
from bananagrams_assets.storage.open_store import open_store
fetch_pairs(open_store(sys.argv[1]), validate(json.loads(sys.argv[2])), "train-00000", print)
"""


def start(store: Store, profile: Profile) -> subprocess.Popen[str]:
    """A run over the shard in a process of its own."""
    arguments = [store.url, profile.model_dump_json()]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(store: Store, profile: Profile, server: Server) -> set[str]:
    """Paths of the pictures that an ended run has left whole."""
    kept, kind = images_in(spool_folder(store.url, SHARD)), profile.fetch.digest()
    return {path for path in list(server.asked) if image_name(kind, f"{server.url}{path}") in kept}


def wait_for_requests(server: Server, more: int, process: subprocess.Popen[str]) -> None:
    target = sum(server.asked.values()) + more
    while sum(server.asked.values()) < target and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.slow
def test_runs_killed_at_any_moment_lose_nothing_and_change_nothing(server: Server, tmp_path: Path) -> None:
    profile = remote(server, tmp_path, 120, latency_s=0.05)
    store, whole = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "whole")
    build_manifest(store, profile, quiet)
    build_manifest(whole, profile, quiet)
    generator = random.Random(5)
    kills = 0
    for _ in range(10):
        before = {path: server.asked[path] for path in finished(store, profile, server)}
        process = start(store, profile)
        wait_for_requests(server, generator.randint(1, 20), process)
        time.sleep(generator.random() * 0.1)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert {path: server.asked[path] for path in before} == before
    assert kills == 10
    before = {path: server.asked[path] for path in finished(store, profile, server)}
    assert before
    again = fetch_pairs(store, profile, SHARD, quiet)
    assert {path: server.asked[path] for path in before} == before
    assert again.stats["resumed"] == len(before)
    result = fetch_pairs(whole, profile, SHARD, quiet)
    assert again.content == result.content
    assert store.read(paths.pairs_tar(SHARD)) == whole.read(paths.pairs_tar(SHARD))
    assert timeless(store) == timeless(whole)
    assert not spool_folder(store.url, SHARD).exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_run_waits_for_no_image_and_can_be_taken_up(
    server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    profile = remote(server, tmp_path, 12, timeout_s=3600.0, deadline_s=3600.0)
    server.answers["/11.jpg"] = stalled
    store = LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)
    process = start(store, profile)
    while len(finished(store, profile, server)) < 23 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=120)
    assert process.returncode in (-signum, 1)
    assert "finished pictures are kept" in out
    assert not [path for path in store.folder.rglob("*") if "image_pairs" in str(path) and path.is_file()]
    server.asked.clear()
    server.answers["/11.jpg"] = body(BEFORE[0])
    result = fetch_pairs(store, profile, SHARD, quiet)
    assert (result.stats["ok"], result.stats["resumed"]) == (12, 23)
    assert dict(server.asked) == {"/11.jpg": 1}


def test_a_second_run_over_a_shard_waits_for_the_first(server: Server, tmp_path: Path) -> None:
    profile, store = remote(server, tmp_path, 4, latency_s=0.1), LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)
    first = threading.Thread(target=lambda: fetch_pairs(store, profile, SHARD, quiet))
    with open_spool(store.url, SHARD, "", quiet):
        first.start()
        time.sleep(0.3)
        assert not server.asked
    first.join()
    stats = fetch_pairs(store, profile, SHARD, quiet).stats
    assert (stats["kept"], stats["fetched"]) == (4, 0)
    assert set(server.asked.values()) == {1}


def test_only_retryable_failures_are_asked_for_again(server: Server, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    profile = remote(server, tmp_path, 7, attempts=2, max_bytes=200_000)
    bad: dict[str, Answer] = {
        "/1.jpg": status(404), "/2.jpg": status(410), "/3.jpg": status(500),
        "/4.jpg": cut_first(9, BEFORE[1]), "/5.jpg": body(bytes(300_000)), "/6.jpg": body(b"<html>"),
    }  # fmt: skip
    server.answers.update(bad)
    build_manifest(store, profile, quiet)
    first = fetch_pairs(store, profile, SHARD, quiet)
    assert (first.stats["ok"], first.stats["to_retry"]) == (1, 2)
    lost = [row for row in rows(store) if row["status"] != "ok"]
    assert {row["reason"].split(": ")[1]: row["retryable"] for row in lost} == {
        "HTTP 404": False, "HTTP 410": False, "HTTP 500": True, "body cut short": True,
        "file too large": False, "not a picture": False,
    }  # fmt: skip
    server.asked.clear()
    server.answers.update({"/3.jpg": body(BEFORE[0]), "/4.jpg": body(BEFORE[1])})
    again = fetch_pairs(store, profile, SHARD, quiet)
    assert set(server.asked) & set(bad) == {"/3.jpg", "/4.jpg"}
    assert (again.stats["ok"], again.stats["kept"], again.stats["to_retry"]) == (3, 1, 0)
    server.asked.clear()
    assert fetch_pairs(store, profile, SHARD, quiet).content == again.content
    assert not server.asked


def test_sources_are_tried_in_their_order_and_the_one_that_served_is_told(
    server: Server, tmp_path: Path
) -> None:
    profile, store = remote(server, tmp_path, 3, attempts=1), LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)
    (tmp_path / "mine.jpg").write_bytes(BEFORE[0])
    server.answers.update(
        {"/mirror.jpg": body(BEFORE[1]), "/busy.jpg": status(503), "/page.jpg": body(b"<html>")}
    )
    missing, mine = f"local:{tmp_path}/missing.jpg", f"local:{tmp_path}/mine.jpg"

    def at(name: str) -> str:
        return f"{server.url}/{name}"

    lists = [
        [missing, mine, at("mirror.jpg")],
        [missing, at("gone.jpg"), at("page.jpg"), at("mirror.jpg")],
        [at("busy.jpg"), at("gone.jpg")],
    ]
    table = paths.manifest_table(SHARD)
    records = read_table(store, table)
    for found, candidates in zip(records, lists, strict=True):
        found["input_candidates"] = candidates
    pq.write_table(pa.Table.from_pylist(records), store.folder / table)
    fetch_pairs(store, profile, SHARD, quiet)
    got = [(row["status"], row["from_input"], row["reason"], row["retryable"]) for row in rows(store)]
    assert got == [
        ("ok", mine, "", False),
        ("ok", at("mirror.jpg"), "", False),
        ("failed", at("busy.jpg"), "input: HTTP 503", True),
    ]
    # A new source for a record is a reason to ask again.
    records[2]["input_candidates"].append(at("mirror.jpg"))
    pq.write_table(pa.Table.from_pylist(records), store.folder / table)
    assert fetch_pairs(store, profile, SHARD, quiet).stats["ok"] == 3


def test_a_photograph_of_many_edits_is_fetched_once(server: Server, tmp_path: Path) -> None:
    profile, store = remote(server, tmp_path, 5), LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)
    records = read_table(store, paths.manifest_table(SHARD))
    for number, found in enumerate(records):
        found["input_url"] = f"{server.url}/0.jpg#xywh={number},0,9,9"
    write_table(store, paths.manifest_table(SHARD), MANIFEST, records)
    assert fetch_pairs(store, profile, SHARD, quiet).stats["ok"] == 5
    assert server.asked["/0.jpg"] == 1


def test_a_spool_that_cannot_be_written_ends_the_run_with_that_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, store = remote(server, tmp_path, 3), LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be written"):
        fetch_pairs(store, profile, SHARD, quiet)


def test_what_is_left_of_a_image_is_found_out(tmp_path: Path) -> None:
    spool_folder("store", SHARD).mkdir(parents=True)
    Spool(spool_folder("store", SHARD), "a").put("x", {"width": 3}, b"content", "not its digest")
    assert not Spool(spool_folder("store", SHARD), "b").holds("x")
    with open_spool("store", SHARD, "a", quiet) as spool:
        assert spool.holds("x")
        assert spool.find("x") is None
        assert not spool.holds("y")
    assert not spool_folder("store", SHARD).exists()


def interrupted(store: Store, profile: Profile, server: Server, waiting: int) -> None:
    """Start a run over the shard and kill it once so many pictures are kept."""
    process = start(store, profile)
    while len(finished(store, profile, server)) < waiting and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_what_follows_a_record_that_failed_or_changed_is_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    profile = remote(server, tmp_path, 12, attempts=1, timeout_s=60.0)
    store, whole = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "whole")
    build_manifest(store, profile, quiet)
    build_manifest(whole, profile, quiet)
    urls = [found["input_url"] for found in read_table(store, paths.manifest_table(SHARD))]
    gone, broken, slow = (urls[at].removeprefix(server.url) for at in (2, 4, 11))
    server.answers.update({gone: status(404), broken: status(500), slow: stalled})
    interrupted(store, profile, server, 21)
    server.asked.clear()
    server.answers.update({broken: body(BEFORE[0]), slow: body(BEFORE[1])})
    again = fetch_pairs(store, profile, SHARD, quiet)
    assert set(server.asked) == {broken, slow}
    assert again.content == fetch_pairs(whole, profile, SHARD, quiet).content
    assert store.read(paths.pairs_tar(SHARD)) == whole.read(paths.pairs_tar(SHARD))


def test_a_tar_that_lost_bytes_is_taken_up_as_far_as_it_is_whole(server: Server, tmp_path: Path) -> None:
    profile = remote(server, tmp_path, 12, timeout_s=60.0)
    server.answers["/11.jpg"] = stalled
    store, whole = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "whole")
    build_manifest(store, profile, quiet)
    build_manifest(whole, profile, quiet)
    interrupted(store, profile, server, 23)
    tar = spool_folder(store.url, SHARD) / "pairs.tar"
    data = bytearray(tar.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096)
    tar.write_bytes(data)
    server.asked.clear()
    server.answers["/11.jpg"] = body(BEFORE[11 % 3])
    stats = fetch_pairs(store, profile, SHARD, quiet).stats
    assert 0 < stats["resumed"] == 24 - sum(server.asked.values()) < 23
    fetch_pairs(whole, profile, SHARD, quiet)
    assert store.read(paths.pairs_tar(SHARD)) == whole.read(paths.pairs_tar(SHARD))


def test_a_run_killed_between_tar_and_table_fetches_nothing_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, store = remote(server, tmp_path, 4), LocalStore(tmp_path / "store")
    build_manifest(store, profile, quiet)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bananagrams_assets.stages.image_pairs.write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_pairs(store, profile, SHARD, quiet)
    tar = store.read(paths.pairs_tar(SHARD))
    records = read_table(store, paths.manifest_table(SHARD))
    write_table(store, paths.manifest_table(SHARD), MANIFEST, records[:2])
    with store.open(paths.pairs_tar(SHARD)) as reader:
        assert fetch_pairs(store, profile, SHARD, quiet).stats["ok"] == 2
        # The file that the store had already is not changed under its readers.
        assert reader.read() == tar
    assert set(server.asked.values()) == {1}
