"""Time, throughput and peak memory of the manifest stage, with a separate process for each size.

python -m bananagrams_tests.benchmarks.manifest_benchmark [--records N ...] [--photos N] [--profile]

The generated records have the form of sft.jsonl, with two edits per photo on average. One line in a thousand
is invalid and one in a thousand is repeated. `--photos` also generates an Open Images list with that many
rows. Its index is built first and timed separately. Half of the records' URLs are in the list.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bananagrams_assets.config import Profile
from bananagrams_assets.graph import MANIFEST
from bananagrams_assets.profiles import load_profile
from bananagrams_assets.records.edit_types import EDIT_TYPES
from bananagrams_assets.records.open_images import open_photos
from bananagrams_assets.storage.local import LocalStore

from ..stages.building import call

_TEXT = (
    "remove the red flag and its white pole from upper right of image seamlessly extending clear blue sky "
    "sandy dune with subtle texture wooden fence to fill void ensuring lighting color natural grain"
)


def photo_url(number: int) -> str:
    """Return a URL in the form of Flickr's URLs."""
    host, folder = f"c{number % 8 + 1}.staticflickr.com", f"{number % 9}/{7000 + number % 999}"
    return f"https://{host}/{folder}/{number + 10**9}_o.jpg"


def manifest_lines(records: int) -> Iterator[str]:
    rng = random.Random(0)
    words = _TEXT.split()
    line = ""
    for number in range(records):
        if number % 1000 == 500:
            yield '{"open_image_input_url": "https://example.org/cut\n'
        elif number % 1000 == 700:
            yield line
        else:
            content = {
                "open_image_input_url": photo_url(rng.randrange(max(1, records // 2))),
                "text": " ".join(rng.choices(words, k=50)),
                "output_image": f"images/positive-edit/{number}.png",
                "edit_type": rng.choice(EDIT_TYPES).name,
                "summarized_text": " ".join(rng.choices(words, k=8)),
            }
            line = json.dumps(content) + "\n"
            yield line


def list_lines(photos: int) -> Iterator[str]:
    yield (
        "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,"
        "OriginalMD5,Thumbnail300KURL,Rotation\n"
    )
    for number in range(photos):
        yield (
            f"{number * 2654435761 % 2**64:016x},train,{photo_url(2 * number)},"
            f"https://www.flickr.com/photos/someone/{number + 10**9},"
            "https://creativecommons.org/licenses/by/2.0/,"
            f"https://www.flickr.com/people/someone{number % 9999}/,"
            f'Somebody {number % 9999},"A title, with a comma {number}",2038323,'
            f"I4V4qq54NBEFDwBqPYCkDA==,https://c{number % 8 + 1}.staticflickr.com/{number}_z.jpg,0.0\n"
        )


def profile_of(folder: Path, with_list: bool) -> Profile:
    overrides: dict[str, object] = {"source.manifests": [str(folder / "sft.jsonl")]}
    overrides["source.open_images.csv"] = str(folder / "list.csv") if with_list else None
    return load_profile("pico-banana", overrides).profile


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def log(line: str) -> None:
    print(f"  {line}", file=sys.stderr)


def measure(folder: Path, with_list: bool, profiled: bool) -> None:
    """Build the manifest of `folder` in this process and print time and memory."""
    profile = profile_of(folder, with_list)
    if with_list:
        start = time.perf_counter()
        with open_photos(profile.source, profile.fetch, log):
            print(f"list of photos read in {time.perf_counter() - start:.1f} s, peak {peak_mb():.0f} MB")
    profiler = cProfile.Profile()
    start, before = time.perf_counter(), time.process_time()
    if profiled:
        profiler.enable()
    result = call(MANIFEST, LocalStore(folder / "store"), profile, log=log)
    profiler.disable()
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    stats = result.stats
    lines = stats["records"] + stats["rejected"]
    print(
        f"{lines:,} lines: {stats['records']:,} records, {stats['rejected']:,} rejects, "
        f"{stats['photographs']:,} photos in {stats['shards']} shards; {seconds:.1f} s "
        f"({lines / seconds:,.0f} records/s), {cpu:.1f} CPU s ({lines / cpu:,.0f} records/CPU s), "
        f"peak memory {peak_mb():.0f} MB",
        flush=True,
    )
    if profiled:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[257_730, 2_500_000])
    parser.add_argument("--photos", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="print the most expensive functions")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        measure(arguments.folder, arguments.photos > 0, arguments.profile)
        return
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with (folder / "sft.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(manifest_lines(records))
            if arguments.photos:
                with (folder / "list.csv").open("w", encoding="utf-8") as file:
                    file.writelines(list_lines(arguments.photos))
            command = [sys.executable, "-m", "bananagrams_tests.benchmarks.manifest_benchmark"]
            command += ["--folder", name, "--photos", str(arguments.photos)]
            command += ["--profile"] if arguments.profile else []
            environment = {**os.environ, "DAGSTER_HOME": str(folder / "home")}
            subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
