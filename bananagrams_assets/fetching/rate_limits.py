"""How fast each host is asked, by every run on this machine together.

A host has a folder: one small file says when it may be asked next and how fast, and one empty file
for each request that it may have in flight. All are guarded by `flock`, which the system gives up for
a process that ends in whatever way: nothing a killed run leaves behind holds up the others.

The rate follows additive increase and multiplicative decrease (Chiu and Jain, 1989, "Analysis of the
increase and decrease algorithms for congestion avoidance in computer networks"): an answer of 429 or
503 halves it, successes add to it until, after RECOVERY_S, a halving is made good.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import math
import mmap
import os
import re
import struct
import time
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config import FetchSettings

LONGEST_PAUSE_S = 300.0
"""A host that asks for a longer pause than this is asked no more for as long, nor waited for."""
REST_S = 600.0
"""How long a host is left alone that has answered nothing but "too busy" for LONGEST_PAUSE_S of waits."""
RECOVERY_S = 20.0
"""Seconds of success that make good one halving of the rate."""
SLOWEST_PER_S = 0.2
LEAST_MEASURED_PER_S = 10.0
"""A host that was asked less often than this is taken to have borne this rate: a second is too short a
time to measure less, and one complaint is no reason to all but stop."""
EVENT_S = 1.0
"""Complaints within this time after a slowing are of requests that it came too late for."""

_COMPLAINT_S = 10.0
_LONGEST_REST_S = 86_400.0
_POLL_S = 0.01
_STATE = struct.Struct("<10d")


class HostAtRest(Exception):
    """The host has asked to be left alone for longer than a picture is worth waiting for."""


@dataclass
class Pace:
    """What is known of one host; times are seconds since the epoch.

    `rate` is in requests a second, infinite while the host has never complained, and `before` what it
    was before it was halved last. `strain` sums the waits that complaints stood for since the last
    success. `second`, `count` and `previous` measure the rate: requests begun in the current second and
    in the one before it.
    """

    next_at: float = 0.0
    rate: float = math.inf
    before: float = math.inf
    paused_until: float = 0.0
    rests_until: float = 0.0
    slowed_at: float = 0.0
    strain: float = 0.0
    second: float = 0.0
    count: float = 0.0
    previous: float = 0.0


def wait_s(pace: Pace, now: float) -> float:
    """Seconds until the host may be asked; 0 for now. Raises HostAtRest."""
    if now < pace.rests_until <= now + _LONGEST_REST_S:
        raise HostAtRest(f"host at rest: too busy until now, asked again in {pace.rests_until - now:.0f} s")
    until = max(pace.next_at, pace.paused_until)
    # A clock that was set back must not stop the host for as long.
    return until - now if now < until <= now + LONGEST_PAUSE_S else 0.0


def begin(pace: Pace, now: float, most_per_s: float) -> None:
    """Count a request that starts now."""
    second = math.floor(now)
    if second != pace.second:
        pace.previous = pace.count if second == pace.second + 1 else 0.0
        pace.second, pace.count = second, 0.0
    pace.count += 1
    pace.next_at = now + 1 / min(pace.rate, most_per_s)


def slow_down(pace: Pace, now: float, began: float, asked_s: float | None) -> None:
    """Take a complaint (429, 503) about a request begun at `began`, with the pause it asks for."""
    if asked_s is not None and asked_s > LONGEST_PAUSE_S:
        pace.rests_until = max(pace.rests_until, now + min(asked_s, _LONGEST_REST_S))
        return
    if asked_s is not None:
        pace.paused_until = max(pace.paused_until, now + asked_s)
    if began < pace.slowed_at + EVENT_S:
        return
    pace.before = min(pace.rate, max(pace.count, pace.previous, LEAST_MEASURED_PER_S))
    pace.rate = max(SLOWEST_PER_S, pace.before / 2)
    pace.slowed_at = now
    pace.next_at = max(pace.next_at, now + 1 / pace.rate)
    pace.strain += max(asked_s or 0.0, _COMPLAINT_S)
    if pace.strain >= LONGEST_PAUSE_S:
        pace.rests_until = now + REST_S


def recover(pace: Pace) -> None:
    """Take a success: the rate grows by a fixed amount a second, whatever it is."""
    pace.strain = 0.0
    if math.isfinite(pace.rate):
        pace.rate += pace.before / 2 / RECOVERY_S / pace.rate
        if pace.rate > 2 * pace.before:
            pace.rate = pace.before = math.inf


class Turn:
    """A request that may be made now."""

    def __init__(self, host: _Host, began: float) -> None:
        self._host, self._began = host, began

    def complain(self, asked_s: float | None) -> None:
        """The host was too busy; `asked_s` is the pause that it asked for, if it did."""
        with self._host.locked() as pace:
            slow_down(pace, time.time(), self._began, asked_s)

    def praise(self) -> None:
        """The host served."""
        known = self._host.read()
        if known.strain or math.isfinite(known.rate):
            with self._host.locked() as pace:
                recover(pace)


class Pacer:
    """Gives out turns; `folder` is shared by all runs that are to be counted together."""

    def __init__(self, folder: Path, settings: FetchSettings) -> None:
        self.folder, self._settings = folder, settings
        self._hosts: dict[str, _Host] = {}
        self._at: dict[str, _Host] = {}

    @asynccontextmanager
    async def turn(self, url: str, room: asyncio.Semaphore) -> AsyncIterator[Turn]:
        """Wait until the URL's host may be asked, and `room` has some, and hold both for the block.

        Raises HostAtRest, OSError where the folder cannot be written.
        """
        host = self._host(url)
        # One waiter a host looks at the files; the others queue behind it in order.
        async with host.gate:
            slot = await host.slot()
            try:
                while True:
                    if (wait := wait_s(host.read(), time.time())) > 0:
                        await asyncio.sleep(wait)
                    await room.acquire()
                    if (began := host.begin()) is not None:
                        break
                    room.release()
            except BaseException:
                host.free(slot)
                raise
        try:
            yield Turn(host, began)
        finally:
            room.release()
            host.free(slot)

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        self._at.clear()

    def _host(self, url: str) -> _Host:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc in self._at:
            return self._at[parts.netloc]
        name = (parts.hostname or "").lower().rstrip(".")
        in_flight, per_second = self._settings.in_flight, self._settings.per_second
        own = next((entry for entry in self._settings.hosts if f".{name}".endswith(f".{entry.host}")), None)
        if own is not None:
            name, in_flight, per_second = own.host, own.in_flight, own.per_second
        elif parts.port not in (None, 80, 443):
            name = f"{name}-{parts.port}"
        if name not in self._hosts:
            # An address or a foreign script has characters that file names lack.
            safe = re.sub(r"[^a-z0-9.-]", "_", name)[:64]
            digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
            self._hosts[name] = _Host(self.folder / f"{safe}-{digest}", in_flight, per_second or math.inf)
        self._at[parts.netloc] = self._hosts[name]
        return self._hosts[name]


class _Host:
    """One host's files."""

    def __init__(self, folder: Path, in_flight: int, per_second: float) -> None:
        self._folder, self._per_second = folder, per_second
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._open("pace")
        if os.fstat(self._file).st_size < _STATE.size:
            os.ftruncate(self._file, _STATE.size)
        # Read far more often than written: without a call of the system, which would cost other threads'
        # turns for the interpreter's lock.
        self._state = mmap.mmap(self._file, _STATE.size)
        self._slots: list[int | None] = [None] * in_flight
        self._held = [False] * in_flight
        self._freed = asyncio.Event()
        self.gate = asyncio.Lock()

    def _open(self, name: str) -> int:
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def read(self) -> Pace:
        values = _STATE.unpack_from(self._state)
        # A new file is all zeros, and a rate of 0 would be for ever.
        return Pace(*values) if values[1] > 0 and not any(map(math.isnan, values)) else Pace()

    def write(self, pace: Pace) -> None:
        _STATE.pack_into(self._state, 0, *vars(pace).values())

    def locked(self) -> _Locked:
        return _Locked(self, self._file)

    def begin(self) -> float | None:
        """Start a request and return when; None where another one was faster and it must wait."""
        with self.locked() as pace:
            now = time.time()
            if wait_s(pace, now) > 0:
                return None
            begin(pace, now, self._per_second)
            return now

    async def slot(self) -> int:
        """Take one of the host's requests in flight, waiting until there is one."""
        while True:
            self._freed.clear()
            for number, held in enumerate(self._held):
                if not held and self._take(number):
                    return number
            # Other processes free theirs without a word.
            try:
                await asyncio.wait_for(self._freed.wait(), _POLL_S)
            except asyncio.TimeoutError:
                continue

    def _take(self, number: int) -> bool:
        file = self._slots[number]
        if file is None:
            file = self._slots[number] = self._open(f"slot-{number:03d}")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._held[number] = True
        return True

    def free(self, number: int) -> None:
        file = self._slots[number]
        if file is not None and self._held[number]:
            fcntl.flock(file, fcntl.LOCK_UN)
            self._held[number] = False
            self._freed.set()

    def close(self) -> None:
        self._state.close()
        for file in (self._file, *self._slots):
            if file is not None:
                os.close(file)


class _Locked:
    """The host's pace, for no one else until the block ends; what is changed is written."""

    def __init__(self, host: _Host, file: int) -> None:
        self._host, self._file = host, file

    def __enter__(self) -> Pace:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._pace = self._host.read()
        except BaseException:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            raise
        return self._pace

    def __exit__(self, *_: object) -> None:
        try:
            self._host.write(self._pace)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
