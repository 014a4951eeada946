"""A shard from a server that does everything wrong that servers do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.fetching import rate_limits
from bananagrams_assets.stages.image_pairs import fetch_pairs
from bananagrams_assets.stages.manifest import build_manifest
from bananagrams_assets.stages.stage import UNPARTITIONED, write_receipt
from bananagrams_assets.stages.status import retryable_failures, status_of
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import read_samples
from bananagrams_assets.storage.tables import read_table
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, one_shard, photograph, png, quiet, record, write_manifest
from ..servers import (
    Answer,
    Handler,
    Server,
    body,
    cut_first,
    drip,
    endless,
    failing_first,
    http_date,
    stalled,
    status,
)

SHARD = "train-00000"
PHOTO, EDIT = encode_jpeg(photograph(1), 95), png(edited(photograph(1)))
AT_ONCE = 5


def hangs_up(request: Handler, before: int) -> None:
    """Closes the connection without a word."""
    request.close_connection = True


def hangs_up_first(data: bytes) -> Answer:
    return lambda request, before: request.reply(200, data) if before else hangs_up(request, before)


def without_length(data: bytes) -> Answer:
    """Sends this and hangs up; nothing tells whether it is all."""

    def answer(request: Handler, before: int) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(data)
        request.close_connection = True

    return answer


def wrong_length(data: bytes, announced: int) -> Answer:
    def answer(request: Handler, before: int) -> None:
        request.reply(200, data, Content_Length=str(announced))
        request.close_connection = True

    return answer


OUTSIDE = "host is not on the public internet"
PAGE = b"<!doctype html><title>Sign in</title>"
GOOD: dict[str, Answer] = {
    "plain": body(PHOTO),
    "503 first": failing_first(1, 503, PHOTO),
    "429 with seconds first": failing_first(1, 429, PHOTO, Retry_After="1"),
    "half first": cut_first(1, PHOTO),
    "hangs up first": hangs_up_first(PHOTO),
    "redirects": status(302, Location="/plain.jpg"),
    "without length": without_length(PHOTO),
}
BAD: dict[str, tuple[Answer, str, str, bool]] = {
    "503": (status(503), "failed", "HTTP 503", True),
    "429": (status(429, Retry_After="0"), "failed", "HTTP 429", True),
    "500": (status(500), "failed", "HTTP 500", True),
    "half": (cut_first(99, PHOTO), "failed", "body cut short", True),
    "half without length": (without_length(PHOTO[: len(PHOTO) // 2]), "failed", "body cut short", True),
    "hangs up": (hangs_up, "failed", "no connection", True),
    "stalled": (stalled, "failed", "timeout", True),
    "drips": (drip, "failed", "timeout", True),
    "endless": (endless, "refused", "file too large", False),
    "page": (status(200, PAGE, Content_Type="image/png"), "failed", "not a picture", False),
    "inside": (status(302, Location="http://10.0.0.1/a"), "refused", OUTSIDE, False),
    "404": (status(404), "failed", "HTTP 404", False),
    "too long announced": (wrong_length(PHOTO, len(PHOTO) + 50), "failed", "body cut short", True),
    "too short announced": (wrong_length(PHOTO, len(PHOTO) // 2), "failed", "broken JPEG", False),
    "opted out": (status(200, PHOTO, X_Robots_Tag="noai"), "refused", "opted out", False),
}  # fmt: skip


class Crowd:
    """Counts the requests that are answered at once."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def around(self, inner: Answer) -> Answer:
        def answer(request: Handler, before: int) -> None:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            # Counted out before the last byte: the client may be gone on before this thread is.
            request.server.stopping.wait(0.01)
            with self.lock:
                self.now -= 1
            inner(request, before)

        return answer


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


