"""What importing the definitions costs over importing dagster: every run of a partition pays for it.

python -m bananagrams_tests.benchmarks.import_time [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(module: str) -> float:
    """Wall-clock seconds of a fresh interpreter that imports `module`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    modules = ("dagster", "bananagrams_assets.definitions")
    times: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(repeats):
        for module in modules:
            times[module].append(seconds(module))
    dagster, ours = (statistics.median(times[module]) for module in modules)
    print(f"dagster {dagster:.2f} s, definitions {ours:.2f} s: {ours - dagster:+.2f} s (median of {repeats})")


if __name__ == "__main__":
    main()
