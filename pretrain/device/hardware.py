"""Properties of the device: number formats, peak matrix-product rate (the reference of MFU), and memory in use.

The bf16 peak of a known GPU is the vendor's dense figure (data sheets of NVIDIA and AMD, without sparsity). That of a
CPU is measured: the best of square matrix products, repeated until the rate is stable, as the first ones of a process
are slow; well under a second on two idle cores. It is what the library reaches, so MFU relative to it is higher than
relative to a data sheet.
"""

import math
import re
import resource
import sys
import time
from functools import cache

import torch

from pretrain.device.gpus import BF16_DENSE_TFLOPS
from pretrain.device.host_memory import installed_memory

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
"""train.precision -> dtype of weights and activations."""

LEAST_SIZE, LARGEST_SIZE = 512, 2048
"""Rows of the matrices of a measurement."""
MEASURE_S = 1.0
"""Longest measurement, but for the last product."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak matrix-product rate of one device in FLOP/s, with the threads of this process, for operands of `dtype`; None
    for a GPU that is not in the table: a measured rate beside data sheets would be another measure of the same name."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = (tflops * 1e12 for part, tflops in BF16_DENSE_TFLOPS if re.search(rf"\b{part}\b", name))
        return next(known, None) if dtype == torch.bfloat16 else None
    return _measured_once(device, dtype)


@cache
def _measured_once(device: torch.device, dtype: torch.dtype) -> float:
    return measure_flops(device, dtype)


def measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What matrix products of this process reach now, in FLOP/s: less than the peak while others use the device."""
    size, best, deadline = LEAST_SIZE, 0.0, time.perf_counter() + MEASURE_S
    while True:
        best = max(best, _stable_rate(size, device, dtype, deadline))
        size *= 2
        # formats that a CPU only emulates are a hundred times slower: no product that takes long
        if size > LARGEST_SIZE or 2 * size**3 > 0.1 * best or time.perf_counter() > deadline:
            return best


def _stable_rate(size: int, device: torch.device, dtype: torch.dtype, deadline: float) -> float:
    """FLOP/s of the fastest product of two square matrices, tried until five in a row do not beat it by 2 %."""
    left = torch.randn(size, size, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    right, product = left.clone(), torch.empty_like(left)
    best, unbeaten = math.inf, 0
    while unbeaten < 5 and (best == math.inf or time.perf_counter() < deadline):
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        seconds = time.perf_counter() - start
        unbeaten = unbeaten + 1 if seconds > 0.98 * best else 0
        best = min(best, seconds)
    return 2 * size**3 / best


def precision_warning(device: torch.device, dtype: torch.dtype) -> str | None:
    """One line if this device can only emulate the precision, else None."""
    if device.type != "cpu" or dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this CPU has no bf16 instructions and emulates them many times slower: train.precision=fp32 is faster here"


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: allocated tensors on a GPU, resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_memory(device: torch.device) -> tuple[int | None, str]:
    """Bytes of memory of a device, None if unknown, and what has them, for people: the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    return installed_memory(), "this machine"


def device_name(device: torch.device) -> str:
    """Name of the device of a rank, for logs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu with {torch.get_num_threads()} threads a rank"