@pytest.fixture
def profile(server: Server, tmp_path: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> Profile:
    # A server as bad as this would be asked ever more slowly: rightly, but a test should end.
    monkeypatch.setattr(rate_limits, "SLOWEST_PER_S", 20.0)
    answers = GOOD | {name: answer for name, (answer, *_) in BAD.items()}
    records = []
    for number, (name, answer) in enumerate(answers.items()):
        path = f"/{name.replace(' ', '-')}.jpg"
        server.answers[path] = crowd.around(answer)
        server.answers[f"/nb/{number}.png"] = crowd.around(body(EDIT))
        url = f"{server.url}{path}"
        records.append(record(number, open_image_input_url=url, output_image=f"{number}.png", text=name))
    return one_shard(
        write_manifest(tmp_path / "remote", records),
        source={"cdn_prefix": f"{server.url}/nb/"},
        fetch={
            "attempts": 3,
            "timeout_s": 1.0,
            "in_flight": AT_ONCE,
            "concurrency": 12,
            "max_bytes": 2_000_000,
        },
    )


def test_every_good_pair_comes_and_every_bad_one_is_a_row(
    server: Server, tmp_path: Path, profile: Profile, crowd: Crowd
) -> None:
    store = LocalStore(tmp_path / "store")
    results = build_manifest(store, profile, quiet)
    result = fetch_pairs(store, profile, SHARD, quiet)
    names = {row["key"]: row["text"] for row in read_table(store, paths.manifest_table(SHARD))}
    rows = {names[row["key"]]: row for row in read_table(store, paths.pairs_table(SHARD))}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == set(GOOD)
    found = {
        name: (row["status"], row["reason"].split(": ")[1], row["retryable"])
        for name, row in rows.items()
        if row["status"] != "ok"
    }
    # The client sees the half that was announced, or that more came than was.
    assert found["too short announced"][1] in ("broken JPEG", "bad answer")
    del found["too short announced"]
    assert found.items() <= {name: tuple(expected) for name, (_, *expected) in BAD.items()}.items()
    assert len(found) == len(BAD) - 1
    with store.open(paths.pairs_tar(SHARD)) as file:
        samples = list(read_samples(file))
    assert [names[sample.key] for sample in samples] == [name for name in rows if name in GOOD]
    assert all(sample.parts == {"input.jpg": PHOTO, "edited.png": EDIT} for sample in samples)
    assert crowd.most <= AT_ONCE
    assert max(server.asked.values()) <= 3
    assert result.stats["failures_by_host"] == {"127.0.0.1": len(BAD)}
    passing = sum(retryable for *_, retryable in BAD.values())
    assert (result.stats["to_retry"], result.stats["ok"]) == (passing, len(GOOD))

    write_receipt(store, profile, "manifest", SHARD, results[SHARD], {})
    write_receipt(store, profile, "manifest", UNPARTITIONED, results[""], {})
    before = status_of(store, profile)
    assert (before.total.records, before.total.done, before.left_s) == (len(rows), 0, None)
    write_receipt(store, profile, "image_pairs", SHARD, result, {})
    after = status_of(store, profile)
    assert (after.total.done, after.total.ok, after.left_s) == (len(rows), len(GOOD), 0.0)
    assert after.total.reasons["input: HTTP 404"] == 1
    assert after.images_per_s is not None
    assert retryable_failures(store, SHARD) == passing == after.total.to_retry


def test_a_date_to_come_back_at_is_kept_to(server: Server, tmp_path: Path) -> None:
    server.answers["/a.jpg"] = failing_first(1, 503, PHOTO, Retry_After=http_date(2))
    server.answers["/nb/1.png"] = body(EDIT)
    manifest = write_manifest(
        tmp_path, [record(1, open_image_input_url=f"{server.url}/a.jpg", output_image="1.png")]
    )
    profile, store = (
        one_shard(manifest, source={"cdn_prefix": f"{server.url}/nb/"}),
        LocalStore(tmp_path / "store"),
    )
    build_manifest(store, profile, quiet)
    assert fetch_pairs(store, profile, SHARD, quiet).stats["ok"] == 1
    assert server.asked["/a.jpg"] == 2
