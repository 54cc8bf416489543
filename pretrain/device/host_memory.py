"""Memory of the machine: how much there is, and how to keep freed memory in the process on a CPU, as otherwise page
faults take much of a training step.

glibc maps every block above a threshold (at most 32 MiB) from the kernel and unmaps it when it is freed, so in every
step the pages of each activation and gradient are mapped and zeroed again. Blocks of the heap reuse the same pages. The
cost: the process keeps its peak memory until it ends. Source: mallopt(3).
"""

import ctypes
import platform
import re
from pathlib import Path

# Parameters of mallopt, from glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def installed_memory() -> int | None:
    """Bytes of memory and swap of this machine; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.findall(r"^(?:MemTotal|SwapTotal): +(\d+) kB$", text, flags=re.MULTILINE)
    return 1024 * sum(map(int, found)) if found else None


def keep_freed_memory() -> bool:
    """Serve all later allocations of this process from a heap that never shrinks; False if libc is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
