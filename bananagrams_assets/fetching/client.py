"""Fetching pictures politely: few at a time, patient with busy servers, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..config import FetchSettings
from ..errors import BananagramsError
from ..profiles import home_folder
from .opt_out import opt_out
from .rate_limits import LONGEST_PAUSE_S, HostAtRest, Pacer, Turn

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

    from .addresses import Allowed

REDIRECTS = 5
BODIES = 2
"""Bodies in memory, in units of `fetch.concurrency`: what waits to be stored holds up what is to come."""

_BUFFER = 2**20
_BUSY = frozenset({429, 503})
_PASSING = frozenset({408, 425})
_OURS = frozenset({errno.EMFILE, errno.ENFILE})

Status: TypeAlias = Literal["ok", "failed", "refused"]
IsWhole: TypeAlias = Callable[[bytes], bool]


class FetchError(BananagramsError, RuntimeError):
    """Fetching is impossible on this machine as it stands, whatever is asked for."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of one URL.

    `status` is "ok", "failed" (the server or the network) or "refused" (our own limits, or the server's
    wish not to be used); `chunks` is the body as it came; `may_pass` tells of a failure whether it might be
    gone another day; `http_status` is the last answer's, 0 where there was none; `attempts` counts tries,
    `bytes` what was read in the last one and `seconds` all of it, waits included.
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
class _Trial:
    """One try as it goes: what is known of it when it is cut short."""

    http_status: int = 0
    size: int = 0
    chunks: list[bytes] = field(default_factory=list)
    delimited: bool = True
    """Whether the server said where the body ends."""
    has_place: bool = False


@dataclass
class _Clock:
    """When a picture must be there: `deadline_s` after its first request began."""

    deadline_s: float
    ends: float | None = None

    def start(self) -> None:
        # Waiting for a first turn behind others is no slowness of this picture.
        if self.ends is None:
            self.ends = time.monotonic() + self.deadline_s

    def left_s(self) -> float:
        return self.deadline_s if self.ends is None else self.ends - time.monotonic()


