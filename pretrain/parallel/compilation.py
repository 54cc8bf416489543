"""Whether the layers of a run are compiled, where `train.compile` leaves it open: on GPUs.

Layers are compiled one by one (`LoopedGPT.compile_layers`), so a block is compiled once for all loops and loop counts,
in seconds; on a CPU it takes a C++ compiler and gains little (`tools/benchmarks/README.md`).
"""

from importlib.util import find_spec
from typing import NamedTuple

GENERATOR = "triton"
"""The package that torch.compile makes kernels of GPUs with; torch's builds for GPUs bring it along."""


class CompileChoice(NamedTuple):
    """Whether to compile, and what to say of it at the start; nothing of what is as ever."""

    is_on: bool
    text: str


def choose_compilation(wanted: bool | None, device_type: str, generator: str = GENERATOR) -> CompileChoice:
    """For `train.compile` on a device of torch's type "cuda" or "cpu"."""
    if wanted is not None:
        return CompileChoice(wanted, f"compile: {'yes' if wanted else 'no'}, train.compile={str(wanted).lower()}")
    if device_type != "cuda":
        return CompileChoice(False, "")
    if find_spec(generator) is None:
        return CompileChoice(False, f"compile: no, there is no {generator}: pip install {generator}")
    return CompileChoice(True, "compile: yes, on a GPU; the first step takes longer; train.compile=false does without")
