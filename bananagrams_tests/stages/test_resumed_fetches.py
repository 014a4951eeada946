"""Interrupted runs over a shard, and the runs that resume them."""

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
from bananagrams_assets.graph import IMAGE_PAIRS, MANIFEST
from bananagrams_assets.records.record import MANIFEST_COLUMNS
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.store import Store, StoreError
from bananagrams_assets.storage.tables import read_table, write_table
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, make_photo, one_shard, png, quiet, record, write_manifest
from ..servers import Answer, Handler, Server, body, cut_first, stalled, status
from .building import call

SHARD = "train-00000"
BEFORE = [encode_jpeg(make_photo(number), 95) for number in range(3)]
AFTER = [png(edited(make_photo(number))) for number in range(3)]
TIMINGS = ("seconds", "attempts")


def delayed(data: bytes, seconds: float) -> Answer:
    def answer(request: Handler, before: int) -> None:
        request.server.stopping.wait(seconds)
        request.reply(200, data)

    return answer


def remote(server: Server, folder: Path, count: int, latency_s: float = 0.0, **fetch: Any) -> Profile:
    """Return a profile of `count` good pairs on the server without shared images."""
    records = []
    for number in range(count):
        server.answers[f"/{number}.jpg"] = delayed(BEFORE[number % 3], latency_s)
        server.answers[f"/nb/images/{number}.png"] = delayed(AFTER[number % 3], latency_s)
        records.append(
            record(
                number, open_image_input_url=f"{server.url}/{number}.jpg", output_image=f"images/{number}.png"
            )
        )
    source = {"cdn_prefix": f"{server.url}/nb/"}
    return one_shard(write_manifest(folder / "remote", records), source=source, fetch=fetch)


def rows(store: Store) -> list[dict[str, Any]]:
    return read_table(store, paths.pairs_table(SHARD))


def rows_without_timings(store: Store) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows(store)]


PROGRAM = """
import json, sys
from bananagrams_assets.profiles import validate
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.graph import IMAGE_PAIRS
from bananagrams_tests.stages.building import call
call(IMAGE_PAIRS, open_store(sys.argv[1]), validate(json.loads(sys.argv[2])), "train-00000", print)
"""


def start(store: Store, profile: Profile) -> subprocess.Popen[str]:
    """Start a run over the shard in its own process."""
    arguments = [store.url, profile.model_dump_json()]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(store: Store, profile: Profile, server: Server) -> set[str]:
    """Return the URL paths of the images that an ended run has stored."""
    kept, kind = images_in(spool_folder(store.url, SHARD)), profile.fetch.digest()
    return {path for path in list(server.requests) if image_name(kind, f"{server.url}{path}") in kept}


def wait_for_requests(server: Server, more: int, process: subprocess.Popen[str]) -> None:
    target = sum(server.requests.values()) + more
    while sum(server.requests.values()) < target and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.slow
def test_runs_killed_at_any_moment_keep_images_and_give_the_same_bytes(
    server: Server, tmp_path: Path
) -> None:
    profile = remote(server, tmp_path, 120, latency_s=0.05)
    store, uninterrupted = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "uninterrupted")
    call(MANIFEST, store, profile)
    call(MANIFEST, uninterrupted, profile)
    generator = random.Random(5)
    kills = 0
    for _ in range(10):
        before = {path: server.requests[path] for path in finished(store, profile, server)}
        process = start(store, profile)
        wait_for_requests(server, generator.randint(1, 20), process)
        time.sleep(generator.random() * 0.1)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert {path: server.requests[path] for path in before} == before
    assert kills == 10
    before = {path: server.requests[path] for path in finished(store, profile, server)}
    assert before
    again = call(IMAGE_PAIRS, store, profile, SHARD)
    assert {path: server.requests[path] for path in before} == before
    assert again.stats["resumed"] == len(before)
    result = call(IMAGE_PAIRS, uninterrupted, profile, SHARD)
    assert again.content == result.content
    assert store.read(paths.pairs_tar(SHARD)) == uninterrupted.read(paths.pairs_tar(SHARD))
    assert rows_without_timings(store) == rows_without_timings(uninterrupted)
    assert not spool_folder(store.url, SHARD).exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_run_ends_at_once_and_can_be_resumed(
    server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    profile = remote(server, tmp_path, 12, timeout_s=3600.0, deadline_s=3600.0)
    server.answers["/11.jpg"] = stalled
    store = LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)
    process = start(store, profile)
    while len(finished(store, profile, server)) < 23 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=120)
    assert process.returncode in (-signum, 1)
    assert "finished images are kept" in out
    assert not [path for path in store.folder.rglob("*") if "image_pairs" in str(path) and path.is_file()]
    server.requests.clear()
    server.answers["/11.jpg"] = body(BEFORE[0])
    result = call(IMAGE_PAIRS, store, profile, SHARD)
    assert (result.stats["ok"], result.stats["resumed"]) == (12, 23)
    assert dict(server.requests) == {"/11.jpg": 1}


