"""Gradient buffers whose sums over the data-parallel ranks begin while the backward pass still runs.

Megatron's DistributedDataParallel keeps gradients in buckets and can send a bucket as soon as each of its weights had
as many backward passes as in the first step. A looped weight has L of them for each micro-batch, and L may change from
step to step. So here the ring says when the last backward pass of a weight begins, and a bucket is sent when all its
weights are through theirs:

- head, final norm and coda: the last micro-batch's loss;
- the loop, and a final norm that ends its passes (`model.loop.final_norm`): the last micro-batch's first loop that has
  gradients (`train.backprop_loops`);
- embedding and prelude: the last micro-batch's first loop.

So the loop has one backward pass of one loop to hide behind, not L, and each gradient is sent once whatever L is.
Buckets are sent in one order, the same on every rank, however soon one of them is ready, in fp32 or in bf16
(`narrow_sum.py`). What has to be added up over other ranks first, or gets a gradient after the micro-batches, is
`late`: in the last buckets, sent at the end.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pretrain.model.gpt import LoopedGPT
from pretrain.model.weight_kinds import PartialUnder
from pretrain.parallel.groups import Groups
from pretrain.parallel.megatron import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    ProcessGroupCollection,
    TransformerConfig,
)
from pretrain.parallel.narrow_sum import NarrowSum
from pretrain.parallel.weights_back import WeightsBack
from pretrain.plan.buckets import bucket_elements

Part = Literal["start", "loop", "end"]
"""Of a stage: embedding and prelude; the loop and its design; coda, final norm and head."""
_PART_OF_MODULE = {
    **dict.fromkeys(("embedding", "position_embedding", "prelude"), "start"),
    **dict.fromkeys(("coda", "final_norm", "head"), "end"),
    "exit": "exit",
}


class GradientBuffers(DistributedDataParallel):
    """The gradients of a stage, summed over micro-batches and loops, and over the data-parallel ranks.

    Args:
        config: megatron-core's view of the model.
        settings: how gradients are kept; with `overlap_grad_reduce` they are sent as they are ready.
        model: the stage.
        groups: the process groups of this rank.
        is_narrow: gradients are sent in bf16; only where the optimizer is sharded.
    """

    def __init__(
        self,
        config: TransformerConfig,
        settings: DistributedDataParallelConfig,
        model: LoopedGPT,
        groups: Groups,
        *,
        is_narrow: bool = False,
    ) -> None:
        collection = ProcessGroupCollection(
            tp=groups.tensor, pp=groups.pipeline, dp=groups.data, dp_cp=groups.data, intra_dp_cp=groups.data,
            expt_dp=groups.alone, intra_expt_dp=groups.alone, ep=groups.alone, intra_dist_opt=groups.data,
        )  # fmt: skip
        late = _late(model, config, groups) if settings.overlap_grad_reduce else set()
        settings.bucket_size = bucket_elements(groups.data.size())
        super().__init__(config, settings, _InOrder(model, late), pg_collection=collection)
        self._parts: dict[str, set[nn.Parameter]] = {part: set() for part in ("start", "loop", "end", "exit")}
        in_loop = ("final_norm",) if model.design.final_norm.ends_passes else ()
        for name, parameter in model.named_parameters():
            module = name.partition(".")[0]
            if name not in late:
                self._parts["loop" if module in in_loop else _PART_OF_MODULE.get(module, "loop")].add(parameter)
        self._awaited: set[nn.Parameter] = set()
        self._missing: list[set[nn.Parameter]] = []
        self._num_sent = 0
        assert not is_narrow or settings.use_distributed_optimizer, "each rank would need all sums"
        self._data, self._is_narrow = groups.data, is_narrow
        self._narrow: list[NarrowSum] = []
        """Of the buckets that are on their way in bf16, in their order."""
        self._weights_back: WeightsBack | None = None
        if settings.overlap_grad_reduce and settings.use_distributed_optimizer:
            buckets = [bucket for group in self.bucket_groups for bucket in group.buckets]
            self._weights_back = WeightsBack(
                [(cast(Tensor, bucket.param_data), bucket.params_list) for bucket in reversed(buckets)], groups.data
            )
            model.await_weights = self._weights_back.wait

    def zero_grad_buffer(self) -> None:
        """Start a step."""
        super().zero_grad_buffer()
        self._awaited, self._num_sent = set(), 0
        self._missing = [set(group.params) for group in self.bucket_groups]

    def start_param_sync(self, *_: Any, **settings: Any) -> None:
        """Gather the weights from the ranks that updated them: while the next step begins, where that is wanted, else
        now. Collective."""
        if self._weights_back is None:
            super().start_param_sync(**settings)
        else:
            self._weights_back.send()

    def await_weights(self) -> None:
        """Until all weights are there."""
        if self._weights_back is not None:
            self._weights_back.wait()

    def expect_last(self, *parts: Part) -> None:
        """The next gradient of each weight of these parts is its last of this step."""
        for part in parts:
            self._awaited |= self._parts[part]
        if "end" in parts:  # the gate learns before the last loss is differentiated
            for parameter in self._parts["exit"]:
                self._missing[self._number_of(parameter)].discard(parameter)
        self._send_ready()

    def finish(self) -> None:
        """Send what is not sent yet, and wait for all. Collective."""
        first, self._num_sent = self._num_sent, len(self.bucket_groups)
        if self._is_narrow:
            for group in self.bucket_groups[first:]:
                self._send(group)
            while self._narrow:
                self._narrow.pop(0).finish()
            return
        if self.ddp_config.overlap_grad_reduce:
            self.start_grad_sync()  # of buckets that are on their way it does nothing
        self.finish_grad_sync()

    def _number_of(self, parameter: nn.Parameter) -> int:
        return self.bucket_groups.index(self.param_to_bucket_group[parameter])

    def _send_ready(self) -> None:
        while self._num_sent < len(self._missing) and not self._missing[self._num_sent]:
            self._send(self.bucket_groups[self._num_sent])
            self._num_sent += 1

    def _send(self, group: Any) -> None:
        if not self._is_narrow:
            group.start_grad_sync()
            return
        for bucket in group.buckets:
            overlaps = self.ddp_config.overlap_grad_reduce
            self._narrow.append(NarrowSum(bucket.grad_data, self._data, is_awaited=not overlaps))
            if not overlaps:
                self._narrow.pop().finish()

    def _make_backward_post_hook(self, param: nn.Parameter) -> Callable[..., None]:
        """Called by autograd when a backward pass is through with a parameter."""

        def collect(*_: Any) -> None:
            if param.grad is not None:
                param.main_grad.add_(param.grad)  # type: ignore[attr-defined]
                param.grad = None
            if self._num_sent:
                assert self._number_of(param) >= self._num_sent, "a gradient came after its bucket was sent"
            if param in self._awaited:
                self._awaited.discard(param)
                self._missing[self._number_of(param)].discard(param)
                self._send_ready()

        return collect


class LastUses:
    """Tells the buffers in the backward passes of the last micro-batch how far these are.

    Args:
        buffers: of the gradients; None where nothing is sent before the end.
        num_micro_batches: of the step.
    """

    def __init__(self, buffers: GradientBuffers | None, num_micro_batches: int) -> None:
        self._buffers, self._last = buffers, num_micro_batches - 1

    def follow(self, states: Tensor, micro_batch: int, *parts: Part) -> Tensor:
        """The same states; what remains of the backward passes behind them is the last that these parts see."""
        if self._buffers is None or micro_batch != self._last or not parts:
            return states
        return _Notice.apply(states, partial(self._buffers.expect_last, *parts))  # type: ignore[no-any-return]


class _Notice(torch.autograd.Function):
    """Identity; `call` is called when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.call()
        return gradients[0], None


