"""Properties of the device: number formats, peak matrix-product rate (the reference of MFU), and memory in use.

The bf16 peak of a known GPU is the vendor's dense figure (data sheets of NVIDIA and AMD, without sparsity). Every other
peak, such as a CPU's, is measured: the best of a few square matrix products, well under a second on two CPU cores. The
measured peak is what the library reaches, so MFU relative to it is higher than relative to a data sheet.
"""

import re
import resource
import sys
import time
from functools import cache

import torch

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
"""train.precision -> dtype of weights and activations."""

BF16_DENSE_TFLOPS = (
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("H100 PCIe", 756.5),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("A100", 311.9),
    ("A40", 149.7),
    ("A10", 125.0),
    ("L40S", 362.1),
    ("L4", 121.0),
    ("MI300X", 1307.4),
    ("MI250X", 191.5),
)
"""Part of the device's name -> dense bf16 TFLOP/s. The first match counts: "H100 PCIe" is before "H100"."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak matrix-product rate of one device in FLOP/s, with the threads of this process, for operands of `dtype`."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, tflops in BF16_DENSE_TFLOPS:
            if re.search(rf"\b{part}\b", name):
                return tflops * 1e12
    return _measured_flops(device, dtype)


@cache
def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    largest = 8192 if device.type == "cuda" else 2048  # large enough to fill the device, small enough for a CPU
    size, rate = 256, 0.0
    # grow while the next product takes under 0.2 s: formats that a CPU only emulates are a hundred times slower
    while (size < largest and 2 * (2 * size) ** 3 < 0.2 * rate) or not rate:
        size *= 2
        rate = _product_rate(size, device, dtype)
    return rate


def _product_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of two square matrices."""
    left = torch.randn(size, size, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    right, product = left.clone(), torch.empty_like(left)
    times = []
    for _ in range(6):  # the first pays for starting threads and choosing a kernel
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def precision_warning(device: torch.device, dtype: torch.dtype) -> str | None:
    """One line if this device can only emulate the precision, else None."""
    if device.type != "cpu" or dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return (
        "this CPU has no bf16 instructions, products in bf16 are many times slower: train.precision=fp32 is faster here"
    )


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, in GiB: allocated tensors on a GPU, resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_name(device: torch.device) -> str:
    """Name of the device of a rank, for logs."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu with {torch.get_num_threads()} threads a rank"
    )
