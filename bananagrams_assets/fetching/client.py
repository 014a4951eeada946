"""Fetch URLs with limits on concurrency, size and time, and retry transient failures."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import math
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..config import FetchSettings
from ..errors import BananagramsError
from ..profiles import home_folder
from .opt_out import opt_out
from .rate_limits import MAX_PAUSE_S, CircuitOpen, Permit, RateLimiter

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

    from .addresses import HostAllowList

MAX_REDIRECTS = 5
BODIES_PER_CONNECTION = 2
"""Maximum number of bodies in memory per unit of `fetch.concurrency`. Bodies that wait for storage block
further downloads."""

_READ_BUFFER_BYTES = 2**20
_BUSY_STATUS = frozenset({429, 503})
_RETRYABLE_STATUS = frozenset({408, 425})
"""In addition to all of 5xx."""
_LOCAL_ERRNO = frozenset({errno.EMFILE, errno.ENFILE})
"""Connection errors caused by this machine."""

Status: TypeAlias = Literal["ok", "failed", "refused"]
IsComplete: TypeAlias = Callable[[bytes], bool]


class FetchError(BananagramsError, RuntimeError):
    """This machine cannot fetch anything, whatever the URL."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """Result of fetching one URL.

    `status` is "ok", "failed" (server or network) or "refused" (local limits, or an opt-out by the server).
    `chunks` is the body as received. `retryable` marks a failure that a later run may not see again.
    `http_status` is that of the last response, 0 without one. `attempts` counts requests with their
    redirects as one, `bytes` is the number of bytes read by the last attempt, `seconds` the total duration
    including waits.
    """

    status: Status
    reason: str = ""
    chunks: Sequence[bytes] = ()
    http_status: int = 0
    attempts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retryable: bool = False


@dataclass
class _Attempt:
    """State of one attempt, readable after it was aborted. `body_slot` releases the slot of the body."""

    body_slot: contextlib.ExitStack
    http_status: int = 0
    size: int = 0
    chunks: list[bytes] = field(default_factory=list)
    delimited: bool = True
    """Whether the response specified where the body ends."""


@dataclass
class _Deadline:
    """Deadline of one URL: `limit_s` after its first request started."""

    limit_s: float
    ends: float | None = None

    def start(self) -> None:
        # Time spent waiting for the first permit does not count.
        if self.ends is None:
            self.ends = time.monotonic() + self.limit_s

    def remaining_s(self) -> float:
        return self.limit_s if self.ends is None else self.ends - time.monotonic()


class _FetchFailure(Exception):
    def __init__(
        self, reason: str, status: Status = "failed", retryable: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.status, self.retryable, self.wait_s = reason, status, retryable, wait_s


class Fetcher:
    """Fetches URLs over shared connections. Created by `open_fetcher`."""

    def __init__(
        self, session: ClientSession, settings: FetchSettings, allow_list: HostAllowList, limiter: RateLimiter
    ) -> None:
        self._session, self._settings = session, settings
        self._allow_list, self._limiter = allow_list, limiter
        self._connections = asyncio.Semaphore(settings.concurrency)
        self.body_slots = asyncio.Semaphore(BODIES_PER_CONNECTION * settings.concurrency)
        """One slot per body in memory. Callers that hold bodies from elsewhere acquire slots here too."""
        self._random = random.Random()

    @asynccontextmanager
    async def fetch(self, url: str, is_complete: IsComplete = bool) -> AsyncIterator[FetchResult]:
        """Fetch one URL; every failure of the URL is reported in the result, not raised.

        The body occupies one of `body_slots` until the `with` block ends. `is_complete` checks a body
        without a declared length, as only its content shows whether it was truncated. Raises FetchError
        for faults of this machine.
        """
        start, deadline = time.monotonic(), _Deadline(self._settings.deadline_s)
        with contextlib.ExitStack() as body_slot:
            for attempts in itertools.count(1):
                attempt = _Attempt(body_slot)
                failure = await self._attempt(url, attempt, deadline, is_complete)
                if failure is None:
                    result = FetchResult("ok", chunks=attempt.chunks)
                    break
                body_slot.close()
                result = FetchResult(failure.status, failure.reason, retryable=failure.retryable)
                wait = self._wait_s(failure, attempts)
                if wait is None or wait >= deadline.remaining_s():
                    break
                await asyncio.sleep(wait)
            result = replace(result, http_status=attempt.http_status, attempts=attempts, bytes=attempt.size)
            yield replace(result, seconds=time.monotonic() - start)

    def _wait_s(self, failure: _FetchFailure, attempts: int) -> float | None:
        """Return the delay before the next attempt in seconds, or None for no further attempt.

        It is exponential backoff with jitter, or the delay that the server requested.
        """
        if not failure.retryable or attempts >= self._settings.attempts:
            return None
        backoff: float = self._settings.backoff_s * 2 ** (attempts - 1)
        if failure.wait_s is None:
            return min(backoff * self._random.uniform(0.5, 1.5), MAX_PAUSE_S)
        if failure.wait_s > MAX_PAUSE_S:
            return None
        # The jitter keeps all clients that wait for one server from returning at the same moment.
        return failure.wait_s + self._random.uniform(0, min(backoff, 1.0))

    async def _attempt(
        self, url: str, attempt: _Attempt, deadline: _Deadline, is_complete: IsComplete
    ) -> _FetchFailure | None:
        import aiohttp

        from .addresses import HostRefusedError

        try:
            await self._follow_redirects(url, attempt, deadline)
            if not attempt.delimited and not await asyncio.to_thread(is_complete, b"".join(attempt.chunks)):
                raise _truncated(attempt)
        except _FetchFailure as failure:
            return failure
        except HostRefusedError as error:
            return _FetchFailure(str(error), "refused")
        except CircuitOpen as error:
            return _FetchFailure(str(error), retryable=True, wait_s=math.inf)
        except asyncio.TimeoutError:
            setting = "timeout_s" if deadline.remaining_s() > 0 else "deadline_s"
            limit_s = getattr(self._settings, setting)
            return _FetchFailure(f"timeout: incomplete after {limit_s:g} s (fetch.{setting})", retryable=True)
        except aiohttp.ClientPayloadError:
            return _truncated(attempt)
        except aiohttp.InvalidURL:
            return _FetchFailure(f"not a URL: {url[:200]}")
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            if isinstance(error, OSError) and error.errno in _LOCAL_ERRNO:
                raise FetchError(f"{url[:200]}: cannot open another connection: {_message(error)}") from error
            return _FetchFailure(f"no connection: {_message(error)}", retryable=True)
        except (aiohttp.ClientError, ValueError) as error:
            return _FetchFailure(f"bad answer: {_message(error)}")
        return None

    async def _follow_redirects(self, url: str, attempt: _Attempt, deadline: _Deadline) -> None:
        from .addresses import check_address_literal

        remaining_s = self._settings.timeout_s
        for _ in range(MAX_REDIRECTS + 1):
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https"):
                raise _FetchFailure(f"redirect to another scheme: {url[:200]}", "refused")
            check_address_literal(parts.hostname or "", self._allow_list)
            async with contextlib.AsyncExitStack() as stack:
                waiting = stack.enter_async_context(self._limiter.permit(url, self._connections))
                # The wait for the first permit is unlimited; later ones count towards the deadline.
                permit = await (
                    waiting if deadline.ends is None else asyncio.wait_for(waiting, deadline.remaining_s())
                )
                deadline.start()
                began = time.monotonic()
                timeout_s = min(remaining_s, deadline.remaining_s())
                location = await self._request(url, attempt, permit, timeout_s)
                remaining_s -= time.monotonic() - began
            if location is None:
                return
            if not location:
                raise _FetchFailure("redirect to nowhere: no Location header")
            url = urllib.parse.urljoin(url, location)
        raise _FetchFailure(f"too many redirects: over {MAX_REDIRECTS}")

    async def _request(self, url: str, attempt: _Attempt, permit: Permit, timeout_s: float) -> str | None:
        """Send one request; return the redirect's target ("" without Location), or None for a read body."""
        import aiohttp

        # aiohttp treats 0 as no limit.
        timeout = aiohttp.ClientTimeout(total=max(timeout_s, 0.001))
        async with self._session.get(url, allow_redirects=False, timeout=timeout) as response:
            attempt.http_status = response.status
            if response.status in _BUSY_STATUS:
                wait_s = retry_after_s(response.headers.get("Retry-After"))
                permit.on_throttle(wait_s)
                raise _FetchFailure(f"HTTP {response.status}", retryable=True, wait_s=wait_s)
            permit.on_success()
            if response.status in (301, 302, 303, 307, 308):
                return response.headers.get("Location", "")
            if response.status != 200:
                retryable = response.status in _RETRYABLE_STATUS or response.status >= 500
                raise _FetchFailure(f"HTTP {response.status}", retryable=retryable)
            await self._read_body(response, attempt)
            return None

    async def _read_body(self, response: ClientResponse, attempt: _Attempt) -> None:
        headers, max_bytes = response.headers, self._settings.max_bytes
        if self._settings.honour_opt_out:
            robots = headers.getall("X-Robots-Tag", [])
            if directive := opt_out(robots, headers.get("TDM-Reservation")):
                raise _FetchFailure(f"opted out: {directive} (fetch.honour_opt_out)", "refused")
        if (response.content_length or 0) > max_bytes:
            reason = too_large(f"{response.content_length:,} bytes announced", max_bytes)
            raise _FetchFailure(reason, "refused")
        await self.body_slots.acquire()
        attempt.body_slot.callback(self.body_slots.release)
        attempt.delimited = response.content_length is not None or "Transfer-Encoding" in headers
        async for chunk in response.content.iter_any():
            attempt.chunks.append(chunk)
            attempt.size += len(chunk)
            if attempt.size > max_bytes:
                reason = too_large(f"over {max_bytes:,} bytes received", max_bytes)
                raise _FetchFailure(reason, "refused")


