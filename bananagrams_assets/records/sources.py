"""Files that a profile names by path or URL: manifests and the list of Open Images photographs.

What was downloaded, and the digest of what was read, is kept under DAGSTER_HOME (else `.bananagrams`), so
that a source that did not change is neither sent nor read again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from ..config import FetchSettings
from ..errors import BananagramsError
from ..profiles import home_folder
from ..progress import Log, ignore_progress
from ..storage.local import LocalStore
from ..storage.store import MissingObject

SAMPLE = "sample:"
"""The name of the embedded sample where a manifest's path or URL is expected."""

_SETTLED_NS = 2_000_000_000
"""A file changed within this time of being read may change again within one tick of its clock."""


class SourceError(BananagramsError, RuntimeError):
    """A source that cannot be read; the message names it and says why."""


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def fingerprint(source: str, settings: FetchSettings, log: Log = ignore_progress) -> str:
    """16 hex digits that change when the source's content does.

    Of a path or URL: its SHA-256, known from last time where size and time of change are the same or the
    server answers 304 (RFC 9110, 15.4.5). The embedded sample is a function of its settings and code,
    which its readers compare themselves. Raises SourceError.
    """
    if source == SAMPLE:
        return SAMPLE
    return latest(source, settings, log)[1][:16]


def latest(source: str, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    """(file, SHA-256) of a path or URL; a URL's download is brought up to date first. Raises SourceError."""
    if is_url(source):
        return _download(source, settings, log)
    path = Path(source).expanduser()
    return path, _digest_of_file(path)


def _digest_of_file(path: Path) -> str:
    notes = _Notes(str(path.absolute()))
    try:
        status = path.stat()
        known = notes.read()
        seen = [status.st_size, status.st_mtime_ns, status.st_ino]
        if known.get("seen") == seen:
            return str(known["sha256"])
        with path.open("rb") as file:
            digest = _sha256(file)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        notes.write({"source": str(path), "seen": seen, "sha256": digest})
    return digest


def _download(url: str, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    """(download, SHA-256) of a URL, asked for conditionally (RFC 9110, 13) with several tries."""
    notes = _Notes(url)
    for attempt in range(1, settings.attempts + 1):
        try:
            return _ask(url, notes, settings, log)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise SourceError(f"{url}: {problem}") from error
        except (urllib.error.URLError, http.client.HTTPException, _NetworkError) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < settings.attempts:
            log(f"{url}: {problem}; trying again")
            time.sleep(settings.backoff_s * 2 ** (attempt - 1))
    raise SourceError(f"{url}: {problem} (after {settings.attempts} tries)")


def _ask(url: str, notes: _Notes, settings: FetchSettings, log: Log) -> tuple[Path, str]:
    headers = {"User-Agent": settings.user_agent}
    known = notes.read()
    kept = notes.body(known)
    if kept is not None:
        headers |= {
            name: known[field]
            for name, field in (("If-None-Match", "etag"), ("If-Modified-Since", "last_modified"))
            if known.get(field)
        }
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=settings.timeout_s
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 304 and kept is not None:
                return kept, str(known["sha256"])
            raise
    except (TimeoutError, ConnectionError) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error
    with answer:
        return notes.download(url, answer, log)


class _NetworkError(Exception):
    """A connection that failed while it was used, told apart from a disk that did."""


class _Notes:
    """What is kept of one source: a JSON file of facts and, for a URL, its body.

    Body and facts may come from two downloads where two processes race: then the server answers 200 to the
    next question, and both are replaced.
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
        """The download that `facts` tell of, if it is still there and whole."""
        name = f"{self._name}.body"
        if not self._folder.exists(name) or self._folder.size(name) != facts.get("bytes"):
            return None
        return Path(self._folder.describe(name))

    def download(self, url: str, answer: http.client.HTTPResponse, log: Log) -> tuple[Path, str]:
        """Keep the body of an answer; what was kept before stays until this one is whole."""
        digest, size, told = hashlib.sha256(), 0, 0
        with self._folder.create(f"{self._name}.body") as file:
            while block := _received(answer):
                file.write(block)
                digest.update(block)
                size += len(block)
                if size - told >= 2**26:
                    told = size
                    log(f"{url}: {size / 1e6:,.0f} MB received")
            announced = answer.headers.get("Content-Length")
            if announced is not None and size != int(announced):
                raise _NetworkError(f"the answer was cut: {size:,} of {int(announced):,} bytes came")
        facts = {
            "source": url,
            "sha256": digest.hexdigest(),
            "bytes": size,
            "etag": answer.headers.get("ETag"),
            "last_modified": answer.headers.get("Last-Modified"),
        }
        self.write(facts)
        return Path(self._folder.describe(f"{self._name}.body")), digest.hexdigest()


def _received(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(2**20)
    except (http.client.HTTPException, OSError) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()
