"""Measure how long a cancelled build takes to end, including all processes it started.

python -m bananagrams_tests.benchmarks.cancel_benchmark [--workers 4] [--rounds 3]

A server on the loopback address never completes one image of each pair, so all workers are waiting when the
signal arrives: SIGTERM, SIGINT to all processes (Ctrl-C in a terminal), or SIGKILL. There is no plain
reference. The exit status is 1 if the slowest build takes longer than LIMIT_S.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bananagrams_assets.vision.images import encode_jpeg

from ..photos import make_photo, record, write_manifest
from ..servers import body, serving, stalled

LIMIT_S = 5.0
PAIRS_PER_WORKER = 8


def seconds_to_end(workers: int, signum: signal.Signals) -> float:
    """Return the time from the signal until the build's last process has ended."""
    with tempfile.TemporaryDirectory() as name, serving() as server:
        folder, photo, records = Path(name), encode_jpeg(make_photo(0), 95), []
        stalled_paths = [f"/nb/{number}.png" for number in range(PAIRS_PER_WORKER * workers)]
        for number, path in enumerate(stalled_paths):
            server.answers[f"/{number}.jpg"] = body(photo)
            server.answers[path] = stalled
            url = f"{server.url}/{number}.jpg"
            records.append(record(number, open_image_input_url=url, output_image=f"{number}.png"))
        settings = (
            f"source.cdn_prefix={server.url}/nb/", f"splits.train={{ratio: 1.0, shards: {workers}}}",
            "splits.dev={ratio: 0.0, shards: 1}", "splits.test={ratio: 0.0, shards: 1}",
            "fetch.timeout_s=3600", "fetch.deadline_s=3600", "fetch.in_flight=256", "fetch.concurrency=256",
        )  # fmt: skip
        command = [
            sys.executable, "-m", "bananagrams_assets.cli", "build", "--workers", str(workers),
            "--manifest", str(write_manifest(folder, records)), "--store", str(folder / "store"),
            *(word for setting in settings for word in ("--set", setting)),
        ]  # fmt: skip
        (folder / "home").mkdir()
        # By default, Dagster's pool lets four shards fetch at once.
        instance_settings = f"concurrency: {{pools: {{granularity: op, default_limit: {workers}}}}}\n"
        (folder / "home/dagster.yaml").write_text(instance_settings)
        environment = {
            **os.environ, "DAGSTER_HOME": str(folder / "home"), "BANANAGRAMS_ALLOW_HOSTS": "127.0.0.1"
        }  # fmt: skip
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not all(server.requests[path] for path in stalled_paths):
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(process.communicate()[0].decode())
        start = time.monotonic()
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        process.communicate()  # returns when the last process closes the pipe
        return time.monotonic() - start


def main() -> None:
    """Print the median and maximum duration of each signal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    slowest = 0.0
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        seconds = [seconds_to_end(arguments.workers, signum) for _ in range(arguments.rounds)]
        slowest = max(slowest, *seconds)
        print(f"{signum.name}: {statistics.median(seconds):.1f} s, slowest {max(seconds):.1f} s", flush=True)
    if slowest > LIMIT_S:
        raise SystemExit(f"a cancelled build took longer than {LIMIT_S:g} s to end")


if __name__ == "__main__":
    main()