@asynccontextmanager
async def open_fetcher(settings: FetchSettings) -> AsyncIterator[Fetcher]:
    """Open a Fetcher whose connections are closed at the end of the `with` block."""
    import aiohttp

    from .addresses import HostAllowList, PublicResolver

    allow_list = HostAllowList.from_environment()
    agent = f"{settings.user_agent} +{settings.contact}" if settings.contact else settings.user_agent
    connector = aiohttp.TCPConnector(limit=settings.concurrency, resolver=PublicResolver(allow_list))
    limiter = RateLimiter(home_folder() / "pace", settings)
    async with aiohttp.ClientSession(
        connector=connector,
        # Images are already compressed, and a compressed response could expand to any size.
        headers={"User-Agent": agent, "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
    ) as session:
        # aiohttp silently repeats a request whose kept-alive connection was closed, which bypasses the rate
        # limiter and the attempt count. It has no public switch; its own test client sets this attribute.
        session._retry_connection = False
        try:
            yield Fetcher(session, settings, allow_list, limiter)
        except OSError as error:
            # Errors of requests are in their results, so only files of the rate limiter concern us here.
            if str(limiter.folder) not in str(error.filename):
                raise
            raise FetchError(
                f"{error.filename}: {error.strerror}; make this file of the rate limiter writable"
            ) from error
        finally:
            limiter.close()


def retry_after_s(value: str | None) -> float | None:
    """Return the delay in seconds that a Retry-After header requests (RFC 9110, 10.2.3).

    Accepts a number of seconds or a date; returns None for anything else.
    """
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def too_large(detail: str, max_bytes: int) -> str:
    return f"file too large: {detail}, the limit is {max_bytes:,} (fetch.max_bytes)"


def _truncated(attempt: _Attempt) -> _FetchFailure:
    return _FetchFailure(f"body cut short: {attempt.size} bytes received", retryable=True)


def _message(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
