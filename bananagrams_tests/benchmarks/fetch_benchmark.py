"""Fetching a shard beside a plain `requests` loop and a bare aiohttp client.

A server on the loopback address, a process of its own, answers after 20 ms with pictures of real sizes
under the paths of the public data set. Each client runs in a fresh process, in turn. The bare client and
the `requests` loop ask with the same concurrency, or one by one, and save each body to a file, as a script
would. Ours checks and hashes pictures, keeps each one against a kill, and writes shard and table, which are
on the disk when it ends. Plain scripts end while their bytes are still in the system's cache: so one row is
the bare client that ends as ours does, with `fsync` of what it wrote, and one is the bare client that
keeps nothing.

Bodies go to TMPDIR: a folder of a disk, or of memory (/dev/shm) to leave the disk out.

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
    """A few photographs of about 0.3 MB (JPEG) and edits of about 1.5 MB (PNG)."""
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
    """Answer `/…/<number>.jpg|png` with one of the pictures until the process is ended."""
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


def ours(base: str, pairs: int, concurrency: int) -> int:
    from bananagrams_assets.profiles import validate
    from bananagrams_assets.stages.image_pairs import fetch_pairs
    from bananagrams_assets.storage import paths
    from bananagrams_assets.storage.local import LocalStore
    from bananagrams_assets.storage.tables import MANIFEST, write_table

    shard = "train-00000"
    store = LocalStore(Path(os.environ["DAGSTER_HOME"]) / "store")
    records = [
        {name: 0 if kind is int else "" for name, kind in MANIFEST.items()}
        | {"key": f"sft-{number:06d}", "input_url": photo, "output_url": edit}
        for number, (photo, edit) in enumerate(urls(base, pairs))
    ]
    write_table(store, paths.manifest_table(shard), MANIFEST, records)
    del records
    profile = validate({"fetch": {"concurrency": concurrency}})
    result = fetch_pairs(store, profile, shard, lambda line: None)
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
        room = asyncio.Semaphore(concurrency)
        connector = aiohttp.TCPConnector(limit=concurrency)

        async def get(session: aiohttp.ClientSession, url: str) -> int:
            async with room, session.get(url) as response:
                return keep(url, await response.read())

        async with aiohttp.ClientSession(connector=connector) as session:
            wanted = (get(session, url) for pair in urls(base, pairs) for url in pair)
            return sum(await asyncio.gather(*wanted))

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
    "ours": ours, "bare aiohttp": bare_client, "bare aiohttp, fsync": bare_client_on_disk,
    "bare aiohttp, nothing kept": bare_client_in_memory,
    "requests loop": requests_loop,
}  # fmt: skip

MODULES = {
    "ours": (
        "aiohttp",
        "pandas",
        "pyarrow.compute",
        "pyarrow.parquet",
        "bananagrams_assets.stages.image_pairs",
    ),
    "bare aiohttp": ("aiohttp",),
    "bare aiohttp, fsync": ("aiohttp",),
    "bare aiohttp, nothing kept": ("aiohttp",),
    "requests loop": ("requests",),
}
"""Imported before the clock starts."""


def run_client(name: str, base: str, pairs: int, concurrency: int) -> None:
    """In the client's own process: fetch, and print what it took as JSON."""
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
    """Peak resident memory of this process. That of getrusage begins with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def file_system(folder: Path) -> str:
    """The type of the file system of a folder, as the system calls it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((len(at), kind) for at, kind in mounts if folder.resolve().is_relative_to(at))[1]


def measure(name: str, base: str, pairs: int, concurrency: int) -> dict[str, Any]:
    """Run a client in a fresh process with a home of its own."""
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as home:
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "--client", name, "--base", base, "--pairs", str(pairs),
             "--concurrency", str(concurrency)],
            env={**os.environ, "DAGSTER_HOME": home, "BANANAGRAMS_ALLOW_HOSTS": "127.0.0.1"},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def server(latency_s: float) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bananagrams-") as folder:
        make_images(Path(folder))
        sizes = {path.name: round(path.stat().st_size / 1e6, 2) for path in sorted(Path(folder).iterdir())}
        print(f"pictures (MB): {sizes}")
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
    parser.add_argument("--without-requests", action="store_true", help="leave the slow loop out")
    parser.add_argument("--memory-pairs", type=int, nargs="*", default=[200, 2000])
    for inner in ("--serve", "--client", "--base"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(Path(chosen.serve), chosen.latency)
        return
    if chosen.client:
        run_client(chosen.client, chosen.base, chosen.pairs, chosen.concurrency)
        return
    names = [name for name in CLIENTS if not (chosen.without_requests and name == "requests loop")]
    print(f"bodies go to {tempfile.gettempdir()} ({file_system(Path(tempfile.gettempdir()))})")
    with server(chosen.latency) as base:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(chosen.rounds):
            for name in names:
                runs[name].append(measure(name, base, chosen.pairs, chosen.concurrency))
        images = 2 * chosen.pairs
        rates = {}
        for name, found in runs.items():
            wall = statistics.median(run["wall"] for run in found)
            cpu = statistics.median(run["cpu"] for run in found)
            rates[name] = images / wall
            speed = f"{rates[name]:7.1f} pictures/s  {found[0]['bytes'] / wall / 1e6:7.1f} MB/s"
            print(f"{name:26} {wall:7.2f} s  {speed}  {1e3 * cpu / images:6.2f} ms CPU a picture")
        for name in names[1:]:
            print(f"ours / {name}: {rates['ours'] / rates[name]:.2f}")
        for pairs in chosen.memory_pairs:
            peak = measure("ours", base, pairs, chosen.concurrency)["peak_mb"]
            print(f"peak memory at {pairs} pairs: {peak:.0f} MB")


if __name__ == "__main__":
    main()
