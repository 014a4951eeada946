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
    LONGEST_PAUSE_S,
    RECOVERY_S,
    SLOWEST_PER_S,
    HostAtRest,
    Pace,
    Pacer,
    begin,
    recover,
    slow_down,
    wait_s,
)

NOW = 1_800_000_000.0


def test_a_host_that_never_complained_is_not_waited_for() -> None:
    pace = Pace()
    for _ in range(1000):
        assert wait_s(pace, NOW) == 0
        begin(pace, NOW, math.inf)


def test_a_limit_spaces_requests() -> None:
    pace = Pace()
    begin(pace, NOW, 4.0)
    assert wait_s(pace, NOW) == pytest.approx(0.25, abs=1e-6)
    assert wait_s(pace, NOW + 0.26) == 0


def test_a_complaint_halves_the_measured_rate_once_for_all_requests_under_way() -> None:
    pace = Pace()
    for number in range(40):
        begin(pace, NOW + number / 40, math.inf)
    slow_down(pace, NOW + 1, NOW, None)
    assert pace.rate == 20
    slow_down(pace, NOW + 1.1, NOW + 0.5, None)
    assert pace.rate == 20
    slow_down(pace, NOW + 4, NOW + 3, None)
    assert pace.rate == 10


def test_success_makes_a_halving_good_by_even_steps() -> None:
    pace = Pace(count=40, second=math.floor(NOW))
    slow_down(pace, NOW, NOW, None)
    rates, now = [pace.rate], NOW
    for _ in range(int(RECOVERY_S)):
        for _ in range(round(pace.rate)):
            recover(pace)
        rates.append(pace.rate)
    steps = [after - before for before, after in pairwise(rates)]
    assert rates[-1] == pytest.approx(40, rel=0.1)
    assert max(steps) == pytest.approx(min(steps), rel=0.2)
    assert now == NOW


def test_a_pause_holds_and_hours_of_it_are_not_waited_for() -> None:
    pace = Pace()
    slow_down(pace, NOW, NOW, 30.0)
    assert wait_s(pace, NOW + 10) == pytest.approx(20)
    slow_down(pace, NOW, NOW, 7200.0)
    with pytest.raises(HostAtRest):
        wait_s(pace, NOW + 7000)
    assert wait_s(pace, NOW + 7300) == 0


def test_a_host_that_only_complains_is_left_alone_in_the_end() -> None:
    pace, now = Pace(), NOW
    while pace.rests_until < now and now < NOW + 3600:
        now += wait_s(pace, now) + 2
        begin(pace, now, math.inf)
        slow_down(pace, now, now, None)
    with pytest.raises(HostAtRest):
        wait_s(pace, now)
    assert pace.rate >= SLOWEST_PER_S


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.sampled_from(["begin", "slow", "fine"]), st.none() | st.floats(0, 1e5)
        )
    )
)
def test_no_wait_is_longer_than_the_longest_pause(events: list[tuple[float, str, float | None]]) -> None:
    pace, now = Pace(), NOW
    for seconds, event, asked in events:
        now += seconds
        if event == "begin":
            begin(pace, now, 50.0)
        elif event == "slow":
            slow_down(pace, now, now, asked)
        else:
            recover(pace)
        try:
            assert 0 <= wait_s(pace, now) <= LONGEST_PAUSE_S
        except HostAtRest:
            assert pace.rests_until > now
        assert pace.rate >= SLOWEST_PER_S


class Counted:
    """Requests in flight, and the most there were."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0

    async def request(self, pacer: Pacer, url: str, seconds: float) -> None:
        async with pacer.turn(url, asyncio.Semaphore(100)) as turn:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(seconds)
            self.now -= 1
            turn.praise()


def test_two_runs_share_the_requests_in_flight_of_a_host_and_its_subdomains(tmp_path: Path) -> None:
    settings = FetchSettings(hosts=(HostSettings(host="example.org", in_flight=3),))
    first, second, counted = Pacer(tmp_path, settings), Pacer(tmp_path, settings), Counted()

    async def both() -> None:
        urls = [f"https://farm{number % 4}.example.org/a.jpg" for number in range(24)]
        await asyncio.gather(
            *(counted.request((first, second)[number % 2], url, 0.01) for number, url in enumerate(urls))
        )

    asyncio.run(both())
    assert (counted.all, counted.most) == (24, 3)
    first.close()
    second.close()


PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from bananagrams_assets.config import FetchSettings
from bananagrams_assets.fetching.rate_limits import Pacer
async def main():
    pacer = Pacer(Path(sys.argv[1]), FetchSettings(in_flight=2, per_second=float(sys.argv[2])))
    async def one():
        async with pacer.turn("https://example.org/a", asyncio.Semaphore(9)):
            print(time.time(), flush=True)
            await asyncio.sleep(float(sys.argv[4]))
    await asyncio.gather(*(one() for _ in range(int(sys.argv[3]))))
asyncio.run(main())
"""


def process(folder: Path, per_second: float, count: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(folder), str(per_second), str(count), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_processes_share_the_rate(tmp_path: Path) -> None:
    running = [process(tmp_path, 20.0, 10, 0.0) for _ in range(2)]
    times = sorted(float(line) for one in running for line in one.communicate()[0].split())
    assert len(times) == 20
    # 20 requests at 20 a second stand 50 ms apart by the clock that the file has; printing comes later.
    assert times[-1] - times[0] >= 0.9


def test_a_killed_process_holds_up_nobody(tmp_path: Path) -> None:
    holder = process(tmp_path, 1000.0, 2, 600.0)
    assert holder.stdout is not None
    for _ in range(2):
        holder.stdout.readline()
    other = process(tmp_path, 1000.0, 1, 0.0)
    assert other.stdout is not None
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(other.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    reader.join(1.5)
    assert came == []
    holder.kill()
    reader.join(120)
    assert len(came) == 1
    assert other.wait(120) == 0
    holder.wait()


def test_a_damaged_file_is_a_host_not_known(tmp_path: Path) -> None:
    settings, counted = FetchSettings(), Counted()
    for content in (b"", b"\0" * 80, b"\xff" * 80, b"x"):
        pacer = Pacer(tmp_path, settings)
        asyncio.run(counted.request(pacer, "http://example.org/", 0))
        pacer.close()
        next(tmp_path.glob("*/pace")).write_bytes(content)
    pacer = Pacer(tmp_path, settings)
    start = time.monotonic()
    asyncio.run(counted.request(pacer, "http://example.org/", 0))
    pacer.close()
    assert counted.all == 5
    assert time.monotonic() - start < LONGEST_PAUSE_S


def test_hosts_have_folders_of_their_own(tmp_path: Path) -> None:
    pacer, counted = Pacer(tmp_path, FetchSettings()), Counted()
    for url in ("http://a.org/", "http://b.org/", "http://[::1]:80/", "http://a.org:81/", "https://c1.staticflickr.com/",
                "https://farm3.staticflickr.com/"):  # fmt: skip
        asyncio.run(counted.request(pacer, url, 0))
    pacer.close()
    names = Counter(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == {"a.org": 1, "b.org": 1, "__1": 1, "a.org-81": 1, "staticflickr.com": 1}
