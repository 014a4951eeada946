"""Memory reuse of a training process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from bananagrams_assets.learn.distributed import retain_freed_memory

retain_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(24 * 2**20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc options are set for glibc only")
def test_freed_memory_is_reused_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 6,144 pages
