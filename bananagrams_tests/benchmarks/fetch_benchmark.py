"""Compare fetching a shard with a plain `requests` loop and a bare aiohttp client.

A server on the loopback address, in its own process, answers after 20 ms with images of realistic sizes
under the URL paths of the public data set. Each client runs in a fresh process, one after the other. The bare
client uses the same concurrency, the `requests` loop sends one request at a time, and both save each body to
a file. This package also checks and hashes images, keeps them if it is killed, and writes shard and table to
disk. The plain clients end while their bytes are still in the page cache. Therefore one variant of the bare
client calls `fsync` on its files, as this package does, and another one discards the bodies.

Bodies go to TMPDIR: a folder on a disk, or in memory (/dev/shm) to exclude the disk.

python -m bananagrams_tests.benchmarks.fetch_benchmark [--pairs 1000] [--concurrency 16] [--rounds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DISTINCT = 4
PHOTO_SIDE, EDIT_SIDE = 1024, 1024
MODULE = "bananagrams_tests.benchmarks.fetch_benchmark"


def make_images(folder: Path) -> None:
    """Write photos of about 0.3 MB (JPEG) and edited images of about 1.5 MB (PNG)."""
    import cv2
    import numpy as np

    for number in range(DISTINCT):
        rng = np.random.default_rng(number)
        size = (PHOTO_SIDE, PHOTO_SIDE * 3 // 4)
        smooth = cv2.resize(rng.random((24, 32, 3), np.float32), size, interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 10, (size[1], size[0], 3))
        photo = np.clip(smooth * 255 + grain, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 90])
        edit = np.clip(smooth * 255 + grain / 2, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), edit, [cv2.IMWRITE_PNG_COMPRESSION, 6])


def serve(folder: Path, latency_s: float) -> None:
    """Answer `/…/<number>.jpg|png` with one of the images until the process is terminated."""
    bodies = {path.name: path.read_bytes() for path in folder.iterdir()}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                stem, _, kind = request.split(b" ", 2)[1].decode().rpartition("/")[2].partition(".")
                await asyncio.sleep(latency_s)
                body = bodies[f"{int(stem) % DISTINCT}.{kind}"]
                head = f"HTTP/1.1 200 OK\r\nContent-Type: image/{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode())
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


def urls(base: str, pairs: int) -> Iterator[tuple[str, str]]:
    for number in range(pairs):
        yield f"{base}/photos/{number}.jpg", f"{base}/nb/images/positive-edit/{number}.png"


def bananagrams(base: str, pairs: int, concurrency: int) -> int:
    from bananagrams_assets.graph import IMAGE_PAIRS
    from bananagrams_assets.profiles import validate
    from bananagrams_assets.records.record import MANIFEST_COLUMNS
    from bananagrams_assets.storage import paths
    from bananagrams_assets.storage.local import LocalStore
    from bananagrams_assets.storage.tables import write_table

    from ..stages.building import call

    shard = "train-00000"
    store = LocalStore(Path(os.environ["DAGSTER_HOME"]) / "store")
    records = [
        {name: 0 if kind is int else "" for name, kind in MANIFEST_COLUMNS.items()}
        | {"key": f"sft-{number:06d}", "input_url": photo, "output_url": edit}
        for number, (photo, edit) in enumerate(urls(base, pairs))
    ]
    write_table(store, paths.manifest_table(shard), MANIFEST_COLUMNS, records)
    del records
    profile = validate({"fetch": {"concurrency": concurrency}})
    result = call(IMAGE_PAIRS, store, profile, shard)
    assert result.stats["ok"] == pairs, result.stats
    return int(result.stats["bytes"])


def requests_loop(base: str, pairs: int, concurrency: int) -> int:
    import requests

    return sum(save(url, requests.get(url, timeout=60).content) for pair in urls(base, pairs) for url in pair)


def save(url: str, body: bytes) -> int:
    (Path(os.environ["DAGSTER_HOME"]) / url.rpartition("/")[2]).write_bytes(body)
    return len(body)


def bare_client(base: str, pairs: int, concurrency: int, keep: Callable[[str, bytes], int] = save) -> int:
    import aiohttp

    async def main() -> int:
        semaphore = asyncio.Semaphore(concurrency)
        connector = aiohttp.TCPConnector(limit=concurrency)

        async def get(session: aiohttp.ClientSession, url: str) -> int:
            async with semaphore, session.get(url) as response:
                return keep(url, await response.read())

        async with aiohttp.ClientSession(connector=connector) as session:
            requests = (get(session, url) for pair in urls(base, pairs) for url in pair)
            return sum(await asyncio.gather(*requests))

    return asyncio.run(main())


def bare_client_on_disk(base: str, pairs: int, concurrency: int) -> int:
    size = bare_client(base, pairs, concurrency)
    for path in Path(os.environ["DAGSTER_HOME"]).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return size


def bare_client_in_memory(base: str, pairs: int, concurrency: int) -> int:
    return bare_client(base, pairs, concurrency, keep=lambda url, body: len(body))


CLIENTS: dict[str, Callable[[str, int, int], int]] = {
    "bananagrams": bananagrams, "bare aiohttp": bare_client, "bare aiohttp, fsync": bare_client_on_disk,
    "bare aiohttp, discarding bodies": bare_client_in_memory,
    "requests loop": requests_loop,
}  # fmt: skip

MODULES = {
    "bananagrams": (
        "aiohttp",
        "pandas",
        "pyarrow.compute",
        "pyarrow.parquet",
        "bananagrams_assets.stages.image_pairs",
    ),
    "bare aiohttp": ("aiohttp",),
    "bare aiohttp, fsync": ("aiohttp",),
    "bare aiohttp, discarding bodies": ("aiohttp",),
    "requests loop": ("requests",),
}
"""Modules that each client imports before the measurement."""


def run_client(name: str, base: str, pairs: int, concurrency: int) -> None:
    """Fetch all images and print duration, CPU time, bytes and peak memory as JSON."""
    for module in MODULES[name]:
        importlib.import_module(module)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    size = CLIENTS[name](base, pairs, concurrency)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": size, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Return the peak resident memory of this process. `getrusage` would include that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def file_system(folder: Path) -> str:
    """Return the type of a folder's file system as in /proc/mounts."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((len(mount), kind) for mount, kind in mounts if folder.resolve().is_relative_to(mount))[1]


