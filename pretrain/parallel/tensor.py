"""Tensor-parallel building blocks from megatron-core: the other side of `pretrain/model/parallel_ops.py`.

Where replicated states meet split weights the model calls `to_split` once (not once for each of query, key and value),
so a layer costs two all-reduces forward and two backward, or as many all-gathers and reduce-scatters under sequence
parallelism (Shoeybi et al. 2019, arXiv 1909.08053; Korthikanti et al. 2022, arXiv 2205.05198).
"""

import dataclasses
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from pretrain.model.parallel_ops import PLAIN, ParallelOps, scaled
from pretrain.model.weight_kinds import Weight, Weights
from pretrain.parallel.megatron import (
    ColumnParallelLinear,
    RowParallelLinear,
    TransformerConfig,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)


class _Column(ColumnParallelLinear):
    """Outputs split over ranks; `to_split` has already made the input whole and owns the reduction of its gradient."""

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(states)[0]


class _Row(RowParallelLinear):
    """Inputs split over ranks; the output is summed (and under sequence parallelism scattered).

    Its product is torch's, which saves what it needs before it begins, so that what is computed again ends there;
    megatron-core's own saves it afterwards. The two give the same numbers.
    """

    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self._forward_impl = _product

    def forward(self, states: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(states)[0]


class _Table(VocabParallelEmbedding):
    """Rows split over ranks; what is looked up is summed."""

    scale = 1.0

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return scaled(super().forward(tokens), self.scale)


def tensor_parallel_ops(config: TransformerConfig, group: ProcessGroup) -> ParallelOps:
    """Building blocks for a tensor-parallel group; plain torch modules if it has one rank. The configuration's
    `sequence_parallel` decides how states lie between the split regions."""
    if group.size() == 1:
        return PLAIN
    local = dataclasses.replace(config, sequence_parallel=False)
    sequence = config.sequence_parallel

    def linear(weights: Weights) -> nn.Module:
        outputs, inputs = weights["weight"].shape
        shared = {"init_method": _no_init, "bias": "bias" in weights, "tp_group": group}
        if weights["weight"].split == 0:
            return _Column(inputs, outputs, config=local, disable_grad_reduce=True, **shared)
        if weights["weight"].split == 1:
            return _Row(inputs, outputs, config=config, input_is_parallel=True, skip_bias_add=False, **shared)
        return PLAIN.linear(weights)

    def embedding(weights: Weights, scale: float) -> nn.Module:
        if weights["weight"].split is None:
            return PLAIN.embedding(weights, scale)
        table = _Table(*weights["weight"].shape, config=config, init_method=_no_init, tp_group=group)
        table.scale = scale
        return table

    def parameter(weight: Weight) -> nn.Parameter:
        return nn.Parameter(torch.empty(weight.held_shape(group.size())))

    all_reduce = partial(reduce_from_tensor_model_parallel_region, group=group)
    copy = partial(copy_to_tensor_model_parallel_region, group=group)
    return ParallelOps(
        size=group.size(),
        rank=group.rank(),
        linear=linear,
        embedding=embedding,
        parameter=parameter,
        to_split=partial(gather_from_sequence_parallel_region, group=group) if sequence else copy,
        scatter=partial(scatter_to_sequence_parallel_region, group=group) if sequence else PLAIN.scatter,
        gather_columns=partial(gather_from_tensor_model_parallel_region, group=group),
        all_reduce=all_reduce,
        all_reduce_shared=lambda values: copy(all_reduce(values)),
        token_losses=partial(_token_losses, group=group),
    )


def _product(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: A002  megatron-core's name
    return F.linear(input, weight)


def _no_init(weight: Tensor) -> None:
    """Weights are filled by `pretrain/model/initialise.py`."""


def _token_losses(logits: Tensor, labels: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and logsumexp [tokens] of logits [tokens, vocabulary / ranks]; a label of -100 gives 0
    loss."""
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    largest = wide.detach().amax(dim=-1)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    sums = reduce_from_tensor_model_parallel_region((wide - largest.unsqueeze(-1)).exp().sum(dim=-1), group=group)
    normaliser = sums.log() + largest
    first = group.rank() * wide.shape[-1]
    local = labels - first
    held = (local >= 0) & (local < wide.shape[-1])
    picked = wide.gather(-1, local.clamp(0, wide.shape[-1] - 1).unsqueeze(-1)).squeeze(-1).masked_fill(~held, 0.0)
    target = reduce_from_tensor_model_parallel_region(picked, group=group)
    return (normaliser - target).masked_fill(labels < 0, 0.0), normaliser
