"""Rate limits per host, shared by all runs on this machine.

Each host has a folder with one small state file (rate and time of the next request) and one empty file per
request that may be in flight. All are guarded by `flock`, which the kernel releases when a process ends for
any reason, so a killed run blocks no other.

The rate follows additive increase and multiplicative decrease (Chiu and Jain, 1989, "Analysis of the
increase and decrease algorithms for congestion avoidance in computer networks"): a 429 or 503 response
halves it, and successes add to it so that RECOVERY_S of them undo one halving.
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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import FetchSettings
from ..storage.store import lock_if_free

MAX_PAUSE_S = 300.0
"""Maximum pause that is waited for. A host that requests a longer one opens its circuit instead."""
OPEN_CIRCUIT_S = 600.0
"""Duration of an open circuit after MAX_PAUSE_S of waits without a success."""
RECOVERY_S = 20.0
"""Seconds of success that undo one halving of the rate."""
MIN_RATE_PER_S = 0.2
MIN_MEASURED_PER_S = 10.0
"""Lower bound of the measured rate. One second is too short to measure less, and a single throttle should not
nearly stop a host."""
REACTION_S = 1.0
"""Throttles of requests that started up to this long after a halving cause no further halving, as those
requests may precede its effect."""

_MIN_THROTTLE_S = 10.0
_MAX_OPEN_CIRCUIT_S = 86_400.0
_POLL_S = 0.01
_STATE = struct.Struct("<10d")


class CircuitOpen(Exception):
    """The host gets no requests for longer than an image is waited for."""


@dataclass
class HostState:
    """State of one host as stored, in this order, as ten doubles. Times are seconds since the epoch.

    `rate` is in requests per second, infinite until the first throttle, and `rate_before` is its value
    before the last halving. `strain_s` sums the waits that throttles implied since the last success.
    `second`, `count` and `previous_count` measure the rate: requests started in the current second and in
    the one before it.
    """

    next_at: float = 0.0
    rate: float = math.inf
    rate_before: float = math.inf
    paused_until: float = 0.0
    circuit_open_until: float = 0.0
    throttled_at: float = 0.0
    strain_s: float = 0.0
    second: float = 0.0
    count: float = 0.0
    previous_count: float = 0.0


def wait_s(state: HostState, now: float) -> float:
    """Return the seconds until the next request is allowed, 0 for now. Raises CircuitOpen."""
    if now < state.circuit_open_until <= now + _MAX_OPEN_CIRCUIT_S:
        raise CircuitOpen(f"host at rest: no requests for another {state.circuit_open_until - now:.0f} s")
    until = max(state.next_at, state.paused_until)
    # Times far ahead come from a clock that was set back; they must not block the host.
    return until - now if now < until <= now + MAX_PAUSE_S else 0.0


def record_request(state: HostState, now: float, max_per_s: float) -> None:
    """Update the state for a request that starts at `now`."""
    second = math.floor(now)
    if second != state.second:
        state.previous_count = state.count if second == state.second + 1 else 0.0
        state.second, state.count = second, 0.0
    state.count += 1
    state.next_at = now + 1 / min(state.rate, max_per_s)


def record_throttle(state: HostState, now: float, started: float, retry_after_s: float | None) -> None:
    """Update the state for a 429 or 503 response to a request that started at `started`."""
    if retry_after_s is not None and retry_after_s > MAX_PAUSE_S:
        open_until = now + min(retry_after_s, _MAX_OPEN_CIRCUIT_S)
        state.circuit_open_until = max(state.circuit_open_until, open_until)
        return
    if retry_after_s is not None:
        state.paused_until = max(state.paused_until, now + retry_after_s)
    if started < state.throttled_at + REACTION_S:
        return
    state.rate_before = min(state.rate, max(state.count, state.previous_count, MIN_MEASURED_PER_S))
    state.rate = max(MIN_RATE_PER_S, state.rate_before / 2)
    state.throttled_at = now
    state.next_at = max(state.next_at, now + 1 / state.rate)
    state.strain_s += max(retry_after_s or 0.0, _MIN_THROTTLE_S)
    if state.strain_s >= MAX_PAUSE_S:
        state.circuit_open_until = now + OPEN_CIRCUIT_S


def record_success(state: HostState) -> None:
    """Update the state for a success: the rate grows by a fixed amount per second."""
    state.strain_s = 0.0
    if math.isfinite(state.rate):
        state.rate += state.rate_before / 2 / RECOVERY_S / state.rate
        if state.rate > 2 * state.rate_before:
            state.rate = state.rate_before = math.inf


class Permit:
    """Permission for one request."""

    def __init__(self, host: _Host, started: float) -> None:
        self._host, self._started = host, started

    def on_throttle(self, retry_after_s: float | None) -> None:
        """Report a 429 or 503 response with its Retry-After in seconds."""
        with self._host.locked() as state:
            record_throttle(state, time.time(), self._started, retry_after_s)

    def on_success(self) -> None:
        """Report any other response."""
        state = self._host.read()
        if state.strain_s or math.isfinite(state.rate):
            with self._host.locked() as state:
                record_success(state)


class RateLimiter:
    """Issues permits. Runs with the same `folder` share their limits."""

    def __init__(self, folder: Path, settings: FetchSettings) -> None:
        self.folder, self._settings = folder, settings
        self._hosts: dict[str, _Host] = {}
        self._by_netloc: dict[str, _Host] = {}

    @asynccontextmanager
    async def permit(self, url: str, connections: asyncio.Semaphore) -> AsyncIterator[Permit]:
        """Wait for the limits of the URL's host and for `connections`; hold both for the block.

        Raises CircuitOpen, and OSError if the folder cannot be written.
        """
        host = self._host(url)
        # One task per host polls the files; the others queue behind it in order.
        async with host.lock:
            slot = await host.acquire_slot()
            try:
                while True:
                    if (wait := wait_s(host.read(), time.time())) > 0:
                        await asyncio.sleep(wait)
                    await connections.acquire()
                    if (started := host.start_request()) is not None:
                        break
                    connections.release()
            except BaseException:
                host.release_slot(slot)
                raise
        try:
            yield Permit(host, started)
        finally:
            connections.release()
            host.release_slot(slot)

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
        self._by_netloc.clear()

    def _host(self, url: str) -> _Host:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc in self._by_netloc:
            return self._by_netloc[parts.netloc]
        name = (parts.hostname or "").lower().rstrip(".")
        in_flight, per_second = self._settings.in_flight, self._settings.per_second
        own = next((entry for entry in self._settings.hosts if f".{name}".endswith(f".{entry.host}")), None)
        if own is not None:
            name, in_flight, per_second = own.host, own.in_flight, own.per_second
        elif parts.port not in (None, 80, 443):
            name = f"{name}-{parts.port}"
        if name not in self._hosts:
            # IP addresses and internationalized names have characters that are unsafe in file names.
            safe = re.sub(r"[^a-z0-9.-]", "_", name)[:64]
            digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
            self._hosts[name] = _Host(self.folder / f"{safe}-{digest}", in_flight, per_second or math.inf)
        self._by_netloc[parts.netloc] = self._hosts[name]
        return self._hosts[name]


class _Host:
    """Files of one host."""

    def __init__(self, folder: Path, in_flight: int, per_second: float) -> None:
        self._folder, self._per_second = folder, per_second
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._open("pace")
        if os.fstat(self._file).st_size < _STATE.size:
            os.ftruncate(self._file, _STATE.size)
        # The state is read far more often than written. Reading it from a memory map needs no system call,
        # which would contend with other threads for the GIL.
        self._state = mmap.mmap(self._file, _STATE.size)
        self._slots: list[int | None] = [None] * in_flight
        self._held = [False] * in_flight
        self._released = asyncio.Event()
        self.lock = asyncio.Lock()

    def _open(self, name: str) -> int:
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def read(self) -> HostState:
        values = _STATE.unpack_from(self._state)
        # A new file holds zeros, and a rate of 0 would block the host forever.
        return HostState(*values) if values[1] > 0 and not any(map(math.isnan, values)) else HostState()

    @contextmanager
    def locked(self) -> Iterator[HostState]:
        """Yield the state under an exclusive lock, and write it back."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        state = self.read()
        try:
            yield state
        finally:
            _STATE.pack_into(self._state, 0, *vars(state).values())
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def start_request(self) -> float | None:
        """Record a request and return its start time, or None if another process took the turn."""
        with self.locked() as state:
            now = time.time()
            if wait_s(state, now) > 0:
                return None
            record_request(state, now, self._per_second)
            return now

    async def acquire_slot(self) -> int:
        """Wait for one of the host's in-flight slots and return its number."""
        while True:
            self._released.clear()
            for number, held in enumerate(self._held):
                if not held and self._lock_slot(number):
                    return number
            # Other processes release slots without notice.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._released.wait(), _POLL_S)

    def _lock_slot(self, number: int) -> bool:
        file = self._slots[number]
        if file is None:
            file = self._slots[number] = self._open(f"slot-{number:03d}")
        self._held[number] = lock_if_free(file)
        return self._held[number]

    def release_slot(self, number: int) -> None:
        file = self._slots[number]
        if file is not None and self._held[number]:
            fcntl.flock(file, fcntl.LOCK_UN)
            self._held[number] = False
            self._released.set()

    def close(self) -> None:
        self._state.close()
        for file in (self._file, *self._slots):
            if file is not None:
                os.close(file)
