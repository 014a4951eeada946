from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananagrams_assets.config import FetchSettings, HostSettings
from bananagrams_assets.fetching.rate_limits import (
    MAX_PAUSE_S,
    MIN_RATE_PER_S,
    OPEN_CIRCUIT_S,
    REACTION_S,
    RECOVERY_S,
    CircuitOpen,
    HostState,
    RateLimiter,
    record_request,
    record_success,
    record_throttle,
    wait_s,
)

NOW = 1_800_000_000.0


def test_an_unthrottled_host_has_no_wait() -> None:
    state = HostState()
    for _ in range(1000):
        assert wait_s(state, NOW) == 0
        record_request(state, NOW, math.inf)


def test_a_rate_limit_spaces_requests() -> None:
    state = HostState()
    record_request(state, NOW, 4.0)
    assert wait_s(state, NOW) == pytest.approx(0.25, abs=1e-6)
    assert wait_s(state, NOW + 0.26) == 0


def test_concurrent_throttles_halve_the_measured_rate_once() -> None:
    state = HostState()
    for number in range(40):
        record_request(state, NOW + number / 40, math.inf)
    record_throttle(state, NOW + 1, NOW, None)
    assert state.rate == 20
    record_throttle(state, NOW + 1.1, NOW + 0.5, None)
    assert state.rate == 20
    record_throttle(state, NOW + 4, NOW + 3, None)
    assert state.rate == 10


def test_successes_undo_a_halving_linearly() -> None:
    state = HostState(count=40, second=math.floor(NOW))
    record_throttle(state, NOW, NOW, None)
    rates = [state.rate]
    for _ in range(int(RECOVERY_S)):
        for _ in range(round(state.rate)):
            record_success(state)
        rates.append(state.rate)
    steps = [after - before for before, after in pairwise(rates)]
    assert rates[-1] == pytest.approx(40, rel=0.1)
    assert max(steps) == pytest.approx(min(steps), rel=0.2)


def test_a_short_retry_after_pauses_and_a_long_one_opens_the_circuit() -> None:
    state = HostState()
    record_throttle(state, NOW, NOW, 30.0)
    assert wait_s(state, NOW + 10) == pytest.approx(20)
    record_throttle(state, NOW, NOW, 7200.0)
    with pytest.raises(CircuitOpen):
        wait_s(state, NOW + 7000)
    assert wait_s(state, NOW + 7300) == 0


def throttle(state: HostState, now: float, count: int, retry_after_s: float | None) -> float:
    """Record `count` throttles of requests sent one after the other; return the time of the last."""
    for _ in range(count):
        now += wait_s(state, now) + REACTION_S
        record_request(state, now, math.inf)
        record_throttle(state, now, now, retry_after_s)
    return now


# A throttle implies a wait of its Retry-After and of at least 10 s. MAX_PAUSE_S is 300 s.
@pytest.mark.parametrize(("retry_after_s", "count"), [(None, 30), (5.0, 30), (100.0, 3), (MAX_PAUSE_S, 1)])
def test_throttles_that_imply_the_maximum_pause_open_the_circuit(
    retry_after_s: float | None, count: int
) -> None:
    state = HostState()
    now = throttle(state, NOW, count - 1, retry_after_s)
    assert state.circuit_open_until == 0
    now = throttle(state, now, 1, retry_after_s)
    assert state.circuit_open_until == now + OPEN_CIRCUIT_S
    assert state.rate >= MIN_RATE_PER_S
    with pytest.raises(CircuitOpen):
        wait_s(state, now + OPEN_CIRCUIT_S - 1)
    assert wait_s(state, now + OPEN_CIRCUIT_S) == 0


def test_a_success_resets_the_sum_of_implied_waits() -> None:
    state = HostState()
    now = throttle(state, NOW, 29, None)
    record_success(state)
    now = throttle(state, now, 29, None)
    assert state.circuit_open_until == 0
    throttle(state, now, 1, None)
    assert state.circuit_open_until > now


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.sampled_from(["request", "throttle", "success"]),
            st.none() | st.floats(0, 1e5),
        )
    )
)
def test_waits_are_at_most_the_maximum_pause(events: list[tuple[float, str, float | None]]) -> None:
    state, now = HostState(), NOW
    for seconds, event, retry_after_s in events:
        now += seconds
        if event == "request":
            record_request(state, now, 50.0)
        elif event == "throttle":
            record_throttle(state, now, now, retry_after_s)
        else:
            record_success(state)
        try:
            assert 0 <= wait_s(state, now) <= MAX_PAUSE_S
        except CircuitOpen:
            assert state.circuit_open_until > now
        assert state.rate >= MIN_RATE_PER_S


