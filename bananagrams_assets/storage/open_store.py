"""Choose the store implementation for a URL."""

from __future__ import annotations

import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from .local import LocalStore
from .store import Store, StoreError


def open_store(url: str, s3_client: Any | None = None) -> Store:
    """Return the store at a folder path, a `file://` URL or `s3://bucket/prefix`. Raises StoreError.

    Without `s3_client`, boto3 takes the S3 endpoint and credentials from the environment.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url.strip():
            raise StoreError("the store's URL is empty; expected a folder or s3://bucket/prefix")
        return LocalStore(Path(url).expanduser())
    if scheme == "file":
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise StoreError(
                f"{url}: a file URL has no host; expected three slashes, as in file:///data/store"
            )
        return LocalStore(Path(urllib.request.url2pathname(parts.path)))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StoreError(f"{url}: the bucket is missing; expected s3://bucket/prefix")
        # Importing boto3 takes a third of a second, and only a bucket needs it.
        from .s3 import S3Store

        return S3Store(bucket, prefix.strip("/"), s3_client)
    raise StoreError(f"{url}: unknown scheme {scheme!r}; expected a folder or s3://bucket/prefix")
