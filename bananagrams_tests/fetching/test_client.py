from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import FetchSettings
from bananagrams_assets.fetching.addresses import (
    HostAllowList,
    HostRefusedError,
    check_address_literal,
    is_public,
)
from bananagrams_assets.fetching.client import (
    BODIES_PER_CONNECTION,
    Fetcher,
    FetchResult,
    IsComplete,
    open_fetcher,
    retry_after_s,
)

from ..servers import (
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

DATA = bytes(range(256)) * 40


async def fetch_with(fetcher: Fetcher, url: str, is_complete: IsComplete = bool) -> FetchResult:
    async with fetcher.fetch(url, is_complete) as result:
        return result


def fetch(*urls: str, **settings: Any) -> list[FetchResult]:
    fast = {"attempts": 3, "timeout_s": 2.0, "backoff_s": 0.01, "concurrency": 4, **settings}

    async def run() -> list[FetchResult]:
        async with open_fetcher(FetchSettings(**fast)) as fetcher:
            return list(await asyncio.gather(*(fetch_with(fetcher, url) for url in urls)))

    return asyncio.run(run())


def test_the_body_is_returned_unchanged(server: Server) -> None:
    server.answers["/a.jpg"] = body(DATA)
    (result,) = fetch(f"{server.url}/a.jpg", user_agent="tests/1")
    assert (result.status, result.http_status, result.attempts) == ("ok", 200, 1)
    assert (b"".join(result.chunks), result.bytes) == (DATA, len(DATA))
    assert server.agents == {"tests/1"}


def test_503_is_retried(server: Server) -> None:
    server.answers["/a"] = failing_first(2, 503, DATA)
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, result.attempts, b"".join(result.chunks)) == ("ok", 3, DATA)


def test_the_number_of_attempts_is_limited(server: Server) -> None:
    server.answers["/a"] = status(503)
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, result.reason, result.http_status) == ("failed", "HTTP 503", 503)
    assert result.attempts == server.requests["/a"] == 3


def test_404_is_not_retried(server: Server) -> None:
    (result,) = fetch(f"{server.url}/gone")
    assert (result.status, result.reason, result.attempts) == ("failed", "HTTP 404", 1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(server: Server, form: str) -> None:
    # HTTP dates have whole seconds, so this one is one to two seconds ahead.
    retry_after = "1" if form == "seconds" else http_date(2)
    server.answers["/a"] = failing_first(1, 429, DATA, Retry_After=retry_after)
    (result,) = fetch(f"{server.url}/a", timeout_s=10.0)
    assert (result.status, result.attempts) == ("ok", 2)
    assert result.seconds >= 0.5


def test_a_retry_after_of_hours_is_not_waited_for(server: Server) -> None:
    server.answers["/a"] = status(429, Retry_After="7200")
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, result.reason, result.attempts) == ("failed", "HTTP 429", 1)


def test_retry_after_pauses_the_whole_host(server: Server) -> None:
    server.answers["/busy"] = failing_first(1, 429, DATA, Retry_After="1")
    server.answers["/other"] = body(DATA)
    busy, other = fetch(f"{server.url}/busy", f"{server.url}/other", concurrency=1)
    assert (busy.status, other.status) == ("ok", "ok")
    assert max(busy.seconds, other.seconds) >= 1


def test_a_truncated_body_is_retried(server: Server) -> None:
    server.answers["/a"] = cut_first(1, DATA)
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, result.attempts, b"".join(result.chunks)) == ("ok", 2, DATA)


def test_a_body_truncated_every_time_fails(server: Server) -> None:
    server.answers["/a"] = cut_first(9, DATA)
    (result,) = fetch(f"{server.url}/a")
    assert result.status == "failed"
    assert result.reason.startswith("body cut short")


def test_an_endless_body_is_read_up_to_the_limit_only(server: Server) -> None:
    server.answers["/a"] = endless
    (result,) = fetch(f"{server.url}/a", max_bytes=100_000)
    assert (result.status, result.attempts) == ("refused", 1)
    assert result.bytes <= 100_000 + 2**18
    assert "fetch.max_bytes" in result.reason


def test_a_body_with_a_too_large_length_is_not_read(server: Server) -> None:
    server.answers["/a"] = body(bytes(50_000))
    (result,) = fetch(f"{server.url}/a", max_bytes=20_000)
    assert (result.status, result.bytes) == ("refused", 0)


