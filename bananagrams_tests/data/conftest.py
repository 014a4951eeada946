from __future__ import annotations

from collections.abc import Iterator

import pytest

from .servers import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server on the loopback address, which is allowed to be asked."""
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", "127.0.0.1")
    with serving() as server:
        yield server
