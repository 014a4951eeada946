"""Fetching pictures politely: few at a time, patient with busy servers, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

from ..config import FetchSettings

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from .addresses import Allowed

REDIRECTS = 5
LONGEST_WAIT_S = 300.0
"""A server that asks for a longer pause than this is asked no more."""

_CHUNK = 2**16
_BUSY = frozenset({408, 425, 429})


class FetchError(RuntimeError):
    """Fetching is impossible on this machine as it stands, whatever is asked for."""


@dataclass(frozen=True)
class Fetched:
    """What came of one URL.

    `status` is "ok", "failed" (the server or the network) or "refused" (our own limits); `http_status` is
    the last answer's, 0 where there was none; `attempts` counts tries, `bytes` what was read in the last
    one and `seconds` all of it, waits included.
    """

    status: Literal["ok", "failed", "refused"]
    reason: str = ""
    data: bytes = b""
    http_status: int = 0
    attempts: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class _Try:
    """One try as it goes: what is known of it when it is cut short."""

    http_status: int = 0
    body: bytearray = field(default_factory=bytearray)


class _Failure(Exception):
    def __init__(
        self, reason: str, status: Literal["failed", "refused"] = "failed", retry: bool = False,
        wait_s: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.reason, self.status, self.retry, self.wait_s = reason, status, retry, wait_s


class Fetcher:
    """Fetches URLs over shared connections; made by `open_fetcher`."""

    def __init__(self, session: ClientSession, settings: FetchSettings, allowed: Allowed) -> None:
        self._session, self._settings, self._allowed = session, settings, allowed
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._pauses: dict[str, float] = {}
        self._random = random.Random()

    async def fetch(self, url: str) -> Fetched:
        """Fetch one URL; what goes wrong with it is in the result. Never raises for a URL's sake."""
        start = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            trial = _Try()
            failure = await self._try(url, trial)
            if failure is None:
                return self._result(start, attempt, trial, "ok", data=bytes(trial.body))
            wait = self._wait_s(failure, attempt)
            if wait is None or attempt >= self._settings.attempts:
                return self._result(start, attempt, trial, failure.status, failure.reason)
            if failure.wait_s is not None:
                host = _host(url)
                self._pauses[host] = max(self._pauses.get(host, 0.0), time.monotonic() + failure.wait_s)
            await asyncio.sleep(wait)

    @staticmethod
    def _result(
        start: float,
        attempts: int,
        trial: _Try,
        status: Literal["ok", "failed", "refused"],
        reason: str = "",
        data: bytes = b"",
    ) -> Fetched:
        seconds = time.monotonic() - start
        return Fetched(status, reason, data, trial.http_status, attempts, len(trial.body), seconds)

    def _wait_s(self, failure: _Failure, attempt: int) -> float | None:
        """Seconds until the next try: exponential backoff with jitter, or what the server asked for."""
        if not failure.retry or (failure.wait_s or 0) > LONGEST_WAIT_S:
            return None
        backoff: float = self._settings.backoff_s * 2 ** (attempt - 1)
        if failure.wait_s is not None:
            # The jitter keeps those who wait for one server from coming back all at once.
            return failure.wait_s + self._random.uniform(0, min(backoff, 1.0))
        return min(backoff * self._random.uniform(0.5, 1.5), LONGEST_WAIT_S)

    async def _try(self, url: str, trial: _Try) -> _Failure | None:
        import aiohttp

        from .addresses import HostRefusedError

        # A server that asked one request to wait has asked all of them.
        while (pause := self._pauses.get(_host(url), 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        async with self._slots:
            try:
                await asyncio.wait_for(self._get(url, trial), self._settings.timeout_s)
            except _Failure as failure:
                return failure
            except HostRefusedError as error:
                return _Failure(str(error), "refused")
            except asyncio.TimeoutError:
                return _Failure(f"timeout: no end after {self._settings.timeout_s:g} s", retry=True)
            except aiohttp.ClientPayloadError:
                return _Failure(f"body cut short: {len(trial.body)} bytes came", retry=True)
            except aiohttp.InvalidURL:
                return _Failure(f"not a URL: {url[:200]}")
            except (aiohttp.ClientConnectionError, ConnectionError) as error:
                return _Failure(f"no connection: {_words(error)}", retry=True)
            except (aiohttp.ClientError, ValueError) as error:
                return _Failure(f"bad answer: {_words(error)}")
        return None

    async def _get(self, url: str, trial: _Try) -> None:
        from .addresses import check_literal

        for _ in range(REDIRECTS + 1):
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https"):
                raise _Failure(f"redirect to another scheme: {url[:200]}", "refused")
            check_literal(parts.hostname or "", self._allowed)
            async with self._session.get(url, allow_redirects=False) as response:
                trial.http_status = response.status
                if response.status not in (301, 302, 303, 307, 308):
                    if response.status != 200:
                        raise _http_failure(response.status, response.headers.get("Retry-After"))
                    if (response.content_length or 0) > self._settings.max_bytes:
                        raise self._too_large(f"{response.content_length:,} bytes announced")
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        trial.body += chunk
                        if len(trial.body) > self._settings.max_bytes:
                            raise self._too_large("the answer goes on")
                    return
                location = response.headers.get("Location", "")
            if not location:
                raise _Failure("redirect to nowhere: no Location")
            url = urllib.parse.urljoin(url, location)
        raise _Failure(f"too many redirects: over {REDIRECTS}")

    def _too_large(self, detail: str) -> _Failure:
        limit = f"the limit is {self._settings.max_bytes:,} (fetch.max_bytes)"
        return _Failure(f"file too large: {detail}, {limit}", "refused")


@asynccontextmanager
async def open_fetcher(settings: FetchSettings) -> AsyncIterator[Fetcher]:
    """A fetcher whose connections live as long as the `with` block."""
    import aiohttp

    from .addresses import Allowed, PublicResolver

    allowed = Allowed.from_environment()
    connector = aiohttp.TCPConnector(limit=settings.concurrency, resolver=PublicResolver(allowed))
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        # Pictures are compressed already; a compressed answer could unpack to any size.
        headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield Fetcher(session, settings, allowed)


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


def _http_failure(status: int, retry_after: str | None) -> _Failure:
    retry = status in _BUSY or status >= 500
    return _Failure(f"HTTP {status}", retry=retry, wait_s=retry_after_s(retry_after) if retry else None)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.lower()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
