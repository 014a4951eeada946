"""What packing and storing cost beside alignment and masks, and what memory a shard takes.

    python -m bananagrams_tests.benchmarks.build_benchmark pack [--pairs 24] [--side 1024]
    python -m bananagrams_tests.benchmarks.build_benchmark memory [--few 200] [--many 2000] [--bucket]

`pack` runs ours (the stages aligned_pairs, edit_masks and shards on a store) and the plain reference (each
pair decoded once, aligned, masked, nothing written) in turn in one process, on one core, in CPU time: two
processes do two shards side by side. `shards` alone, its reading and writing included, is the packing.

`memory` builds a shard of few and one of many small pairs, each in a process of its own, from pictures to
the dataset shard, and prints the peak of its resident memory; with `--bucket` on a real S3 server.
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
from bananagrams_assets.sample.make import make_sample
from bananagrams_assets.stages.image_pairs import decode_pair
from bananagrams_assets.stages.stage import run_stage
from bananagrams_assets.storage import paths
from bananagrams_assets.storage.open_store import open_store
from bananagrams_assets.storage.sample_tar import read_samples
from bananagrams_assets.storage.store import Store
from bananagrams_assets.storage.tables import by_key, read_table
from bananagrams_assets.vision.align import align
from bananagrams_assets.vision.mask import edit_mask

from ..photos import local_pairs, one_shard, quiet
from ..stages.building import BUILDERS
from ..weed import BUCKET, serving

SHARD = "train-00000"
STAGES = ("aligned_pairs", "edit_masks", "shards")


def cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def run(store: Store, profile: Profile, asset: str) -> None:
    partition = "whole" if asset == "manifest" else SHARD
    run_stage(store, profile, asset, partition, BUILDERS[asset], quiet, rebuild=True)


def plain(store: Store, profile: Profile) -> None:
    """Alignment and masks alone."""
    records = by_key(read_table(store, paths.manifest_table(SHARD)))
    with store.open(paths.pairs_tar(SHARD)) as file:
        for sample in read_samples(file):
            before, after = decode_pair(sample, profile.fetch.max_pixels)
            found = align(before, after, profile.align)
            if found.accepted:
                scope = records[sample.key]["scope"]
                edit_mask(before, after, found.homography, found.overlap, profile.mask, scope)


def pack(pairs: int, side: int, rounds: int) -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DAGSTER_HOME"] = folder
        settings = one_shard().source.sample.model_copy(update={"pairs": pairs, "side_px": side})
        make_sample(Path(folder) / "pairs", settings, None, quiet)
        # As the full profile stores them: JPEG of both pictures.
        profile = one_shard(Path(folder) / "pairs" / "sft.jsonl", fetch={"largest_side_px": side - 8})
        store = open_store(f"{folder}/store")
        for asset in ("manifest", "image_pairs", *STAGES):
            run(store, profile, asset)
        plain(store, profile)
        ours: dict[str, list[float]] = {asset: [] for asset in STAGES}
        reference = []
        for _ in range(rounds):
            reference.append(cpu(lambda: plain(store, profile)))
            for asset in STAGES:
                ours[asset].append(cpu(lambda asset=asset: run(store, profile, asset)))  # type: ignore[misc]
        count = len(read_table(store, paths.pairs_table(SHARD)))
        best = {asset: min(times) / count * 1e3 for asset, times in ours.items()}
        alone = min(reference) / count * 1e3
        whole = sum(best.values())
        for asset, milliseconds in best.items():
            print(f"{asset:14} {milliseconds:8.2f} ms a pair")
        print(f"{'together':14} {whole:8.2f} ms a pair")
        print(f"{'plain':14} {alone:8.2f} ms a pair (decoded once, aligned, masked, nothing stored)")
        print(f"throughput {alone / whole:.1%} of plain; packing {best['shards'] / whole:.1%} of ours")


def memory(few: int, many: int, bucket: bool) -> None:
    if not bucket:
        return compare(few, many, "")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as weed:
        os.environ.update(weed.variables)
        return compare(few, many, f"s3://{BUCKET}/")


def compare(few: int, many: int, prefix: str) -> None:
    peaks = {}
    for count in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            manifest = local_pairs(Path(folder), count)
            command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "child", str(manifest)]
            done = subprocess.run(
                [*command, f"{prefix}{count}" if prefix else f"{folder}/store"],
                env={**os.environ, "DAGSTER_HOME": folder}, check=True, capture_output=True, text=True,
            )  # fmt: skip
            told = json.loads(done.stdout)
            peaks[count] = told["peak"]
            print(f"{count:6} pairs: {told['peak'] / 2**20:7.1f} MiB, shard {told['bytes'] / 1e6:6.1f} MB")
    print(f"ratio {peaks[many] / peaks[few]:.3f}")


def child(manifest: str, url: str) -> None:
    store, profile = open_store(url), one_shard(manifest)
    for asset in ("manifest", "image_pairs", *STAGES):
        run(store, profile, asset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "bytes": store.size(paths.shard_tar(SHARD))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("--pairs", type=int, default=24)
    packing.add_argument("--side", type=int, default=1024)
    packing.add_argument("--rounds", type=int, default=3)
    remembering = commands.add_parser("memory")
    remembering.add_argument("--few", type=int, default=200)
    remembering.add_argument("--many", type=int, default=2000)
    remembering.add_argument("--bucket", action="store_true")
    one = commands.add_parser("child")
    one.add_argument("manifest")
    one.add_argument("url")
    chosen = vars(parser.parse_args())
    commands_of: dict[str, Callable[..., None]] = {"pack": pack, "memory": memory, "child": child}
    commands_of[chosen.pop("command")](**chosen)


if __name__ == "__main__":
    main()
