"""Keep freed memory in the process, on a CPU: without this, much of a training step goes into page faults.

glibc takes every block above a threshold (at most 32 MiB) straight from the kernel and gives it back when it is freed,
so that each activation and gradient is zeroed and mapped page by page again in every step. Served from the heap
instead, the same pages are used again. The price: the process keeps its peak memory until it ends. Source: mallopt(3).
"""

import ctypes
import platform

# Parameters of mallopt, from glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Serve all later allocations of this process from a heap that never shrinks. Returns whether the C library could:
    glibc alone can."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