def test_concurrent_runs_over_a_shard_run_one_after_the_other(server: Server, tmp_path: Path) -> None:
    profile, store = remote(server, tmp_path, 4, latency_s=0.1), LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)
    first = threading.Thread(target=lambda: call(IMAGE_PAIRS, store, profile, SHARD))
    with open_spool(store.url, SHARD, "", quiet):
        first.start()
        time.sleep(0.3)
        assert not server.requests
    first.join()
    stats = call(IMAGE_PAIRS, store, profile, SHARD).stats
    assert (stats["kept"], stats["fetched"]) == (4, 0)
    assert set(server.requests.values()) == {1}


def test_only_retryable_failures_are_retried(server: Server, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    profile = remote(server, tmp_path, 7, attempts=2, max_bytes=200_000)
    bad: dict[str, Answer] = {
        "/1.jpg": status(404), "/2.jpg": status(410), "/3.jpg": status(500),
        "/4.jpg": cut_first(9, BEFORE[1]), "/5.jpg": body(bytes(300_000)), "/6.jpg": body(b"<html>"),
    }  # fmt: skip
    server.answers.update(bad)
    call(MANIFEST, store, profile)
    first = call(IMAGE_PAIRS, store, profile, SHARD)
    assert (first.stats["ok"], first.stats["to_retry"]) == (1, 2)
    lost = [row for row in rows(store) if row["status"] != "ok"]
    assert {row["reason"].split(": ")[1]: row["retryable"] for row in lost} == {
        "HTTP 404": False, "HTTP 410": False, "HTTP 500": True, "body cut short": True,
        "file too large": False, "not a picture": False,
    }  # fmt: skip
    server.requests.clear()
    server.answers.update({"/3.jpg": body(BEFORE[0]), "/4.jpg": body(BEFORE[1])})
    again = call(IMAGE_PAIRS, store, profile, SHARD)
    assert set(server.requests) & set(bad) == {"/3.jpg", "/4.jpg"}
    assert (again.stats["ok"], again.stats["kept"], again.stats["to_retry"]) == (3, 1, 0)
    server.requests.clear()
    assert call(IMAGE_PAIRS, store, profile, SHARD).content == again.content
    assert not server.requests


def test_candidates_are_tried_in_order_and_the_successful_one_is_recorded(
    server: Server, tmp_path: Path
) -> None:
    profile, store = remote(server, tmp_path, 3, attempts=1), LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)
    (tmp_path / "existing.jpg").write_bytes(BEFORE[0])
    server.answers.update(
        {"/mirror.jpg": body(BEFORE[1]), "/busy.jpg": status(503), "/page.jpg": body(b"<html>")}
    )
    missing, existing = f"local:{tmp_path}/missing.jpg", f"local:{tmp_path}/existing.jpg"

    def url_of(name: str) -> str:
        return f"{server.url}/{name}"

    lists = [
        [missing, existing, url_of("mirror.jpg")],
        [missing, url_of("gone.jpg"), url_of("page.jpg"), url_of("mirror.jpg")],
        [url_of("busy.jpg"), url_of("gone.jpg")],
    ]
    table = paths.manifest_table(SHARD)
    records = read_table(store, table)
    for row, candidates in zip(records, lists, strict=True):
        row["input_candidates"] = candidates
    pq.write_table(pa.Table.from_pylist(records), store.folder / table)
    call(IMAGE_PAIRS, store, profile, SHARD)
    results = [(row["status"], row["from_input"], row["reason"], row["retryable"]) for row in rows(store)]
    assert results == [
        ("ok", existing, "", False),
        ("ok", url_of("mirror.jpg"), "", False),
        ("failed", url_of("busy.jpg"), "input: HTTP 503", True),
    ]
    # A new candidate makes a final failure retryable.
    records[2]["input_candidates"].append(url_of("mirror.jpg"))
    pq.write_table(pa.Table.from_pylist(records), store.folder / table)
    assert call(IMAGE_PAIRS, store, profile, SHARD).stats["ok"] == 3


def interrupted_before_table(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Profile, LocalStore]:
    """Return profile and store of a run over four pairs that ended between tar and table."""
    profile, store = remote(server, tmp_path, 4), LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bananagrams_assets.stages.image_pairs.write_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(IMAGE_PAIRS, store, profile, SHARD)
    return profile, store


