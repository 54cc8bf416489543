"""Initial weights: one place, a function of (seed, name of the tensor) alone.

Every logical tensor is drawn whole from a generator of its own and then cut to the part this rank holds, so the weights
do not depend on tensor, pipeline or data parallelism. Matrices are normal with `init_std`; projections into the
residual stream (attention output, ffn down) are scaled by 1/sqrt(2·D), D the effective depth, because D layers add two
terms each to the stream (Radford et al. 2019, section 2.3, with applications counted instead of layers). Norm weights
are 1, biases 0.
"""

import hashlib
import math

import torch

from pretrain.model.gpt import LoopedGPT


@torch.no_grad()
def initialise(model: LoopedGPT, seed: int, rank: int = 0) -> None:
    """Fill all parameters of a model, or of its part, in place.

    Args:
        model: the model; parameters with a `partition_dim` hold one of `modules.size` equal slices along it.
        seed: `run.seed`.
        rank: tensor-parallel rank.
    """
    config, size = model.config, model.modules_used.size
    residual_std = config.init_std / math.sqrt(2 * config.effective_depth())
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            is_residual = name.endswith(("attention.output.weight", "ffn.down.weight"))
            dim = partition_dim(parameter)
            shape = list(parameter.shape)
            if dim is not None:
                shape[dim] *= size
            # equal on different pipeline stages
            drawn_as = "embedding.weight" if config.tied_head and name == "head.weight" else name
            whole = draw(shape, seed, drawn_as) * (residual_std if is_residual else config.init_std)
            parameter.copy_(whole if dim is None else whole.chunk(size, dim)[rank])


def draw(shape: list[int], seed: int, name: str) -> torch.Tensor:
    """Standard normal fp32 tensor, on the CPU, that depends on (seed, name) alone."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


def partition_dim(parameter: torch.nn.Parameter) -> int | None:
    """The dimension along which tensor parallelism splits a parameter, or None if every rank holds it whole."""
    return parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None  # type: ignore[attr-defined]
