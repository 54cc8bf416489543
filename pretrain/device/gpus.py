"""Peak rates of known GPUs, by parts of their names, and the memory of those that are here; no torch."""

import subprocess

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
"""Part of the device's name -> dense bf16 TFLOP/s, by data sheets. The first match counts: "H100 PCIe" is before
"H100"."""


def gpu_bytes() -> list[int]:
    """Memory of each GPU of this machine, as NVIDIA's driver tells it; none without one."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) << 20 for line in said.split() if line.isdecimal()]