def test_the_journal_of_an_earlier_version_is_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, store = interrupted_before_table(server, tmp_path, monkeypatch)
    (journal,) = spool_folder(store.url, SHARD).glob("*journal*")
    text = journal.read_text().replace('"retryable"', '"may_pass"').replace('"candidates"', '"origins"')
    journal.write_text(text)
    records = read_table(store, paths.manifest_table(SHARD))
    # A changed record in the middle moves the images of the later records from the journal to the spool.
    records[1]["input_url"] += "?changed"
    write_table(store, paths.manifest_table(SHARD), MANIFEST_COLUMNS, records)
    assert call(IMAGE_PAIRS, store, profile, SHARD).stats["records"] == 4
    assert [server.requests[f"/{number}.jpg"] for number in (0, 2, 3)] == [1, 1, 1]
    assert all(row["retryable"] is not None and row["candidates"] for row in rows(store))


def test_a_photo_with_several_edits_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    profile, store = remote(server, tmp_path, 5), LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)
    records = read_table(store, paths.manifest_table(SHARD))
    for number, row in enumerate(records):
        row["input_url"] = f"{server.url}/0.jpg#xywh={number},0,9,9"
    write_table(store, paths.manifest_table(SHARD), MANIFEST_COLUMNS, records)
    assert call(IMAGE_PAIRS, store, profile, SHARD).stats["ok"] == 5
    assert server.requests["/0.jpg"] == 1


def test_an_unwritable_spool_ends_the_run_with_a_message(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, store = remote(server, tmp_path, 3), LocalStore(tmp_path / "store")
    call(MANIFEST, store, profile)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be written"):
        call(IMAGE_PAIRS, store, profile, SHARD)


def test_a_damaged_image_in_the_spool_is_detected(tmp_path: Path) -> None:
    spool_folder("store", SHARD).mkdir(parents=True)
    Spool(spool_folder("store", SHARD), "a").put("x", {"width": 3}, b"content", "not its digest")
    assert not Spool(spool_folder("store", SHARD), "b").holds("x")
    with open_spool("store", SHARD, "a", quiet) as spool:
        assert spool.holds("x")
        assert spool.find("x") is None
        assert not spool.holds("y")
    assert not spool_folder("store", SHARD).exists()


def run_and_kill(store: Store, profile: Profile, server: Server, waiting: int) -> None:
    """Start a run over the shard and kill it once `waiting` images are stored."""
    process = start(store, profile)
    while len(finished(store, profile, server)) < waiting and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_images_behind_a_changed_record_are_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    profile = remote(server, tmp_path, 12, attempts=1, timeout_s=60.0)
    store, uninterrupted = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "uninterrupted")
    call(MANIFEST, store, profile)
    call(MANIFEST, uninterrupted, profile)
    urls = [row["input_url"] for row in read_table(store, paths.manifest_table(SHARD))]
    gone, broken, slow = (urls[index].removeprefix(server.url) for index in (2, 4, 11))
    server.answers.update({gone: status(404), broken: status(500), slow: stalled})
    run_and_kill(store, profile, server, 21)
    server.requests.clear()
    server.answers.update({broken: body(BEFORE[0]), slow: body(BEFORE[1])})
    again = call(IMAGE_PAIRS, store, profile, SHARD)
    assert set(server.requests) == {broken, slow}
    assert again.content == call(IMAGE_PAIRS, uninterrupted, profile, SHARD).content
    assert store.read(paths.pairs_tar(SHARD)) == uninterrupted.read(paths.pairs_tar(SHARD))


def test_a_damaged_tar_is_resumed_up_to_the_damage(server: Server, tmp_path: Path) -> None:
    profile = remote(server, tmp_path, 12, timeout_s=60.0)
    server.answers["/11.jpg"] = stalled
    store, uninterrupted = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "uninterrupted")
    call(MANIFEST, store, profile)
    call(MANIFEST, uninterrupted, profile)
    run_and_kill(store, profile, server, 23)
    tar = spool_folder(store.url, SHARD) / "pairs.tar"
    data = bytearray(tar.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096)
    tar.write_bytes(data)
    server.requests.clear()
    server.answers["/11.jpg"] = body(BEFORE[11 % 3])
    stats = call(IMAGE_PAIRS, store, profile, SHARD).stats
    assert 0 < stats["resumed"] == 24 - sum(server.requests.values()) < 23
    call(IMAGE_PAIRS, uninterrupted, profile, SHARD)
    assert store.read(paths.pairs_tar(SHARD)) == uninterrupted.read(paths.pairs_tar(SHARD))


def test_a_run_killed_between_tar_and_table_downloads_nothing_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, store = interrupted_before_table(server, tmp_path, monkeypatch)
    tar = store.read(paths.pairs_tar(SHARD))
    records = read_table(store, paths.manifest_table(SHARD))
    write_table(store, paths.manifest_table(SHARD), MANIFEST_COLUMNS, records[:2])
    with store.open(paths.pairs_tar(SHARD)) as reader:
        assert call(IMAGE_PAIRS, store, profile, SHARD).stats["ok"] == 2
        # The file that is already in the store does not change under its readers.
        assert reader.read() == tar
    assert set(server.requests.values()) == {1}