class _Failure(Exception):
    def __init__(
        self, reason: str, status: Status = "failed", retryable: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.status, self.retryable, self.wait_s = reason, status, retryable, wait_s


class Fetcher:
    """Fetches URLs over shared connections; made by `open_fetcher`."""

    def __init__(
        self, session: ClientSession, settings: FetchSettings, allowed: Allowed, pacer: Pacer
    ) -> None:
        self._session, self._settings, self._allowed, self._pacer = session, settings, allowed, pacer
        self._room = asyncio.Semaphore(settings.concurrency)
        self.places = asyncio.Semaphore(BODIES * settings.concurrency)
        """One for each body in memory; who holds others than fetched ones takes theirs here."""
        self._random = random.Random()

    @asynccontextmanager
    async def fetch(self, url: str, is_whole: IsWhole = bool) -> AsyncIterator[Fetched]:
        """Fetch one URL; what goes wrong with it is in the result. Never raises for a URL's sake.

        The body takes one of BODIES x `concurrency` places until the `with` block ends. `is_whole` judges
        a body that came without its length: only its content tells whether it was cut. Raises FetchError
        for faults of this machine.
        """
        async with contextlib.AsyncExitStack() as places:
            yield await self._fetch(url, is_whole, places)

    async def _fetch(self, url: str, is_whole: IsWhole, places: contextlib.AsyncExitStack) -> Fetched:
        start, clock, attempt = time.monotonic(), _Clock(self._settings.deadline_s), 0
        while True:
            attempt += 1
            trial = _Trial()
            failure = await self._try(url, trial, clock, is_whole)
            if trial.has_place and failure is None:
                places.callback(self.places.release)
            elif trial.has_place:
                self.places.release()
            if failure is None:
                outcome = _Failure("", "ok")
                break
            outcome = failure
            wait = self._wait_s(failure, attempt)
            if wait is None or wait >= clock.left_s():
                break
            await asyncio.sleep(wait)
        seconds = time.monotonic() - start
        return Fetched(
            outcome.status, outcome.reason, trial.chunks if outcome.status == "ok" else (), trial.http_status,
            attempt, trial.size, seconds, outcome.retryable,
        )  # fmt: skip

    def _wait_s(self, failure: _Failure, attempt: int) -> float | None:
        """Seconds until the next try: exponential backoff with jitter, or what the server asked for."""
        if not failure.retryable or attempt >= self._settings.attempts:
            return None
        backoff: float = self._settings.backoff_s * 2 ** (attempt - 1)
        if failure.wait_s is None:
            return min(backoff * self._random.uniform(0.5, 1.5), LONGEST_PAUSE_S)
        if failure.wait_s > LONGEST_PAUSE_S:
            return None
        # The jitter keeps those who wait for one server from coming back all at once.
        return failure.wait_s + self._random.uniform(0, min(backoff, 1.0))

    async def _try(self, url: str, trial: _Trial, clock: _Clock, is_whole: IsWhole) -> _Failure | None:
        import aiohttp

        from .addresses import HostRefusedError

        try:
            await self._follow(url, trial, clock)
            if not trial.delimited and not await asyncio.to_thread(is_whole, b"".join(trial.chunks)):
                raise _cut(trial)
        except _Failure as failure:
            return failure
        except HostRefusedError as error:
            return _Failure(str(error), "refused")
        except HostAtRest as error:
            return _Failure(str(error), retryable=True, wait_s=math.inf)
        except asyncio.TimeoutError:
            limit = "fetch.timeout_s" if clock.left_s() > 0 else "fetch.deadline_s"
            value = self._settings.timeout_s if clock.left_s() > 0 else self._settings.deadline_s
            return _Failure(f"timeout: no end after {value:g} s ({limit})", retryable=True)
        except aiohttp.ClientPayloadError:
            return _cut(trial)
        except aiohttp.InvalidURL:
            return _Failure(f"not a URL: {url[:200]}")
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise FetchError(f"no more connections can be opened: {_words(error)}") from error
            return _Failure(f"no connection: {_words(error)}", retryable=True)
        except (aiohttp.ClientError, ValueError) as error:
            return _Failure(f"bad answer: {_words(error)}")
        return None

    async def _follow(self, url: str, trial: _Trial, clock: _Clock) -> None:
        from .addresses import check_literal

        left_s = self._settings.timeout_s
        for _ in range(REDIRECTS + 1):
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https"):
                raise _Failure(f"redirect to another scheme: {url[:200]}", "refused")
            check_literal(parts.hostname or "", self._allowed)
            async with contextlib.AsyncExitStack() as stack:
                waiting = stack.enter_async_context(self._pacer.turn(url, self._room))
                # A first turn is waited for as long as it takes, a further one by the deadline.
                turn = await (waiting if clock.ends is None else asyncio.wait_for(waiting, clock.left_s()))
                clock.start()
                began = time.monotonic()
                location = await self._ask(url, trial, turn, min(left_s, clock.left_s()))
                left_s -= time.monotonic() - began
            if location is None:
                return
            if not location:
                raise _Failure("redirect to nowhere: no Location")
            url = urllib.parse.urljoin(url, location)
        raise _Failure(f"too many redirects: over {REDIRECTS}")

    async def _ask(self, url: str, trial: _Trial, turn: Turn, seconds: float) -> str | None:
        """Make one request; returns where it redirects to, None once the body is read."""
        import aiohttp

        # aiohttp takes 0 for no limit.
        limit = aiohttp.ClientTimeout(total=max(seconds, 0.001))
        async with self._session.get(url, allow_redirects=False, timeout=limit) as response:
            trial.http_status = response.status
            if response.status in _BUSY:
                wait_s = retry_after_s(response.headers.get("Retry-After"))
                turn.complain(wait_s)
                raise _Failure(f"HTTP {response.status}", retryable=True, wait_s=wait_s)
            turn.praise()
            if response.status in (301, 302, 303, 307, 308):
                return response.headers.get("Location", "")
            if response.status != 200:
                passing = response.status in _PASSING or response.status >= 500
                raise _Failure(f"HTTP {response.status}", retryable=passing)
            await self._read(response, trial)
            return None

    async def _read(self, response: ClientResponse, trial: _Trial) -> None:
        headers = response.headers
        if self._settings.honour_opt_out:
            robots = headers.getall("X-Robots-Tag", [])
            if directive := opt_out(robots, headers.get("TDM-Reservation")):
                raise _Failure(f"opted out: {directive} (fetch.honour_opt_out)", "refused")
        if (response.content_length or 0) > self._settings.max_bytes:
            raise self._too_large(f"{response.content_length:,} bytes announced")
        await self.places.acquire()
        trial.has_place = True
        trial.delimited = response.content_length is not None or "Transfer-Encoding" in headers
        async for chunk in response.content.iter_any():
            trial.chunks.append(chunk)
            trial.size += len(chunk)
            if trial.size > self._settings.max_bytes:
                raise self._too_large("the answer goes on")

    def _too_large(self, detail: str) -> _Failure:
        limit = f"the limit is {self._settings.max_bytes:,} (fetch.max_bytes)"
        return _Failure(f"file too large: {detail}, {limit}", "refused")


@asynccontextmanager
async def open_fetcher(settings: FetchSettings) -> AsyncIterator[Fetcher]:
    """A fetcher whose connections live as long as the `with` block."""
    import aiohttp

    from .addresses import Allowed, PublicResolver

    allowed = Allowed.from_environment()
    agent = f"{settings.user_agent} +{settings.contact}" if settings.contact else settings.user_agent
    connector = aiohttp.TCPConnector(limit=settings.concurrency, resolver=PublicResolver(allowed))
    pacer = Pacer(home_folder() / "pace", settings)
    async with aiohttp.ClientSession(
        connector=connector,
        # Pictures are compressed already; a compressed answer could unpack to any size.
        headers={"User-Agent": agent, "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_BUFFER,
    ) as session:
        # On a kept connection that turns out closed, aiohttp asks again by itself, outside the pace and the
        # count of tries. It has no public switch for that; its own test client sets this one.
        session._retry_connection = False
        try:
            yield Fetcher(session, settings, allowed, pacer)
        except OSError as error:
            # A file of the pacer: what goes wrong with a request is no exception out here.
            if str(pacer.folder) not in str(error.filename):
                raise
            raise FetchError(f"{error.filename}: {error.strerror}; all runs keep their pace there") from error
        finally:
            pacer.close()


def retry_after_s(value: str | None) -> float | None:
    """Seconds asked for by a Retry-After header (RFC 9110, 10.2.3): a number or a date; None for neither."""
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


def _cut(trial: _Trial) -> _Failure:
    return _Failure(f"body cut short: {trial.size} bytes came", retryable=True)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