class RequestCounter:
    """Current, maximum and total number of requests."""

    def __init__(self) -> None:
        self.current = self.maximum = self.total = 0

    async def request(self, limiter: RateLimiter, url: str, seconds: float) -> None:
        async with limiter.permit(url, asyncio.Semaphore(100)) as permit:
            self.current += 1
            self.total += 1
            self.maximum = max(self.maximum, self.current)
            await asyncio.sleep(seconds)
            self.current -= 1
            permit.on_success()


def test_runs_share_the_in_flight_limit_of_a_host_and_its_subdomains(tmp_path: Path) -> None:
    settings = FetchSettings(hosts=(HostSettings(host="example.org", in_flight=3),))
    first, second, counter = (
        RateLimiter(tmp_path, settings),
        RateLimiter(tmp_path, settings),
        RequestCounter(),
    )

    async def send_from_both() -> None:
        urls = [f"https://farm{number % 4}.example.org/a.jpg" for number in range(24)]
        await asyncio.gather(
            *(counter.request((first, second)[number % 2], url, 0.01) for number, url in enumerate(urls))
        )

    asyncio.run(send_from_both())
    assert (counter.total, counter.maximum) == (24, 3)
    first.close()
    second.close()


PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from bananagrams_assets.config import FetchSettings
from bananagrams_assets.fetching.rate_limits import RateLimiter
async def main():
    limiter = RateLimiter(Path(sys.argv[1]), FetchSettings(in_flight=2, per_second=float(sys.argv[2])))
    async def request():
        async with limiter.permit("https://example.org/a", asyncio.Semaphore(9)):
            print(time.time(), flush=True)
            await asyncio.sleep(float(sys.argv[4]))
    await asyncio.gather(*(request() for _ in range(int(sys.argv[3]))))
asyncio.run(main())
"""


def start_process(folder: Path, per_second: float, count: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(folder), str(per_second), str(count), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_processes_share_the_rate(tmp_path: Path) -> None:
    processes = [start_process(tmp_path, 20.0, 10, 0.0) for _ in range(2)]
    times = sorted(float(line) for process in processes for line in process.communicate()[0].split())
    assert len(times) == 20
    # 20 requests at 20 per second take 0.95 s. Printing adds jitter.
    assert times[-1] - times[0] >= 0.9


def test_a_killed_process_blocks_no_other(tmp_path: Path) -> None:
    holder = start_process(tmp_path, 1000.0, 2, 600.0)
    assert holder.stdout is not None
    for _ in range(2):
        holder.stdout.readline()
    other = start_process(tmp_path, 1000.0, 1, 0.0)
    assert other.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(other.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    reader.join(1.5)
    assert lines == []
    holder.kill()
    reader.join(120)
    assert len(lines) == 1
    assert other.wait(120) == 0
    holder.wait()


def test_a_damaged_state_file_is_reset(tmp_path: Path) -> None:
    settings, counter = FetchSettings(), RequestCounter()
    for content in (b"", b"\0" * 80, b"\xff" * 80, b"x"):
        limiter = RateLimiter(tmp_path, settings)
        asyncio.run(counter.request(limiter, "http://example.org/", 0))
        limiter.close()
        next(tmp_path.glob("*/pace")).write_bytes(content)
    limiter = RateLimiter(tmp_path, settings)
    start = time.monotonic()
    asyncio.run(counter.request(limiter, "http://example.org/", 0))
    limiter.close()
    assert counter.total == 5
    assert time.monotonic() - start < MAX_PAUSE_S


def test_each_host_has_its_own_folder(tmp_path: Path) -> None:
    limiter, counter = RateLimiter(tmp_path, FetchSettings()), RequestCounter()
    for url in ("http://a.org/", "http://b.org/", "http://[::1]:80/", "http://a.org:81/", "https://c1.staticflickr.com/",
                "https://farm3.staticflickr.com/"):  # fmt: skip
        asyncio.run(counter.request(limiter, url, 0))
    limiter.close()
    names = Counter(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == {"a.org": 1, "b.org": 1, "__1": 1, "a.org-81": 1, "staticflickr.com": 1}
