"""Lets megatron-core run on a machine without a GPU.

megatron-core 0.16.1 names CUDA in a handful of places: the current device, factory calls with `device="cuda"`,
`synchronize`, and a test of `parameter.type()` against CUDA type names. Where there is no GPU, the modules listed here
see a stand-in under the name `torch` that answers those with the CPU and passes everything else on to torch. Nothing
outside these modules is touched, so the model itself pays nothing.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_MODULES = (
    "pipeline_parallel.schedules",
    "pipeline_parallel.p2p_communication",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "distributed.distributed_data_parallel",
    "distributed.param_and_grad_buffer",
    "optimizer.optimizer",
    "optimizer.distrib_optimizer",
    "optimizer.clip_grads",
)
_FACTORIES = ("empty", "zeros", "ones", "tensor", "full")


class _StandIn:
    """Answers with `replaced`, and with what `original` has for every other name."""

    def __init__(self, original: Any, replaced: dict[str, Any]) -> None:
        self._original = original
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _on_cpu(factory: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def use_cpu() -> None:
    """Put the stand-in into megatron-core's modules; does nothing where there is a GPU."""
    if torch.cuda.is_available():
        return
    # work on a CPU is done when the call returns, so there is nothing to synchronize
    cuda = {"current_device": lambda: torch.device("cpu"), "synchronize": lambda *_: None}
    factories = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    stand_in = _StandIn(torch, {"cuda": _StandIn(torch.cuda, cuda), **factories})
    for name in _MODULES:
        importlib.import_module(f"megatron.core.{name}").torch = stand_in  # type: ignore[attr-defined]


@contextmanager
def cuda_type_names() -> Iterator[None]:
    """While open and without a GPU, `tensor.type()` names the CUDA type, which the distributed optimizer's constructor
    tests."""
    original = torch.Tensor.type

    def named(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(tensor, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.") if isinstance(result, str) else result

    if torch.cuda.is_available():
        yield
        return
    torch.Tensor.type = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]
