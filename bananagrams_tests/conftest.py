"""Fixtures of all tests. Every test has its own store, Dagster instance and registry."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from .servers import Server, serving
from .weed import Weed
from .weed import serving as s3_server

VARIABLES = (
    "BANANAGRAMS_PROFILE", "BANANAGRAMS_STORE", "BANANAGRAMS_SET", "BANANAGRAMS_ALLOW_HOSTS",
    "MLFLOW_TRACKING_URI", "DAGSTER_HOME", "AWS_ENDPOINT_URL",
)  # fmt: skip
"""Environment variables of the package, which tests unset."""

# The code location reads its profile when it is imported, before any fixture runs.
for variable in VARIABLES:
    os.environ.pop(variable, None)


# The time that one example takes depends on the machine's load.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# A shell starts background jobs with SIGINT ignored, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set DAGSTER_HOME, which contains store and registry, to a folder of the test; return it."""
    home = tmp_path / "home"
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Yield a web server on the loopback address, and allow the client to connect to it."""
    monkeypatch.setenv("BANANAGRAMS_ALLOW_HOSTS", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """Yield an S3 server, shared by all tests of a session because it takes seconds to start."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        yield server
