"""Time to import and build the definitions beyond that of importing dagster, which every run incurs.

python -m bananagrams_tests.benchmarks.import_time [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

PROGRAMS = {
    "dagster": "import dagster",
    "definitions": "import bananagrams_assets.definitions as module; module.defs()",
}


def seconds(program: str) -> float:
    """Return the wall-clock seconds of a new interpreter that runs `program`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, program in PROGRAMS.items():
            times[name].append(seconds(program))
    dagster, ours = (statistics.median(times[name]) for name in PROGRAMS)
    print(f"dagster {dagster:.2f} s, definitions {ours:.2f} s: {ours - dagster:+.2f} s (median of {repeats})")


if __name__ == "__main__":
    main()
