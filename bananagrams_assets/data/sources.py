"""Manifest sources: what they are called and whether they changed."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

SAMPLE = "sample:"
"""The name of the embedded sample where a manifest's path or URL is expected."""


class SourceError(RuntimeError):
    """A manifest that cannot be read; the message names it and says why."""


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def fingerprint(source: str) -> str:
    """A string that changes when the source does.

    A local file's SHA-256; a URL's ETag, else Last-Modified and length (HEAD request); the embedded
    sample is a function of its settings and code, which its readers compare themselves. Raises
    SourceError if there is no such file or the server does not answer.
    """
    if source == SAMPLE:
        return SAMPLE
    if is_url(source):
        return _remote_fingerprint(source)
    path = Path(source).expanduser()
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()[:16]
    except OSError as error:
        raise SourceError(f"manifest {source}: {error.strerror or error}") from None


def _remote_fingerprint(url: str) -> str:
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "bananagrams"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            headers = response.headers
    except (urllib.error.URLError, OSError) as error:
        raise SourceError(f"manifest {url}: {error}") from None
    parts = [headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
    return parts[0] or hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
