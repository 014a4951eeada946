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
from bananagrams_assets.fetching.addresses import Allowed, HostRefusedError, check_literal, is_public
from bananagrams_assets.fetching.client import BODIES, Fetched, Fetcher, IsWhole, open_fetcher, retry_after_s

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

PICTURE = bytes(range(256)) * 40


async def fetched(fetcher: Fetcher, url: str, is_whole: IsWhole = bool) -> Fetched:
    async with fetcher.fetch(url, is_whole) as found:
        return found


def fetch(*urls: str, **settings: Any) -> list[Fetched]:
    quick = {"attempts": 3, "timeout_s": 2.0, "backoff_s": 0.01, "concurrency": 4, **settings}

    async def run() -> list[Fetched]:
        async with open_fetcher(FetchSettings(**quick)) as fetcher:
            return list(await asyncio.gather(*(fetched(fetcher, url) for url in urls)))

    return asyncio.run(run())


def test_a_image_comes_as_it_was_sent(server: Server) -> None:
    server.answers["/a.jpg"] = body(PICTURE)
    (got,) = fetch(f"{server.url}/a.jpg", user_agent="tests/1")
    assert (got.status, b"".join(got.chunks), got.http_status, got.attempts) == ("ok", PICTURE, 200, 1)
    assert got.bytes == len(PICTURE)
    assert server.agents == {"tests/1"}


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answers["/a"] = failing_first(2, 503, PICTURE)
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, got.attempts, b"".join(got.chunks)) == ("ok", 3, PICTURE)


def test_tries_end(server: Server) -> None:
    server.answers["/a"] = status(503)
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, got.reason, got.http_status, got.attempts) == ("failed", "HTTP 503", 503, 3)
    assert server.asked["/a"] == 3


def test_what_is_not_there_is_asked_for_once(server: Server) -> None:
    (got,) = fetch(f"{server.url}/gone")
    assert (got.status, got.reason, got.attempts) == ("failed", "HTTP 404", 1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(server: Server, form: str) -> None:
    # Dates have whole seconds: this one lies one to two seconds ahead.
    asked = "1" if form == "seconds" else http_date(2)
    server.answers["/a"] = failing_first(1, 429, PICTURE, Retry_After=asked)
    (got,) = fetch(f"{server.url}/a", timeout_s=10.0)
    assert (got.status, got.attempts) == ("ok", 2)
    assert got.seconds >= 0.5


def test_a_server_that_asks_for_hours_is_left_alone(server: Server) -> None:
    server.answers["/a"] = status(429, Retry_After="7200")
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, got.reason, got.attempts) == ("failed", "HTTP 429", 1)


def test_a_pause_asked_of_one_request_holds_for_the_whole_server(server: Server) -> None:
    server.answers["/busy"] = failing_first(1, 429, PICTURE, Retry_After="1")
    server.answers["/other"] = body(PICTURE)
    busy, other = fetch(f"{server.url}/busy", f"{server.url}/other", concurrency=1)
    assert (busy.status, other.status) == ("ok", "ok")
    assert max(busy.seconds, other.seconds) >= 1


def test_a_cut_body_is_fetched_again(server: Server) -> None:
    server.answers["/a"] = cut_first(1, PICTURE)
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, got.attempts, b"".join(got.chunks)) == ("ok", 2, PICTURE)


def test_a_body_that_is_always_cut_fails(server: Server) -> None:
    server.answers["/a"] = cut_first(9, PICTURE)
    (got,) = fetch(f"{server.url}/a")
    assert got.status == "failed"
    assert got.reason.startswith("body cut short")


def test_an_endless_body_is_read_no_further_than_the_limit(server: Server) -> None:
    server.answers["/a"] = endless
    (got,) = fetch(f"{server.url}/a", max_bytes=100_000)
    assert (got.status, got.attempts) == ("refused", 1)
    assert got.bytes <= 100_000 + 2**18
    assert "fetch.max_bytes" in got.reason


def test_a_body_announced_too_large_is_not_read(server: Server) -> None:
    server.answers["/a"] = body(bytes(50_000))
    (got,) = fetch(f"{server.url}/a", max_bytes=20_000)
    assert (got.status, got.bytes) == ("refused", 0)


