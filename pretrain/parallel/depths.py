"""All depths in one pass: batches go round the ring without a backward pass, as often as the deepest loop count asks
for, and are looked at on the way.

The states after loop l, through coda and final norm, are those of the model run with l loops. So all loop counts cost
the deepest one, plus a coda and a head each.

Stage p works on batch after batch of a loop, then on the next loop: it takes states from stage p-1 (stage 0 from the
last one) and sends what it makes onward. Messages of a pair of ranks arrive in the order in which they were sent, so
with as many batches as stages no stage waits except at the start and end. A few times as many go round together, not
all, so that the states that are kept do not grow with the number of batches; on one stage, one goes alone. The way from
the last stage back to the first has a process group of its own: with two stages it is the same pair of ranks, and NCCL
runs a group's messages in order, so the two directions could deadlock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels.documents import Documents
from pretrain.model.layers import Context, KeyValueCache
from pretrain.parallel.groups import Groups
from pretrain.plan.pipeline import TOGETHER


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences that are run together; fields as the arguments of `LoopedGPT.forward`."""

    tokens: Tensor
    """[b, s]."""
    positions: Tensor | None = None
    mask: Tensor | None = None
    documents: Documents | None = None
    cache: KeyValueCache | None = None
    """This stage's keys and values; serves one loop count."""


OnDepth = Callable[[int, int, Tensor], None]
"""(number of the batch, loop count, final states [t, d] as the last stage holds them)."""
OnLoop = Callable[[int, int, Tensor], None]
"""(number of the batch, passes done, the states [t, d] that they left, as the last stage holds them)."""


@dataclass(kw_only=True)
class _BatchState:
    """Where a batch stands on this stage."""

    batch: Batch
    context: Context
    states: Tensor | None = None
    """After the newest loop; where there are other stages they arrive by message instead."""
    carried: Tensor | None = None
    """From before the loop, on the first stage (`LoopedGPT.begin`)."""


class DepthRing:
    """Runs a stage of the model forward; `sequence_parallel` splits states over the tensor-parallel ranks between
    layers."""

    def __init__(self, model: LoopedGPT, groups: Groups, *, sequence_parallel: bool = False) -> None:
        self.model, self.pipeline, self.ends, self.phase = model, groups.pipeline, groups.ends, groups.phase
        self.split = groups.tensor.size() if sequence_parallel else 1

    @torch.no_grad()
    def run(
        self, batches: Sequence[Batch], loops: Sequence[int], on_depth: OnDepth, on_loop: OnLoop | None = None
    ) -> None:
        """Take batches through the deepest of `loops`; on the last stage, `on_depth` sees each at each loop count.
        Collective over stages.

        Args:
            batches: the same on every stage.
            loops: loop counts, in any order; just one if there are caches.
            on_depth: called for each batch in the order of loops, and for each loop count in the order of batches.
            on_loop: called there for every pass.
        """
        model, stage = self.model, self.model.stage
        assert len(loops) == 1 or all(batch.cache is None for batch in batches), "a cache serves one loop count"
        asked = {model.config.num_passes(num_loops): num_loops for num_loops in loops}
        size = TOGETHER * stage.count if stage.count > 1 else 1
        numbered = list(enumerate(batches))
        for start in range(0, len(numbered), size):
            self._run_together(numbered[start : start + size], asked, on_depth, on_loop)

    def _run_together(
        self, batches: Sequence[tuple[int, Batch]], asked: dict[int, int], on_depth: OnDepth, on_loop: OnLoop | None
    ) -> None:
        """Loop by loop, all batches in turn; `asked`: passes -> loop count."""
        model, stage = self.model, self.model.stage
        under_way = [(number, _BatchState(batch=batch, context=_context(model, batch))) for number, batch in batches]
        sent: list[dist.Work] = []
        for loop in range(max(asked)):
            for number, current in under_way:
                self.phase.tick(f", batch {number + 1}, loop {loop + 1}")
                states = self._arriving(current, loop)
                states = model.run_loop(model.enter(states, current.carried, loop), current.context, loop)
                if stage.count == 1:
                    current.states = states
                elif not stage.is_last or loop < max(asked) - 1:
                    sent.append(self._send(states))
                    if len(sent) > len(under_way):  # what came of that one has just arrived here
                        sent.pop(0).wait()
                if stage.is_last and on_loop is not None:
                    on_loop(number, loop + 1, states)
                if stage.is_last and loop + 1 in asked:
                    on_depth(number, asked[loop + 1], model.finish(states, current.context, loop + 1))
        for work in sent:
            work.wait()

    def _arriving(self, current: _BatchState, loop: int) -> Tensor:
        """The states [t, d] that come to this stage for a loop."""
        model, tokens = self.model, current.batch.tokens
        if loop == 0 and model.stage.is_first:
            states, current.carried = model.begin(tokens, current.context)
            return states
        if current.states is not None:
            return current.states
        weight = next(model.parameters())
        width = model.config.hidden_size * model.design.residual.num_streams
        shape = (tokens.numel() // self.split, width)
        states = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        if model.stage.is_first:
            dist.recv(states, group=self.ends, group_src=1)
        else:
            dist.recv(states, group=self.pipeline, group_src=model.stage.index - 1)
        return states

    def _send(self, states: Tensor) -> dist.Work:
        """Start sending to the next stage."""
        stage, states = self.model.stage, states.contiguous()
        if stage.is_last:
            work = dist.isend(states, group=self.ends, group_dst=0)
        else:
            work = dist.isend(states, group=self.pipeline, group_dst=stage.index + 1)
        assert work is not None, "this rank is of the group"
        return work


def _context(model: LoopedGPT, batch: Batch) -> Context:
    return model.context(
        batch.tokens, positions=batch.positions, mask=batch.mask, documents=batch.documents, cache=batch.cache
    )
