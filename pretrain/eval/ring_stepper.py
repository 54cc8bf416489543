"""Generation with a model that is spread over pipeline stages, or over tensor-parallel ranks that split tokens: every
step takes all rows round the ring with all their loops. All ranks of a replica take the same steps with the same rows.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.generation.slots import SlotCache
from pretrain.generation.stepper import Lane
from pretrain.parallel.depths import Batch, DepthRing
from pretrain.parallel.groups import Groups


class RingStepper:
    """A `Stepper` of one loop count, without rules or thoughts.

    Args:
        depths: runs this rank's stage.
        groups: process groups.
        multiple: ranks that the tokens of a batch are split over.
        num_slots: sequences at most.
        capacity: positions of a sequence at most.
        num_loops: L. Default: model.num_loops.
    """

    def __init__(
        self, depths: DepthRing, groups: Groups, multiple: int, num_slots: int, capacity: int, num_loops: int | None
    ) -> None:
        self._depths, self._groups, self._multiple, self._model = depths, groups, multiple, depths.model
        config = self._model.config
        self._num_loops = num_loops or config.num_loops
        self._cache = SlotCache(config, num_slots=num_slots, capacity=capacity, num_loops=num_loops)
        self._device = next(self._model.parameters()).device
        self._lanes: dict[int, Lane] = {}

    def fill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], num_loops: int | None) -> None:
        self._run(slots, prompts, [0] * len(slots), lambda _: None)

    def enter(self, lane: Lane) -> None:
        assert lane.rule is None and lane.thought is None, "all rows run all loops, over tokens"
        self._lanes[lane.slot] = lane

    def leave(self, slot: int) -> None:
        self._lanes.pop(slot, None)

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)
        self._lanes[target] = self._lanes.pop(source)
        self._lanes[target].slot = target

    def advance(self) -> tuple[list[Lane], Tensor]:
        """The logits, found on the last stage and sent to all: all choose the same next tokens."""
        model, lanes = self._model, [self._lanes[slot] for slot in sorted(self._lanes)]
        self._lanes = {}
        weight = next(model.parameters())
        logits = torch.empty(len(lanes), model.config.vocab_size, dtype=weight.dtype, device=weight.device)

        def visit(states: Tensor) -> None:
            assert model.head is not None, "the last stage has the head"
            entered = model.ops.to_split(states)[: len(lanes)]
            logits.copy_(model.ops.gather_columns(model.head(entered)))

        positions = [lane.position for lane in lanes]
        self._run([lane.slot for lane in lanes], [[lane.token] for lane in lanes], positions, visit)
        dist.broadcast(logits, group=self._groups.pipeline, group_src=model.stage.count - 1)
        for lane in lanes:
            lane.loop = model.config.num_passes(self._num_loops)
        return lanes, logits

    def logits(self, lanes: Sequence[Lane], states: Tensor) -> Tensor:
        return states

    def _run(
        self,
        slots: Sequence[int],
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        visit: Callable[[Tensor], None],
    ) -> None:
        """Take rows round the ring; tokens are split over ranks, so the last row is repeated as padding."""
        missing = -len(rows) % self._multiple
        slots, starts = [*slots, *[slots[-1]] * missing], [*starts, *[starts[-1]] * missing]
        rows = [*rows, *[rows[-1]] * missing]
        lengths = [len(row) for row in rows]
        padded = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
        tokens = torch.tensor(padded, device=self._device)
        self._cache.place(slots, starts, lengths, device=self._device)
        begin = torch.tensor(starts, device=self._device)[:, None]
        positions = begin + torch.arange(max(lengths), device=self._device)
        batch = Batch(tokens=tokens, positions=positions, cache=self._cache)
        self._depths.run([batch], (self._num_loops,), lambda _, __, states: visit(states))
