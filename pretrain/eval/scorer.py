"""Likelihoods and continuations by all ranks of a world, asked for by rank 0.

Rank 0 calls `likelihoods`, `continuations` and finally `close`; every other rank is in `serve` meanwhile. A request is
sent to all ranks; the data-parallel replicas divide its sequences, longest first, each over its tensor and pipeline
ranks; the results return to rank 0. So the caller (the evaluation harness) sees one model and no ranks.

With a `vote`, the ranks vote before each batch on whether to stop; `Stopped` is then raised on all of them at once, out
of the request on rank 0 and out of `serve` on the others, and no rank is left waiting.

Sequences of a batch are padded on the right for likelihoods: attention is causal, so no token sees padding, and the
batch changes no value. All loop counts come from one pass (`pretrain/parallel/depths.py`). The head is applied to
tokens that are scored and to no others.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.eval.ring_stepper import RingStepper
from pretrain.generation.generate import MakeStepper, generate
from pretrain.generation.sampling import Generation
from pretrain.model.gpt import LoopedGPT
from pretrain.parallel.depths import Batch, DepthRing
from pretrain.parallel.groups import Groups
from pretrain.parallel.stop_vote import StopVote

HEAD_ROWS = 1024
"""Tokens whose logits exist at a time."""
CONTINUED_TOGETHER = 16
"""Batches of continuations of which a row begins as soon as another has ended, where no vote waits for them."""
Pair = tuple[Sequence[int], Sequence[int]]
"""(context, continuation), token ids, each at least one."""


class Likelihood(NamedTuple):
    """Of a continuation given its context, at one loop count."""

    log_probability: float
    """In nats, summed over the continuation."""
    is_greedy: bool
    """Whether every token of it is the likeliest one."""


class Stopped(Exception):  # noqa: N818
    """The ranks voted to stop, and all of them have left the request; not an error."""


class Scorer:
    """A model that is spread over the world.

    Args:
        model: this rank's stage, in evaluation mode.
        groups: process groups.
        batch_size: sequences that a replica runs together.
        sequence_parallel: whether the model was built so.
        track: wraps the batches of a request on rank 0, to show progress.
        vote: to stop, on all ranks or on none.
    """

    def __init__(
        self, model: LoopedGPT, groups: Groups, *, batch_size: int, sequence_parallel: bool = False,
        track: Callable[[Sequence[Any]], Iterable[Any]] = iter, vote: StopVote | None = None,
    ) -> None:  # fmt: skip
        self.model, self.groups = model, groups
        self.batch_size = batch_size
        self.depths = DepthRing(model, groups, sequence_parallel=sequence_parallel)
        # ranks that the tokens of a batch are split over
        self.multiple = groups.tensor.size() if sequence_parallel else 1
        self.track, self.vote = track, vote

    def likelihoods(self, pairs: Sequence[Pair], loops: Sequence[int]) -> list[list[Likelihood]]:
        """One likelihood for each pair and loop count (all different); rank 0 asks.

        Context and continuation together are at most as long as the model takes.
        """
        return self._ask("likelihoods", list(pairs), tuple(loops))

    def continuations(
        self, prompts: Sequence[Sequence[int]], settings: Generation, is_over: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """Continue prompts, as `generate`; rank 0 asks. On several ranks `is_over` must be picklable."""
        return self._ask("continuations", [list(prompt) for prompt in prompts], settings, is_over)

    def serve(self) -> None:
        """Work for rank 0 until it closes."""
        while (request := self._share(None)) is not None:
            self._answer(request)

    def close(self) -> None:
        """Let the other ranks go; rank 0 calls it."""
        self._share(None)

    def _ask(self, *request: Any) -> list[Any]:
        found = self._answer(self._share(request))
        assert found is not None, "rank 0 asks"
        return found

    def _share(self, request: Any) -> Any:
        """What rank 0 has, on every rank."""
        if dist.get_world_size() == 1:
            return request
        box = [request]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    @torch.inference_mode()
    def _answer(self, request: tuple[Any, ...]) -> list[Any] | None:
        """Do this rank's part; the whole result on rank 0."""
        kind, items, *arguments = request
        work, length, at_once = {  # as many batches of likelihoods together as keep all stages busy
            "likelihoods": (self._score, lambda pair: sum(map(len, pair)), self.model.stage.count),
            "continuations": (self._continue, len, CONTINUED_TOGETHER if self.vote is None else 1),
        }[kind]
        # longest first: memory runs out at once or never
        order = sorted(range(len(items)), key=lambda number: -length(items[number]))
        own = order[self.groups.data.rank() :: self.groups.data.size()]
        found: dict[int, Any] = {}
        share = math.ceil(len(items) / self.groups.data.size())  # the largest one
        for window in self._windows(own, share, at_once):
            if self.vote is not None:
                self.vote.hold()
                if self.vote.reason:
                    raise Stopped
            if window:
                found |= work(items, window, *arguments)
        return self._gather(found, len(items))

    def _windows(self, own: list[int], share: int, at_once: int) -> Iterable[list[list[int]]]:
        """Batches that run together; equally many on all ranks, which vote before each, so the last may be empty."""
        size = self.batch_size
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        windows = [batches[start : start + at_once] for start in range(0, math.ceil(share / size), at_once)]
        return self.track(windows) if dist.get_rank() == 0 else windows

    def _score(self, pairs: list[Pair], window: list[list[int]], loops: tuple[int, ...]) -> dict[int, list[Likelihood]]:
        rows = [[pairs[number] for number in numbers] for numbers in window]
        batches = [self._batch(row) for row in rows]
        scored: dict[tuple[int, int], Likelihood] = {}  # by number of the pair and loop count

        def visit(batch: int, num_loops: int, states: Tensor) -> None:
            likelihoods = self._likelihoods(states, batches[batch].tokens.shape[1], rows[batch])
            for number, likelihood in zip(window[batch], likelihoods, strict=True):
                scored[number, num_loops] = likelihood

        self.depths.run(batches, loops, visit)
        if not self._has_results:
            return {}
        return {number: [scored[number, num_loops] for num_loops in loops] for numbers in window for number in numbers}

    def _batch(self, pairs: list[Pair]) -> Batch:
        """Contexts and continuations but for the last token, padded on the right."""
        rows = [[*context, *continuation][:-1] for context, continuation in pairs]
        longest = max(map(len, rows))
        longest += -longest % self.multiple
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        return Batch(tokens=tokens.to(self.groups.device))

    def _likelihoods(self, states: Tensor, length: int, pairs: list[Pair]) -> list[Likelihood]:
        """Of each row, from its final states [rows · length, d]."""
        assert self.model.head is not None, "the last stage has the head"
        states = self.model.ops.to_split(states)
        places, targets = [], []
        for row, (context, continuation) in enumerate(pairs):
            first = row * length + len(context) - 1
            places += range(first, first + len(continuation))
            targets += continuation
        place, target = torch.tensor(places, device=states.device), torch.tensor(targets, device=states.device)
        values, hits = [], []
        for rows, wanted in zip(states[place].split(HEAD_ROWS), target.split(HEAD_ROWS), strict=True):
            logits = self.model.ops.gather_columns(self.model.head(rows))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            values.append(logits.log_softmax(-1).gather(-1, wanted[:, None]).squeeze(-1).double())
            hits.append(logits.argmax(-1) == wanted)
        sizes = [len(continuation) for _, continuation in pairs]
        parts = zip(torch.cat(values).split(sizes), torch.cat(hits).split(sizes), strict=True)
        return [Likelihood(value.sum().item(), bool(hit.all())) for value, hit in parts]

    def _continue(
        self, prompts: list[list[int]], window: list[list[int]], settings: Generation,
        is_over: Callable[[list[int]], bool],
    ) -> dict[int, list[int]]:  # fmt: skip
        numbers = [number for batch in window for number in batch]
        rows = [prompts[number] for number in numbers]
        new = generate(
            self.model, rows, settings, row_numbers=numbers, is_over=is_over, batch=self.batch_size,
            make_stepper=self._make_stepper,
        )  # fmt: skip
        return dict(zip(numbers, new, strict=True)) if self._has_results else {}

    @property
    def _make_stepper(self) -> MakeStepper | None:
        if self.model.stage.count == self.multiple == 1:
            return None
        return partial(RingStepper, self.depths, self.groups, self.multiple)

    @property
    def _has_results(self) -> bool:
        """One rank of each replica reports."""
        return self.groups.is_last_stage and self.groups.tensor.rank() == 0

    def _gather(self, found: dict[int, Any], count: int) -> list[Any] | None:
        if dist.get_world_size() > 1:
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, found)
            found = {number: value for part in parts for number, value in part.items()}
        return [found[number] for number in range(count)] if dist.get_rank() == 0 else None
