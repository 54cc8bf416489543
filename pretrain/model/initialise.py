"""Initial weights: one place, a function of (seed, name of the tensor) alone.

Every logical tensor is drawn whole from a generator of its own and then cut to the part this rank holds, so the weights
do not depend on tensor, pipeline or data parallelism. How, each weight's description says (`weights.py`): projections
into the residual stream ("residual") are scaled by 1/sqrt(2·D), D the effective depth, because D layers add two terms
each to the stream (Radford et al. 2019, section 2.3, with applications counted instead of layers).
"""

import math
from collections.abc import Sequence

import torch

from pretrain.keyed_hash import bits
from pretrain.model.gpt import LoopedGPT


@torch.no_grad()
def initialise(model: LoopedGPT, seed: int, rank: int = 0) -> None:
    """Fill all parameters of a model, or of the part that tensor-parallel rank `rank` holds, in place."""
    config, size = model.config, model.ops.size
    stds = {"normal": config.init_std, "residual": config.init_std / math.sqrt(2 * config.effective_depth())}
    for name, parameter in model.named_parameters():
        weight = model.weights[name]
        if weight.constant is not None:
            parameter.fill_(weight.constant)
        else:
            whole = draw(weight.shape, seed, model.stored_name(name)) * weight.std_of(stds)
            parameter.copy_(whole if weight.split is None else whole.chunk(size, weight.split)[rank])


def draw(shape: Sequence[int], seed: int, name: str) -> torch.Tensor:
    """Standard normal fp32 tensor, on the CPU, that depends on (seed, name) alone."""
    key = bits(f"{seed}/{name}", "little") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))
