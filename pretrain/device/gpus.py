"""Peak rates of known GPUs, by parts of their names; no torch."""

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