@pytest.mark.parametrize("answer", [stalled, drip])
def test_an_attempt_has_a_total_timeout(server: Server, answer: Any) -> None:
    server.answers["/a"] = answer
    (result,) = fetch(f"{server.url}/a", timeout_s=0.3, attempts=2)
    assert (result.status, result.attempts) == ("failed", 2)
    assert result.reason.startswith("timeout")


def test_redirects_are_followed(server: Server) -> None:
    server.answers["/a"] = status(302, Location="/b")
    server.answers["/b"] = status(301, Location=f"{server.url}/c")
    server.answers["/c"] = body(DATA)
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, b"".join(result.chunks)) == ("ok", DATA)


def test_the_number_of_redirects_is_limited(server: Server) -> None:
    server.answers["/a"] = status(302, Location="/a")
    (result,) = fetch(f"{server.url}/a")
    assert result.reason.startswith("too many redirects")
    assert server.requests["/a"] == 6


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/a",
        "http://[::ffff:10.0.0.1]/a",
        "http://localhost.localdomain:1/a",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
    ],
)
def test_redirects_to_non_public_hosts_are_refused(
    server: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/a"] = status(302, Location=target)
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", f"{server.url.removeprefix('http://').partition(':')[0]}")
    (result,) = fetch(f"{server.url}/a", attempts=1)
    assert result.status in ("refused", "failed")
    assert b"".join(result.chunks) == b""
    if "localhost" not in target:
        assert result.status == "refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "0.0.0.0"])
def test_non_public_hosts_are_refused(server: Server, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BANANAGRAMS_ALLOW_HOSTS")
    server.answers["/a"] = body(DATA)
    port = server.url.rpartition(":")[2]
    (result,) = fetch(f"http://{host}:{port}/a", attempts=1)
    assert result.status == "refused"
    assert "BANANAGRAMS_ALLOW_HOSTS" in result.reason
    assert not server.requests


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "0x7f000001", "127.0.0.1.", "%31"])
def test_no_spelling_of_a_non_public_address_is_accepted(
    server: Server, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BANANAGRAMS_ALLOW_HOSTS")
    server.answers["/a"] = body(DATA)
    port = server.url.rpartition(":")[2]
    (result,) = fetch(f"http://{host}:{port}/a", attempts=1)
    assert (result.status != "ok", b"".join(result.chunks)) == (True, b"")
    assert not server.requests


@pytest.mark.parametrize("allowed", ["localhost", "127.0.0.0/8, 10.0.0.0/8", "elsewhere,127.0.0.1,::1"])
def test_non_public_hosts_can_be_allowed(
    server: Server, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", allowed)
    server.answers["/a"] = body(DATA)
    (result,) = fetch(server.url.replace("127.0.0.1", "localhost") + "/a")
    assert result.status == "ok"


def test_a_closed_port_fails_without_connection(server: Server) -> None:
    server.shutdown()
    server.server_close()
    (result,) = fetch(f"{server.url}/a", attempts=2)
    assert (result.status, result.http_status, result.attempts) == ("failed", 0, 2)
    assert result.reason.startswith("no connection")


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.0.1", "100.64.0.1", "224.0.0.1", "::1", "fe80::1", "fc00::1",
     "::ffff:192.168.0.1", "64:ff9b::a00:1", "2002:a00:1::", "0.0.0.0"],
)  # fmt: skip
def test_non_public_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(HostRefusedError):
        check_address_literal(address, HostAllowList(""))
    check_address_literal(address, HostAllowList(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_every_address_is_public_or_refused(address: Any) -> None:
    if is_public(address):
        check_address_literal(str(address), HostAllowList(""))
    else:
        with pytest.raises(HostRefusedError):
            check_address_literal(str(address), HostAllowList(""))


@given(st.text())
def test_any_retry_after_value_is_parsed(value: str) -> None:
    wait = retry_after_s(value)
    assert wait is None or wait >= 0


@pytest.mark.parametrize("directive", ["noai", "bananagrams: noindex", "nofollow, noimageai"])
def test_opt_outs_are_honoured_unless_disabled(server: Server, directive: str) -> None:
    server.answers["/a"] = status(200, DATA, X_Robots_Tag=directive)
    (result,) = fetch(f"{server.url}/a")
    assert (result.status, result.retryable, result.attempts) == ("refused", False, 1)
    assert result.reason.startswith("opted out: X-Robots-Tag")
    (result,) = fetch(f"{server.url}/a", honour_opt_out=False)
    assert (result.status, b"".join(result.chunks)) == ("ok", DATA)


def test_the_user_agent_includes_the_contact(server: Server) -> None:
    fetch(f"{server.url}/a", user_agent="tests/1", contact="https://example.org/about")
    assert server.agents == {"tests/1 +https://example.org/about"}


def test_all_attempts_together_have_a_deadline(server: Server) -> None:
    server.answers["/a"] = stalled
    (result,) = fetch(f"{server.url}/a", timeout_s=0.3, deadline_s=0.5, attempts=20)
    assert (result.status, result.retryable) == ("failed", True)
    assert result.attempts <= 3
    assert "fetch.deadline_s" in result.reason or "fetch.timeout_s" in result.reason


def test_a_pause_beyond_the_deadline_is_not_waited_for(server: Server) -> None:
    server.answers["/a"] = status(429, Retry_After="60")
    (result,) = fetch(f"{server.url}/a", deadline_s=5.0)
    assert (result.reason, result.attempts, result.retryable) == ("HTTP 429", 1, True)


@pytest.mark.parametrize(
    ("code", "retryable"), [(404, False), (410, False), (403, False), (500, True), (429, True)]
)
def test_retryable_statuses(server: Server, code: int, retryable: bool) -> None:
    server.answers["/a"] = status(code)
    (result,) = fetch(f"{server.url}/a", attempts=1)
    assert (result.reason, result.retryable) == (f"HTTP {code}", retryable)


def test_in_flight_requests_per_host_are_limited(server: Server) -> None:
    lock, running, maximum = threading.Lock(), [0], [0]

    def slow(request: Handler, before: int) -> None:
        with lock:
            running[0] += 1
            maximum[0] = max(maximum[0], running[0])
        server.stopping.wait(0.02)
        with lock:
            running[0] -= 1
        request.reply(200, DATA)

    urls = [f"{server.url}/{number}" for number in range(30)]
    server.answers.update({f"/{number}": slow for number in range(30)})
    results = fetch(*urls, concurrency=16, in_flight=3)
    assert [result.status for result in results] == ["ok"] * 30
    assert maximum[0] <= 3


def test_a_truncated_body_without_a_length_is_detected_by_its_content(server: Server) -> None:
    def truncated(request: Handler, before: int) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(DATA if before else DATA[:100])
        request.close_connection = True

    server.answers["/a"] = truncated

    async def run() -> FetchResult:
        async with open_fetcher(FetchSettings(backoff_s=0.01)) as fetcher:
            return await fetch_with(fetcher, f"{server.url}/a", lambda data: len(data) == len(DATA))

    result = asyncio.run(run())
    assert (result.status, result.attempts, b"".join(result.chunks)) == ("ok", 2, DATA)


def test_a_closed_keep_alive_connection_counts_as_an_attempt(server: Server) -> None:
    def hang_up(request: Handler, before: int) -> None:
        request.close_connection = True

    server.answers.update({"/a": body(DATA), "/b": hang_up})

    async def run() -> list[FetchResult]:
        settings = FetchSettings(attempts=2, backoff_s=0.01, concurrency=1)
        async with open_fetcher(settings) as fetcher:
            return [await fetch_with(fetcher, f"{server.url}{path}") for path in ("/a", "/b", "/a", "/b")]

    assert [result.attempts for result in asyncio.run(run())] == [1, 2, 1, 2]
    assert server.requests == {"/a": 2, "/b": 4}


def test_bodies_in_memory_are_limited(server: Server) -> None:
    server.answers["/a"] = body(DATA)

    async def run() -> FetchResult:
        async with open_fetcher(FetchSettings(concurrency=1)) as fetcher:
            held = [contextlib.AsyncExitStack() for _ in range(BODIES_PER_CONNECTION)]
            for stack in held:
                await stack.enter_async_context(fetcher.fetch(f"{server.url}/a"))
            extra = asyncio.create_task(fetch_with(fetcher, f"{server.url}/a"))
            while server.requests["/a"] == BODIES_PER_CONNECTION:
                await asyncio.sleep(0.01)
            done, _ = await asyncio.wait([extra], timeout=0.2)
            assert not done
            await held[0].aclose()
            result = await extra
            await held[1].aclose()
            return result

    assert asyncio.run(run()).status == "ok"
