"""Memory that a step frees is there for the next one."""

import resource
import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from genmodels.training.memory import keep_freed_memory

if {keep}:
    keep_freed_memory()
for round in range(24):
    if round == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_the_system_is_not_asked_again_for_what_was_freed():
    """In processes of their own, since it is the whole process that keeps its memory."""

    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", MEASURE.format(keep=keep)]
        return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    pages = 4 * 64 * 2**20 // resource.getpagesize()
    assert faults(keep=False) >= pages
    assert faults(keep=True) < pages / 100
