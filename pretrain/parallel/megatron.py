"""The parts of megatron-core that we use; nothing else imports it.

megatron-core imports Weights & Biases for its inference engine, and has torch.compile, which loads the compiler,
decorate its fused functions as they are defined. None of these is used here, and both together are more than half of
the time until a run can start: they are left out.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Callable[..., Any]:
    """In place of torch.compile, as a decorator with and without arguments."""
    return _as_it_is if function is None else function


@contextmanager
def _without_extras() -> Iterator[None]:
    """While open, wandb counts as not installed and torch.compile compiles nothing."""
    compiler, is_loaded = torch.compile, "wandb" in sys.modules
    torch.compile = _as_it_is  # type: ignore[assignment]
    if not is_loaded:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler
        if not is_loaded:
            del sys.modules["wandb"]


with _without_extras():
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        gather_from_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
        scatter_to_sequence_parallel_region,
    )
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.enums import ModelType

__all__ = [
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "ModelType",
    "OptimizerConfig",
    "P2PCommunicator",
    "ProcessGroupCollection",
    "RowParallelLinear",
    "TransformerConfig",
    "VocabParallelEmbedding",
    "copy_to_tensor_model_parallel_region",
    "gather_from_sequence_parallel_region",
    "gather_from_tensor_model_parallel_region",
    "get_forward_backward_func",
    "reduce_from_tensor_model_parallel_region",
    "scatter_to_sequence_parallel_region",
]
