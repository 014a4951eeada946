"""What a training process does with its memory."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from bananagrams_assets.learn.distributed import keep_freed_memory

keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(24 * 2**20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_memory_that_was_freed_is_used_again_without_asking_the_system() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100  # of 6,144 pages
