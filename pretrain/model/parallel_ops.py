"""The building blocks a model takes from outside, so that it is written once as single-device code.

`PLAIN` holds plain torch modules (tensor-parallel size 1); `pretrain/parallel/tensor.py` makes the same record from
megatron-core's column-, row- and vocab-parallel ones. The model calls `to_split` where replicated states meet split
weights, and never asks on how many ranks it runs. The idea is Megatron's ModuleSpec; see also `pretrain/model/loss.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.weight_kinds import Weight, Weights


@dataclass(frozen=True, kw_only=True)
class ParallelOps:
    """The layers and the few operations on states that tensor parallelism changes. States are [tokens, width] with
    tokens = batch · seq, row-major; under sequence parallelism each rank holds its run of rows."""

    size: int
    """Tensor-parallel ranks; a layer holds num_attention_heads / size heads."""
    rank: int
    """Of this part among them, from 0."""
    linear: Callable[[Weights], nn.Module]
    """Linear layer of its weights. Split by outputs: call `to_split` on its input first. By inputs: its output is whole
    again."""
    embedding: Callable[[Weights, float], nn.Module]
    """Table of embeddings of its weights, whole or its rows split over ranks, and what each is multiplied by."""
    parameter: Callable[[Weight], nn.Parameter]
    """The part of one weight that this rank holds, without values."""
    to_split: Callable[[Tensor], Tensor]
    """[tokens held, width] -> [tokens, width]: into the region where weights are split; its gradient is summed over
    ranks."""
    scatter: Callable[[Tensor], Tensor]
    """[tokens, width] -> [tokens held, width]: this rank's rows, under sequence parallelism."""
    gather_columns: Callable[[Tensor], Tensor]
    """[tokens, columns held] -> [tokens, columns]: the whole of an output that is split over ranks."""
    all_reduce: Callable[[Tensor], Tensor]
    """Sum over tensor-parallel ranks; the gradient passes unchanged."""
    all_reduce_shared: Callable[[Tensor], Tensor]
    """Sum over tensor-parallel ranks that each use the result for weights of their own, so that its gradient is summed
    too."""
    token_losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """None where the head is whole, and head and loss are done in one (`head_loss.py`). Otherwise
    (logits [tokens, vocabulary held], labels [tokens]) -> (negative log-likelihood, logsumexp), each [tokens], fp32 or
    wider."""


class Embedding(nn.Module):
    """A table of vectors, its rows looked up by token, times `scale`."""

    def __init__(self, weights: Weights, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = _parameter(weights["weight"]), scale

    def forward(self, tokens: Tensor) -> Tensor:
        return scaled(F.embedding(tokens, self.weight), self.scale)


def scaled(embeddings: Tensor, scale: float) -> Tensor:
    return embeddings if scale == 1 else scale * embeddings


class Linear(nn.Linear):
    """`nn.Linear` that leaves its weights to `pretrain/model/initialise.py`."""

    packed: Tensor | None = None
    """A copy of the weights in the order in which a kernel reads them, while there is one
    (`pretrain/generation/packing.py`)."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        if self.packed is None:
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def _linear(weights: Weights) -> nn.Module:
    outputs, inputs = weights["weight"].shape
    return Linear(inputs, outputs, bias="bias" in weights)


def _parameter(weight: Weight) -> nn.Parameter:
    return nn.Parameter(torch.empty(weight.shape))


def _identity(states: Tensor) -> Tensor:
    return states


PLAIN = ParallelOps(
    size=1,
    rank=0,
    linear=_linear,
    embedding=Embedding,
    parameter=_parameter,
    to_split=_identity,
    scatter=_identity,
    gather_columns=_identity,
    all_reduce=_identity,
    all_reduce_shared=_identity,
    token_losses=None,
)
