"""Files that a profile names by path or URL: manifests and the list of Open Images photos.

Downloads and digests are cached under DAGSTER_HOME (else `.bananagrams`), so that an unchanged source is
neither downloaded nor read again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..config import FetchSettings
from ..errors import BananagramsError
from ..profiles import home_folder
from ..progress import Log, ignore_progress
from ..storage.digests import file_digest
from ..storage.local import LocalStore
from ..storage.store import MissingObject

SAMPLE = "sample:"
"""The name of the embedded sample, in place of a manifest's path or URL."""

_MIN_AGE_NS = 2_000_000_000
"""The digest of a younger file is not cached: it may change again within one tick of the file system's
clock, without a new modification time."""
_LOG_BYTES = 2**26


class SourceError(BananagramsError, RuntimeError):
    """A source cannot be read; the message gives its path or URL and the reason."""


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def source_digest(source: str, settings: FetchSettings, log: Log = ignore_progress) -> str:
    """Return the first 16 hex digits of the source's SHA-256, or `sample:` for the embedded sample.

    The embedded sample depends only on its settings and code, which its readers compare themselves. Raises
    SourceError.
    """
    if source == SAMPLE:
        return SAMPLE
    return local_copy(source, settings, log)[1][:16]


def local_copy(source: str, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    """Return (path, SHA-256) of a local file, or of the current content of a URL. Raises SourceError."""
    if is_url(source):
        return _download(source, settings, log)
    path = Path(source).expanduser()
    return path, _local_digest(path)


def _local_digest(path: Path) -> str:
    """Return a file's SHA-256, from the cache if its size, modification time and inode are unchanged."""
    cache = _CacheEntry(str(path.absolute()))
    try:
        status = path.stat()
        facts = cache.read()
        state = [status.st_size, status.st_mtime_ns, status.st_ino]
        if facts.get("seen") == state:
            return str(facts["sha256"])
        with path.open("rb") as file:
            digest = file_digest(file)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if time.time_ns() - status.st_mtime_ns > _MIN_AGE_NS:
        cache.write({"source": str(path), "seen": state, "sha256": digest})
    return digest


def _download(url: str, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    """Return (path, SHA-256) of a URL's content, after up to `attempts` conditional requests."""
    cache = _CacheEntry(url)
    for attempt in range(1, settings.attempts + 1):
        try:
            return _request(url, cache, settings, log)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise SourceError(f"{url}: {problem}") from error
        except (urllib.error.URLError, http.client.HTTPException, _NetworkError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < settings.attempts:
            log(f"{url}: {problem}; retrying")
            time.sleep(settings.backoff_s * 2 ** (attempt - 1))
    raise SourceError(f"{url}: {problem} (after {settings.attempts} attempts)")


def _request(url: str, cache: _CacheEntry, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    """Send one conditional request (RFC 9110, 13); status 304 (15.4.5) means that the cache is current."""
    headers = {"User-Agent": settings.user_agent}
    facts = cache.read()
    cached = cache.body(facts)
    if cached is not None:
        headers |= {
            name: facts[field]
            for name, field in (("If-None-Match", "etag"), ("If-Modified-Since", "last_modified"))
            if facts.get(field)
        }
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=settings.timeout_s
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 304 and cached is not None:
                return cached, str(facts["sha256"])
            raise
    except (TimeoutError, ConnectionError) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error
    with response:
        return cache.store(url, response, log)


class _NetworkError(Exception):
    """A connection failed during use. An OSError would not distinguish it from a disk error."""


class _CacheEntry:
    """The cache of one source: a JSON file of facts and, for a URL, its body.

    If two processes race, body and facts may come from different downloads. The server then responds with
    200 to the next request, and both are replaced.
    """

    def __init__(self, name: str) -> None:
        self._name = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        self._folder = LocalStore(home_folder() / "sources")

    def read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._folder.read(f"{self._name}.json"))
        except (MissingObject, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, facts: dict[str, Any]) -> None:
        self._folder.write(f"{self._name}.json", json.dumps(facts, sort_keys=True, indent=1).encode())

    def body(self, facts: dict[str, Any]) -> Path | None:
        """Return the path of the body that belongs to `facts`, None if it is missing or incomplete."""
        name = f"{self._name}.body"
        if not self._folder.exists(name) or self._folder.size(name) != facts.get("bytes"):
            return None
        return Path(self._folder.describe(name))

    def store(self, url: str, response: http.client.HTTPResponse, log: Log) -> tuple[Path, str]:
        """Download a response; return (path, SHA-256) of its body. A failure leaves the cache unchanged."""
        digest, size, logged = hashlib.sha256(), 0, 0
        with self._folder.create(f"{self._name}.body") as file:
            while block := _read_block(response):
                file.write(block)
                digest.update(block)
                size += len(block)
                if size - logged >= _LOG_BYTES:
                    logged = size
                    log(f"{url}: {size / 1e6:,.0f} MB received")
            expected = response.headers.get("Content-Length")
            if expected is not None and size != int(expected):
                raise _NetworkError(f"the response was cut: {size:,} of {int(expected):,} bytes received")
        facts = {
            "source": url,
            "sha256": digest.hexdigest(),
            "bytes": size,
            "etag": response.headers.get("ETag"),
            "last_modified": response.headers.get("Last-Modified"),
        }
        self.write(facts)
        return Path(self._folder.describe(f"{self._name}.body")), digest.hexdigest()


def _read_block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(2**20)
    except (http.client.HTTPException, OSError) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error
