"""A shard from a server with every fault that servers commonly have."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bananagrams_assets.config import Profile
from bananagrams_assets.fetching import rate_limits
from bananagrams_assets.graph import IMAGE_PAIRS, MANIFEST
from bananagrams_assets.stages.receipts import write_receipt
from bananagrams_assets.stages.stage import UNPARTITIONED
from bananagrams_assets.stages.status import retryable_failures, status_of
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.local import LocalStore
from bananagrams_assets.storage.sample_tar import read_samples
from bananagrams_assets.storage.tables import read_table
from bananagrams_assets.vision.images import encode_jpeg

from ..photos import edited, make_photo, one_shard, png, record, write_manifest
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
from .building import call

SHARD = "train-00000"
PHOTO, EDIT = encode_jpeg(make_photo(1), 95), png(edited(make_photo(1)))
IN_FLIGHT = 5


def disconnect(request: Handler, before: int) -> None:
    """Close the connection without a response."""
    request.close_connection = True


def disconnect_first(data: bytes) -> Answer:
    return lambda request, before: request.reply(200, data) if before else disconnect(request, before)


def without_length(data: bytes) -> Answer:
    """Send `data` without its length and close the connection."""

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


NOT_PUBLIC = "host is not on the public internet"
PAGE = b"<!doctype html><title>Sign in</title>"
GOOD: dict[str, Answer] = {
    "plain": body(PHOTO),
    "503 first": failing_first(1, 503, PHOTO),
    "429 with seconds first": failing_first(1, 429, PHOTO, Retry_After="1"),
    "half first": cut_first(1, PHOTO),
    "hangs up first": disconnect_first(PHOTO),
    "redirects": status(302, Location="/plain.jpg"),
    "without length": without_length(PHOTO),
}
BAD: dict[str, tuple[Answer, str, str, bool]] = {
    "503": (status(503), "failed", "HTTP 503", True),
    "429": (status(429, Retry_After="0"), "failed", "HTTP 429", True),
    "500": (status(500), "failed", "HTTP 500", True),
    "half": (cut_first(99, PHOTO), "failed", "body cut short", True),
    "half without length": (without_length(PHOTO[: len(PHOTO) // 2]), "failed", "body cut short", True),
    "hangs up": (disconnect, "failed", "no connection", True),
    "stalled": (stalled, "failed", "timeout", True),
    "drips": (drip, "failed", "timeout", True),
    "endless": (endless, "refused", "file too large", False),
    "page": (status(200, PAGE, Content_Type="image/png"), "failed", "not a picture", False),
    "inside": (status(302, Location="http://10.0.0.1/a"), "refused", NOT_PUBLIC, False),
    "404": (status(404), "failed", "HTTP 404", False),
    "too long announced": (wrong_length(PHOTO, len(PHOTO) + 50), "failed", "body cut short", True),
    "too short announced": (wrong_length(PHOTO, len(PHOTO) // 2), "failed", "broken JPEG", False),
    "opted out": (status(200, PHOTO, X_Robots_Tag="noai"), "refused", "opted out", False),
}  # fmt: skip


class ConcurrencyMeter:
    """Measures the maximum number of concurrent requests."""

    def __init__(self) -> None:
        self.lock, self.current, self.maximum = threading.Lock(), 0, 0

    def wrap(self, inner: Answer) -> Answer:
        def answer(request: Handler, before: int) -> None:
            with self.lock:
                self.current += 1
                self.maximum = max(self.maximum, self.current)
            # Decremented before the last byte, as the client may continue before this thread does.
            request.server.stopping.wait(0.01)
            with self.lock:
                self.current -= 1
            inner(request, before)

        return answer


@pytest.fixture
def meter() -> ConcurrencyMeter:
    return ConcurrencyMeter()


@pytest.fixture
def profile(
    server: Server, tmp_path: Path, meter: ConcurrencyMeter, monkeypatch: pytest.MonkeyPatch
) -> Profile:
    # The many 429 and 503 responses would otherwise slow the test down.
    monkeypatch.setattr(rate_limits, "MIN_RATE_PER_S", 20.0)
    answers = GOOD | {name: answer for name, (answer, *_) in BAD.items()}
    records = []
    for number, (name, answer) in enumerate(answers.items()):
        path = f"/{name.replace(' ', '-')}.jpg"
        server.answers[path] = meter.wrap(answer)
        server.answers[f"/nb/{number}.png"] = meter.wrap(body(EDIT))
        url = f"{server.url}{path}"
        records.append(record(number, open_image_input_url=url, output_image=f"{number}.png", text=name))
    return one_shard(
        write_manifest(tmp_path / "remote", records),
        source={"cdn_prefix": f"{server.url}/nb/"},
        fetch={
            "attempts": 3,
            "timeout_s": 1.0,
            "in_flight": IN_FLIGHT,
            "concurrency": 12,
            "max_bytes": 2_000_000,
        },
    )


def test_good_pairs_are_stored_and_bad_pairs_are_rows(
    server: Server, tmp_path: Path, profile: Profile, meter: ConcurrencyMeter
) -> None:
    store = LocalStore(tmp_path / "store")
    results = call(MANIFEST, store, profile)
    result = call(IMAGE_PAIRS, store, profile, SHARD)
    names = {row["key"]: row["text"] for row in read_table(store, paths.manifest_table(SHARD))}
    rows = {names[row["key"]]: row for row in read_table(store, paths.pairs_table(SHARD))}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == set(GOOD)
    failures = {
        name: (row["status"], row["reason"].split(": ")[1], row["retryable"])
        for name, row in rows.items()
        if row["status"] != "ok"
    }
    # The client sees either half an image or more bytes than announced.
    assert failures["too short announced"][1] in ("broken JPEG", "bad answer")
    del failures["too short announced"]
    assert failures.items() <= {name: tuple(expected) for name, (_, *expected) in BAD.items()}.items()
    assert len(failures) == len(BAD) - 1
    with store.open(paths.pairs_tar(SHARD)) as file:
        samples = list(read_samples(file))
    assert [names[sample.key] for sample in samples] == [name for name in rows if name in GOOD]
    assert all(sample.parts == {"input.jpg": PHOTO, "edited.png": EDIT} for sample in samples)
    assert meter.maximum <= IN_FLIGHT
    assert max(server.requests.values()) <= 3
    assert result.stats["failures_by_host"] == {"127.0.0.1": len(BAD)}
    to_retry = sum(retryable for *_, retryable in BAD.values())
    assert (result.stats["to_retry"], result.stats["ok"]) == (to_retry, len(GOOD))

    write_receipt(store, profile, MANIFEST, SHARD, results.parts[SHARD], {})
    write_receipt(store, profile, MANIFEST, UNPARTITIONED, results, {})
    before = status_of(store, profile)
    assert (before.total.records, before.total.done, before.left_s) == (len(rows), 0, None)
    write_receipt(store, profile, IMAGE_PAIRS, SHARD, result, {})
    after = status_of(store, profile)
    assert (after.total.done, after.total.ok, after.left_s) == (len(rows), len(GOOD), 0.0)
    assert after.total.reasons["input: HTTP 404"] == 1
    assert after.images_per_s is not None
    assert retryable_failures(store, SHARD) == to_retry == after.total.to_retry


def test_a_retry_after_date_is_respected(server: Server, tmp_path: Path) -> None:
    server.answers["/a.jpg"] = failing_first(1, 503, PHOTO, Retry_After=http_date(2))
    server.answers["/nb/1.png"] = body(EDIT)
    manifest = write_manifest(
        tmp_path, [record(1, open_image_input_url=f"{server.url}/a.jpg", output_image="1.png")]
    )
    profile, store = (
        one_shard(manifest, source={"cdn_prefix": f"{server.url}/nb/"}),
        LocalStore(tmp_path / "store"),
    )
    call(MANIFEST, store, profile)
    assert call(IMAGE_PAIRS, store, profile, SHARD).stats["ok"] == 1
    assert server.requests["/a.jpg"] == 2