class _InOrder(nn.Module):
    """The parameters of a model in the order in which buffers are laid out, from the last to the first: `late` ones
    come first, so that they are in the last buckets; where the optimizer is sharded, in buckets of their own."""

    def __init__(self, model: LoopedGPT, late: Collection[str]) -> None:
        super().__init__()
        named = list(model.named_parameters())
        behind = [pair for pair in named if pair[0] in late]
        self._named = [*behind, *(pair for pair in named if pair[0] not in late)]
        if behind:
            behind[-1][1].shared_embedding = True  # type: ignore[attr-defined]  # what begins a bucket in megatron-core

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._named


def _late(model: LoopedGPT, config: TransformerConfig, groups: Groups) -> set[str]:
    """Names of the parameters of a stage whose gradients are not complete after the micro-batches: partial ones, those
    of a head that is tied over stages, and those of the loop regulariser."""
    named = {name for name, _ in model.named_parameters()}
    late: set[str] = set()
    if groups.tensor.size() > 1:
        late |= {name for name in named if model.weights[name].partial_under in partial_causes(config)}
    if groups.ends is not None:
        late |= named & {name for pair in model.aliases.items() for name in pair}
    if model.config.loop_regulariser.weight:
        late |= {name for name in named if name.startswith("loop.")}
    return late


def partial_causes(config: TransformerConfig) -> set[PartialUnder]:
    """Values of `Weight.partial_under` for which a gradient is a part of the sum over the tensor-parallel ranks."""
    return {"tensor", "sequence"} if config.sequence_parallel else {"tensor"}