@pytest.mark.parametrize("answer", [stalled, drip])
def test_a_try_has_a_total_deadline(server: Server, answer: Any) -> None:
    server.answers["/a"] = answer
    (got,) = fetch(f"{server.url}/a", timeout_s=0.3, attempts=2)
    assert (got.status, got.attempts) == ("failed", 2)
    assert got.reason.startswith("timeout")


def test_redirects_are_followed(server: Server) -> None:
    server.answers["/a"] = status(302, Location="/b")
    server.answers["/b"] = status(301, Location=f"{server.url}/c")
    server.answers["/c"] = body(PICTURE)
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, b"".join(got.chunks)) == ("ok", PICTURE)


def test_redirects_end(server: Server) -> None:
    server.answers["/a"] = status(302, Location="/a")
    (got,) = fetch(f"{server.url}/a")
    assert got.reason.startswith("too many redirects")
    assert server.asked["/a"] == 6


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
def test_a_redirect_to_a_place_of_our_own_is_refused(
    server: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/a"] = status(302, Location=target)
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", f"{server.url.removeprefix('http://').partition(':')[0]}")
    (got,) = fetch(f"{server.url}/a", attempts=1)
    assert got.status in ("refused", "failed")
    assert b"".join(got.chunks) == b""
    if "localhost" not in target:
        assert got.status == "refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::1]", "0.0.0.0"])
