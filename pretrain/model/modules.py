"""The building blocks a model takes from outside, so that it is written once as single-device code.

`PLAIN` holds plain torch modules (tensor-parallel size 1); `pretrain/parallel/tensor.py` makes the same record from
megatron-core's column-, row- and vocab-parallel ones. The model calls `enter` where replicated states meet split
weights, and never asks on how many ranks it runs. The idea is Megatron's ModuleSpec; see also `pretrain/model/loss.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Modules:
    """Classes of layers and the few operations on states that tensor parallelism changes.

    States are [tokens, width] with tokens = batch · seq, row-major; under sequence parallelism each rank holds its run
    of rows.
    """

    size: int
    """Tensor-parallel ranks; a layer holds num_attention_heads / size heads."""
    column: Callable[[int, int, bool], nn.Module]
    """(inputs, outputs, bias) -> linear layer whose outputs are split over ranks; call `enter` on its input first."""
    row: Callable[[int, int, bool], nn.Module]
    """(inputs, outputs, bias) -> linear layer whose inputs are split over ranks; its output is whole again."""
    embedding: Callable[[int, int], nn.Module]
    """(rows, width) -> table of token embeddings, rows split over ranks."""
    enter: Callable[[Tensor], Tensor]
    """[tokens held, width] -> [tokens, width]: into the region where weights are split; its gradient is summed over
    ranks."""
    scatter: Callable[[Tensor], Tensor]
    """[tokens, width] -> [tokens held, width]: this rank's rows, under sequence parallelism."""
    gather_columns: Callable[[Tensor], Tensor]
    """[tokens, columns held] -> [tokens, columns]: the whole of an output that is split over ranks."""
    sum: Callable[[Tensor], Tensor]
    """Sum over tensor-parallel ranks; the gradient passes unchanged."""
    sum_shared: Callable[[Tensor], Tensor]
    """Sum over tensor-parallel ranks that each use the result for weights of their own, so that its gradient is summed
    too."""
    split_vector: Callable[[int], nn.Parameter]
    """(entries) -> one weight for each output of a column layer, split as they are."""
    token_losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    """None where the head is whole, and head and loss are done in one (`head_loss.py`). Otherwise
    (logits [tokens, vocabulary held], labels [tokens]) -> (negative log-likelihood, logsumexp), each [tokens], fp32 or
    wider."""


class Embedding(nn.Module):
    """A table of vectors, its rows looked up by token."""

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class Linear(nn.Linear):
    """`nn.Linear` that leaves its weights to `pretrain/model/initialise.py`."""

    def reset_parameters(self) -> None:
        pass


def _linear(inputs: int, outputs: int, bias: bool) -> nn.Module:
    return Linear(inputs, outputs, bias=bias)


def _vector(entries: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(entries))


def _identity(states: Tensor) -> Tensor:
    return states


PLAIN = Modules(
    size=1,
    column=_linear,
    row=_linear,
    embedding=Embedding,
    enter=_identity,
    scatter=_identity,
    gather_columns=_identity,
    sum=_identity,
    sum_shared=_identity,
    split_vector=_vector,
    token_losses=None,
)
