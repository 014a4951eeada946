from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import Server, serving
from .weed import Weed
from .weed import serving as s3_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server on the loopback address, which is allowed to be asked."""
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One S3 server for all tests of a session: it takes seconds to start."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        yield server