def test_places_of_our_own_are_refused(server: Server, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BANANAGRAMS_ALLOW_HOSTS")
    server.answers["/a"] = body(PICTURE)
    port = server.url.rpartition(":")[2]
    (got,) = fetch(f"http://{host}:{port}/a", attempts=1)
    assert got.status == "refused"
    assert "BANANAGRAMS_ALLOW_HOSTS" in got.reason
    assert not server.asked


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "0x7f000001", "127.0.0.1.", "%31"])
def test_no_spelling_of_a_place_of_our_own_gets_through(
    server: Server, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BANANAGRAMS_ALLOW_HOSTS")
    server.answers["/a"] = body(PICTURE)
    port = server.url.rpartition(":")[2]
    (got,) = fetch(f"http://{host}:{port}/a", attempts=1)
    assert (got.status != "ok", b"".join(got.chunks)) == (True, b"")
    assert not server.asked


@pytest.mark.parametrize("allowed", ["localhost", "127.0.0.0/8, 10.0.0.0/8", "elsewhere,127.0.0.1,::1"])
def test_a_place_of_our_own_can_be_allowed(
    server: Server, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", allowed)
    server.answers["/a"] = body(PICTURE)
    (got,) = fetch(server.url.replace("127.0.0.1", "localhost") + "/a")
    assert got.status == "ok"


def test_a_closed_port_is_no_connection(server: Server) -> None:
    server.shutdown()
    server.server_close()
    (got,) = fetch(f"{server.url}/a", attempts=2)
    assert (got.status, got.http_status, got.attempts) == ("failed", 0, 2)
    assert got.reason.startswith("no connection")


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.0.1", "100.64.0.1", "224.0.0.1", "::1", "fe80::1", "fc00::1",
     "::ffff:192.168.0.1", "64:ff9b::a00:1", "2002:a00:1::", "0.0.0.0"],
)  # fmt: skip
def test_addresses_inside_a_network_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(HostRefusedError):
        check_literal(address, Allowed(""))
    check_literal(address, Allowed(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_address_is_public_or_can_be_refused(address: Any) -> None:
    if is_public(address):
        check_literal(str(address), Allowed(""))
    else:
        with pytest.raises(HostRefusedError):
            check_literal(str(address), Allowed(""))


@given(st.text())
def test_any_retry_after_is_seconds_or_nothing(value: str) -> None:
    wait = retry_after_s(value)
    assert wait is None or wait >= 0


@pytest.mark.parametrize("directive", ["noai", "bananagrams: noindex", "nofollow, noimageai"])
def test_a_server_that_opts_out_is_honoured_unless_told_otherwise(server: Server, directive: str) -> None:
    server.answers["/a"] = status(200, PICTURE, X_Robots_Tag=directive)
    (got,) = fetch(f"{server.url}/a")
    assert (got.status, got.retryable, got.attempts) == ("refused", False, 1)
    assert got.reason.startswith("opted out: X-Robots-Tag")
    (got,) = fetch(f"{server.url}/a", honour_opt_out=False)
    assert (got.status, b"".join(got.chunks)) == ("ok", PICTURE)


def test_the_agent_names_a_contact(server: Server) -> None:
    fetch(f"{server.url}/a", user_agent="tests/1", contact="https://example.org/about")
    assert server.agents == {"tests/1 +https://example.org/about"}


def test_all_tries_together_have_a_deadline(server: Server) -> None:
    server.answers["/a"] = stalled
    (got,) = fetch(f"{server.url}/a", timeout_s=0.3, deadline_s=0.5, attempts=20)
    assert (got.status, got.retryable) == ("failed", True)
    assert got.attempts <= 3
    assert "fetch.deadline_s" in got.reason or "fetch.timeout_s" in got.reason


def test_a_pause_longer_than_the_deadline_is_not_waited_for(server: Server) -> None:
    server.answers["/a"] = status(429, Retry_After="60")
    (got,) = fetch(f"{server.url}/a", deadline_s=5.0)
    assert (got.reason, got.attempts, got.retryable) == ("HTTP 429", 1, True)


@pytest.mark.parametrize(
    ("code", "retryable"), [(404, False), (410, False), (403, False), (500, True), (429, True)]
)
def test_what_is_retryable(server: Server, code: int, retryable: bool) -> None:
    server.answers["/a"] = status(code)
    (got,) = fetch(f"{server.url}/a", attempts=1)
    assert (got.reason, got.retryable) == (f"HTTP {code}", retryable)


def test_no_host_is_asked_more_at_once_than_its_limit(server: Server) -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def slow(request: Handler, before: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        server.stopping.wait(0.02)
        with lock:
            running[0] -= 1
        request.reply(200, PICTURE)

    urls = [f"{server.url}/{number}" for number in range(30)]
    server.answers.update({f"/{number}": slow for number in range(30)})
    got = fetch(*urls, concurrency=16, in_flight=3)
    assert [one.status for one in got] == ["ok"] * 30
    assert most[0] <= 3


def test_half_a_body_without_a_length_is_told_by_its_content(server: Server) -> None:
    def cut(request: Handler, before: int) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(PICTURE if before else PICTURE[:100])
        request.close_connection = True

    server.answers["/a"] = cut

    async def run() -> Fetched:
        async with open_fetcher(FetchSettings(backoff_s=0.01)) as fetcher:
            return await fetched(fetcher, f"{server.url}/a", lambda data: len(data) == len(PICTURE))

    got = asyncio.run(run())
    assert (got.status, got.attempts, b"".join(got.chunks)) == ("ok", 2, PICTURE)


def test_a_kept_connection_that_turns_out_closed_counts_as_a_try(server: Server) -> None:
    def hang_up(request: Handler, before: int) -> None:
        request.close_connection = True

    server.answers.update({"/a": body(PICTURE), "/b": hang_up})

    async def run() -> list[Fetched]:
        settings = FetchSettings(attempts=2, backoff_s=0.01, concurrency=1)
        async with open_fetcher(settings) as fetcher:
            return [await fetched(fetcher, f"{server.url}{path}") for path in ("/a", "/b", "/a", "/b")]

    assert [got.attempts for got in asyncio.run(run())] == [1, 2, 1, 2]
    assert server.asked == {"/a": 2, "/b": 4}


def test_no_more_bodies_are_read_than_there_are_places_for(server: Server) -> None:
    server.answers["/a"] = body(PICTURE)

    async def run() -> Fetched:
        async with open_fetcher(FetchSettings(concurrency=1)) as fetcher:
            held = [contextlib.AsyncExitStack() for _ in range(BODIES)]
            for stack in held:
                await stack.enter_async_context(fetcher.fetch(f"{server.url}/a"))
            one_more = asyncio.create_task(fetched(fetcher, f"{server.url}/a"))
            while server.asked["/a"] == BODIES:
                await asyncio.sleep(0.01)
            done, _ = await asyncio.wait([one_more], timeout=0.2)
            assert not done
            await held[0].aclose()
            got = await one_more
            await held[1].aclose()
            return got

    assert asyncio.run(run()).status == "ok"