def measure(name: str, base: str, pairs: int, concurrency: int) -> dict[str, Any]:
    """Run a client in a fresh process with its own DAGSTER_HOME."""
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as home:
        process = subprocess.run(
            [sys.executable, "-m", MODULE, "--client", name, "--base", base, "--pairs", str(pairs),
             "--concurrency", str(concurrency)],
            env={**os.environ, "DAGSTER_HOME": home, "BANANAGRAMS_ALLOW_HOSTS": "127.0.0.1"},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    measured: dict[str, Any] = json.loads(process.stdout)
    return measured


@contextmanager
def server(latency_s: float) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        make_images(Path(folder))
        sizes = {path.name: round(path.stat().st_size / 1e6, 2) for path in sorted(Path(folder).iterdir())}
        print(f"images (MB): {sizes}")
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--serve", folder, "--latency", str(latency_s)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--without-requests", action="store_true", help="omit the slow `requests` loop")
    parser.add_argument("--memory-pairs", type=int, nargs="*", default=[200, 2000])
    for inner in ("--serve", "--client", "--base"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(Path(arguments.serve), arguments.latency)
        return
    if arguments.client:
        run_client(arguments.client, arguments.base, arguments.pairs, arguments.concurrency)
        return
    names = [name for name in CLIENTS if not (arguments.without_requests and name == "requests loop")]
    print(f"bodies go to {tempfile.gettempdir()} ({file_system(Path(tempfile.gettempdir()))})")
    with server(arguments.latency) as base:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                runs[name].append(measure(name, base, arguments.pairs, arguments.concurrency))
        images = 2 * arguments.pairs
        rates = {}
        for name, measured in runs.items():
            wall = statistics.median(run["wall"] for run in measured)
            cpu = statistics.median(run["cpu"] for run in measured)
            rates[name] = images / wall
            speed = f"{rates[name]:7.1f} images/s  {measured[0]['bytes'] / wall / 1e6:7.1f} MB/s"
            print(f"{name:32} {wall:7.2f} s  {speed}  {1e3 * cpu / images:6.2f} ms CPU per image")
        for name in names[1:]:
            print(f"bananagrams / {name}: {rates['bananagrams'] / rates[name]:.2f}")
        for pairs in arguments.memory_pairs:
            peak = measure("bananagrams", base, pairs, arguments.concurrency)["peak_mb"]
            print(f"peak memory at {pairs} pairs: {peak:.0f} MB")


if __name__ == "__main__":
    main()
