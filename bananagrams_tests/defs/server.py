"""`dagster dev` with its daemon, on a free port, with a small sample."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bananagrams_assets.cli.local import prepare_home

ROOT = Path(__file__).parents[2]
SMALL = [
    "source.sample.pairs=72",
    "source.sample.side_px=192",
    "splits.train={ratio: 0.6, shards: 2}",
]
"""Settings of a small demo: 72 pairs in two train shards, one dev shard and one test shard."""


@dataclass
class Server:
    """A running web server and daemon."""

    url: str
    home: Path
    log: Path

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Return the `data` of a GraphQL response. Raises AssertionError with its errors."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(
            f"{self.url}/graphql", body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        data: dict[str, Any] = answer["data"]
        return data


@contextmanager
def dagster_dev(folder: Path, settings: list[str] = SMALL) -> Iterator[Server]:
    """Start `dagster dev` as in README, wait for web server and daemon, and stop it at the end."""
    port = free_port()
    home, log = folder / "home", folder / "dagster-dev.log"
    prepare_home(home)
    environment = dict(
        os.environ,
        DAGSTER_HOME=str(home),
        BANANAGRAMS_PROFILE="demo",
        BANANAGRAMS_SET="\n".join(settings),
        PYTHONUNBUFFERED="1",
    )
    program = str(Path(sys.executable).with_name("dagster"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "dev", "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            server = Server(f"http://127.0.0.1:{port}", home, log)
            _wait_until_healthy(server, process)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(server: Server, what: str, ready: Any, seconds: float) -> Any:
    """Return the first true value of `ready()`. Raises AssertionError with the server's log on timeout."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(1)
    raise AssertionError(f"timeout: {what} took longer than {seconds} s\n{server.log.read_text()[-6000:]}")


def _wait_until_healthy(server: Server, process: subprocess.Popen[bytes]) -> None:
    query = """{ repositoriesOrError { __typename }
      instance { daemonHealth { daemonStatus(daemonType: "BACKFILL") { healthy } } } }"""

    def healthy() -> bool:
        assert process.poll() is None, f"dagster dev exited\n{server.log.read_text()[-6000:]}"
        try:
            data = server.query(query)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return (
            bool(data["instance"]["daemonHealth"]["daemonStatus"]["healthy"])
            and data["repositoriesOrError"]["__typename"] == "RepositoryConnection"
        )

    wait_for(server, "dagster dev", healthy, 120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
