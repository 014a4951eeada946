"""Cost of packing and storing relative to alignment and masks, and peak memory of a shard.

    python -m bananagrams_tests.benchmarks.build_benchmark pack [--pairs 24] [--side 1024]
    python -m bananagrams_tests.benchmarks.build_benchmark memory [--few 200] [--many 2000] [--bucket]

`pack` measures CPU time on one core, because separate processes build separate shards. In turn it runs the
stages aligned_pairs, edit_masks and shards on a store, and a reference that decodes each pair once, aligns
it, computes its mask and writes nothing. The time of `shards`, with its reading and writing, is the
cost of packing.

`memory` builds a shard of few and one of many small pairs, from images to the dataset shard, each in a
separate process, and prints the peak resident memory; with `--bucket` on a real S3 server.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import ALIGNED_PAIRS, EDIT_MASKS, IMAGE_PAIRS, MANIFEST, SHARDS
from bananagrams_assets.progress import ignore_progress
from bananagrams_assets.sample.sample_folder import make_sample
from bananagrams_assets.stages.build import build_partition
from bananagrams_assets.stages.image_pairs import decode_pair
from bananagrams_assets.stages.stage import UNPARTITIONED, Stage
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.sample_tar import read_samples
from bananagrams_assets.storage.store import Store
from bananagrams_assets.storage.tables import by_key, read_table
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.mask import edit_mask

from ..photos import local_pairs, one_shard, quiet
from ..weed import BUCKET, serving

SHARD = "train-00000"
STAGES = (ALIGNED_PAIRS, EDIT_MASKS, SHARDS)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def run(store: Store, profile: Profile, stage: Stage) -> None:
    partition = UNPARTITIONED if stage is MANIFEST else SHARD
    build_partition(store, profile, stage, partition, ignore_progress, rebuild=True)


def run_reference(store: Store, profile: Profile) -> None:
    """Align each pair and compute its mask, without storing anything."""
    records = by_key(read_table(store, paths.manifest_table(SHARD)))
    with store.open(paths.pairs_tar(SHARD)) as file:
        for sample in read_samples(file):
            before, after = decode_pair(sample, profile.fetch.max_pixels)
            alignment = align(before, after, profile.align)
            if alignment.accepted:
                scope = records[sample.key]["scope"]
                edit_mask(before, after, alignment.homography, alignment.overlap, profile.mask, scope)


def pack(pairs: int, side: int, rounds: int) -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DAGSTER_HOME"] = folder
        settings = one_shard().source.sample.model_copy(update={"pairs": pairs, "side_px": side})
        make_sample(Path(folder) / "pairs", settings, None, quiet)
        # Both images are stored as JPEG, as in the profile pico-banana.
        profile = one_shard(Path(folder) / "pairs" / "sft.jsonl", fetch={"largest_side_px": side - 8})
        store = open_store(f"{folder}/store")
        for stage in (MANIFEST, IMAGE_PAIRS, *STAGES):
            run(store, profile, stage)
        run_reference(store, profile)
        seconds: dict[str, list[float]] = {stage.name: [] for stage in STAGES}
        reference_seconds = []
        for _ in range(rounds):
            reference_seconds.append(cpu_seconds(lambda: run_reference(store, profile)))
            for stage in STAGES:
                seconds[stage.name].append(
                    cpu_seconds(lambda stage=stage: run(store, profile, stage))  # type: ignore[misc]
                )
        count = len(read_table(store, paths.pairs_table(SHARD)))
        best_ms = {stage: min(times) / count * 1e3 for stage, times in seconds.items()}
        reference_ms = min(reference_seconds) / count * 1e3
        total_ms = sum(best_ms.values())
        for stage_name, milliseconds in best_ms.items():
            print(f"{stage_name:14} {milliseconds:8.2f} ms per pair")
        print(f"{'total':14} {total_ms:8.2f} ms per pair")
        print(f"{'reference':14} {reference_ms:8.2f} ms per pair (decode once, align, mask, store nothing)")
        print(
            f"throughput {reference_ms / total_ms:.1%} of the reference; packing "
            f"{best_ms['shards'] / total_ms:.1%} of the total"
        )


def memory(few: int, many: int, bucket: bool) -> None:
    if not bucket:
        return compare(few, many, "")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as weed:
        os.environ.update(weed.variables)
        return compare(few, many, f"s3://{BUCKET}/")


def compare(few: int, many: int, prefix: str) -> None:
    """Build both shards in child processes, in a store under the URL `prefix`, by default in a folder."""
    peaks = {}
    for count in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            manifest = local_pairs(Path(folder), count)
            command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "child", str(manifest)]
            done = subprocess.run(
                [*command, f"{prefix}{count}" if prefix else f"{folder}/store"],
                env={**os.environ, "DAGSTER_HOME": folder}, check=True, capture_output=True, text=True,
            )  # fmt: skip
            result = json.loads(done.stdout)
            peaks[count] = result["peak"]
            print(
                f"{count:6} pairs: {result['peak'] / 2**20:7.1f} MiB, shard {result['bytes'] / 1e6:6.1f} MB"
            )
    print(f"ratio {peaks[many] / peaks[few]:.3f}")


def child(manifest: str, url: str) -> None:
    """Build one shard and print its size and the peak memory of this process as JSON."""
    store, profile = open_store(url), one_shard(manifest)
    for stage in (MANIFEST, IMAGE_PAIRS, *STAGES):
        run(store, profile, stage)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "bytes": store.size(paths.shard_tar(SHARD))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack_parser = commands.add_parser("pack")
    pack_parser.add_argument("--pairs", type=int, default=24)
    pack_parser.add_argument("--side", type=int, default=1024)
    pack_parser.add_argument("--rounds", type=int, default=3)
    memory_parser = commands.add_parser("memory")
    memory_parser.add_argument("--few", type=int, default=200)
    memory_parser.add_argument("--many", type=int, default=2000)
    memory_parser.add_argument("--bucket", action="store_true")
    child_parser = commands.add_parser("child")
    child_parser.add_argument("manifest")
    child_parser.add_argument("url")
    arguments = vars(parser.parse_args())
    functions: dict[str, Callable[..., None]] = {"pack": pack, "memory": memory, "child": child}
    functions[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
