"""Freed memory stays: counted in page faults, in a process of its own because the setting is for good."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, torch
from pretrain.device.host_memory import keep_freed_memory

def faults_per_round(mib, rounds=20):
    for _ in range(rounds):  # the first blocks differ: small pieces of the heap find their places
        torch.ones(mib << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(mib << 18)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

torch.set_num_threads(1)
before = faults_per_round(64)
assert keep_freed_memory()
print(before, faults_per_round(64))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told")
def test_memory_is_mapped_once() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = map(float, child.stdout.split())
    assert before >= 32  # 16384 pages of 4 KiB, or 32 huge ones
    assert after < before / 10
