"""Every test has its own store, instance and registry, and sees none of the person's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .servers import Server, serving
from .weed import Weed
from .weed import serving as s3_server

OURS = ("BANANAGRAMS_PROFILE", "BANANAGRAMS_STORE", "BANANAGRAMS_SET", "BANANAGRAMS_ALLOW_HOSTS",
        "MLFLOW_TRACKING_URI", "DAGSTER_HOME", "AWS_ENDPOINT_URL")  # fmt: skip

# The code location reads its profile when it is imported, before any fixture runs.
for variable in OURS:
    os.environ.pop(variable, None)


# A shell starts what it runs in the background with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DAGSTER_HOME, and with it store and registry, under the test's own folder."""
    home = tmp_path / "home"
    for variable in OURS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


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
