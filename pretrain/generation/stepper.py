"""Running the model for sequences that generate together, a pass over the loop block at a time.

1. `fill` runs the model over the prompts of new sequences but for their last token: their keys and values.
2. `enter` gives a sequence its next token, or thought, and with it the loops that it runs.
3. `advance` takes a step: tokens that have just entered go through the prelude; then one pass over the loop block for
   all tokens, **each in its own loop** (continuous depth batching: the products of a layer are shared, each row reads
   and writes the keys of its loop, and what differs from loop to loop acts on the rows in that loop); then tokens
   whose rule stops them, or whose loops are over, go through coda and head and leave.

So a step costs what its rows ask for, a sequence joins at any step, and nobody waits for another's loops. The keys and
values that a token which stopped early lacks in later loops are those of its last loop ("share"), or it runs on for
them alone and only its output is taken from where it stopped ("compute"). Where layers of different loops cannot be one
(blocks with weights of their own, windows of keys) each loop's rows are run by themselves.

Source of depth batching: arXiv 2608.09444 (its idea; this is our own way of it).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Protocol

import torch
from torch import Tensor

from pretrain.generation.exits import ExitWatch, needs_output
from pretrain.generation.sampling import LoopKeys
from pretrain.generation.slots import SlotCache
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Context, rotary_table
from pretrain.model.loop.exit_rules import ExitRule

FILLED_TOGETHER = 4096
"""Tokens of prompts, with padding, that run together."""


@dataclass(kw_only=True)
class Lane:
    """A token, or a thought, on its way through the model."""

    slot: int
    position: int
    """In its sequence, from 0."""
    token: int
    thought: Tensor | None = None
    """[d] what enters in place of the token's embedding."""
    num_loops: int | None = None
    """Most loops. Default: model.num_loops."""
    rule: ExitRule | None = None
    """Stops it earlier."""
    keys: LoopKeys = "share"
    loop: int = 0
    """Passes done."""
    stopped: int | None = None
    """Loops after which the rule stopped it."""
    seen: tuple[Tensor, Tensor] | None = None
    """[d] final state and [vocabulary] logits there, where the rule looked at them: they are not computed again."""


class Stepper(Protocol):
    """What runs the model for an `GenerationEngine`."""

    def fill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], num_loops: int | None) -> None:
        """Compute the keys and values of whole token sequences, one in each slot."""
        ...

    def enter(self, lane: Lane) -> None:
        """Let a token set out with the next step."""
        ...

    def advance(self) -> tuple[list[Lane], Tensor]:
        """Take a step: the tokens that are through, and of each its final state [n, d], or what `logits` takes."""
        ...

    def logits(self, lanes: Sequence[Lane], states: Tensor) -> Tensor:
        """[n, vocabulary] logits of tokens that `advance` has returned, with their rows."""
        ...

    def leave(self, slot: int) -> None:
        """Forget the token of a slot that is under way, if there is one."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Let the sequence of a slot, of `length` positions, be in another, which is free."""
        ...


class PassStepper:
    """Of a model that this process holds whole, or its tensor-parallel part, on all ranks together.

    Args:
        model: on its device, in its precision.
        cache: for the keys and values of its sequences.
    """

    def __init__(self, model: LoopedGPT, cache: SlotCache) -> None:
        self.model, self.cache, config, num_slots = model, cache, model.config, cache.num_slots
        weight = next(model.parameters())
        self._device = weight.device
        width = config.hidden_size * model.design.residual.num_streams
        self._states = weight.new_empty(num_slots, width)
        """As the newest pass left them, by slot."""
        self._carried = weight.new_empty(num_slots, config.hidden_size) if model.design.carries else None
        self._stopped = torch.empty_like(self._states)
        """With which a token stopped that runs on for its keys."""
        self._watch = ExitWatch(model, num_slots)
        self._lanes: dict[int, Lane] = {}
        self._shares = config.num_blocks == 1 and not model.design.has_windows
        self._rotary: tuple[Tensor, Tensor] | None = None
        """Rotations [capacity, 1, e/2] of all positions."""
        if config.positions == "rope":
            everywhere = torch.arange(cache.capacity, device=self._device)
            cosine, sine = rotary_table(everywhere[None], config.head_dim, config.rope_theta, weight.dtype)
            self._rotary = cosine[0], sine[0]
        self._placed: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._context: Context | None = None

    def fill(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], num_loops: int | None) -> None:
        model = self.model
        order = iter(sorted(zip(slots, prompts, strict=True), key=lambda pair: (-len(pair[1]), pair[0])))
        while first := next(order, None):
            longest = len(first[1])
            some = sorted([first, *islice(order, max(1, FILLED_TOGETHER // longest) - 1)], key=lambda pair: pair[0])
            lengths = [len(prompt) for _, prompt in some]
            longest = max(lengths)
            rows = [[*prompt, *[0] * (longest - len(prompt))] for _, prompt in some]
            tokens = torch.tensor(rows, device=self._device)
            self.cache.place([slot for slot, _ in some], [0] * len(some), lengths, device=self._device)
            self._placed = None
            positions = torch.arange(longest, device=self._device)[None]
            context = model.context(tokens, positions=positions, cache=self.cache)
            states, carried = model.begin(tokens, context)
            for loop in range(model.config.num_passes(num_loops)):
                states = model.run_loop(model.enter(states, carried, loop), context, loop)
            if model.config.num_coda_layers:
                model.finish(states, context, self.cache.num_passes)

    def enter(self, lane: Lane) -> None:
        self._lanes[lane.slot] = lane

    def leave(self, slot: int) -> None:
        self._lanes.pop(slot, None)

    def move(self, source: int, target: int, length: int) -> None:
        self.cache.move(source, target, length)
        self._watch.move(source, target)
        for each in (self._states, self._carried, self._stopped):
            if each is not None:
                each[target] = each[source]
        if source in self._lanes:
            self._lanes[target] = self._lanes.pop(source)
            self._lanes[target].slot = target

    def advance(self) -> tuple[list[Lane], Tensor]:
        lanes = sorted(self._lanes.values(), key=lambda lane: (lane.loop, lane.slot))
        if starting := [lane for lane in lanes if not lane.loop]:
            self._begin(starting)
        groups = [lanes] if self._shares else [list(group) for _, group in groupby(lanes, key=lambda lane: lane.loop)]
        for group in groups:
            self._pass(group)
        through = sorted((lane for lane in lanes if self._is_through(lane)), key=lambda lane: lane.slot)
        for lane in through:
            del self._lanes[lane.slot]
        return through, self._final(through)

    def logits(self, lanes: Sequence[Lane], states: Tensor) -> Tensor:
        rest = [row for row, lane in enumerate(lanes) if lane.seen is None]
        if len(rest) == len(lanes):
            return self.model.all_logits(states)
        computed = iter(self.model.all_logits(states[rest]) if rest else ())
        return torch.stack([next(computed) if lane.seen is None else lane.seen[1] for lane in lanes])

    def _is_through(self, lane: Lane) -> bool:
        ran_all = lane.loop == self.model.config.num_passes(lane.num_loops)
        return ran_all or (lane.stopped is not None and lane.keys == "share")

    def _place(self, lanes: Sequence[Lane]) -> Context:
        """Make these the rows of the next calls of the model."""
        slots, positions = tuple(lane.slot for lane in lanes), tuple(lane.position for lane in lanes)
        if self._placed != (slots, positions) or self._context is None:
            self.cache.place(slots, positions, [1] * len(lanes), device=self._device)
            places = torch.tensor(positions, device=self._device)[:, None]
            rotary = None if self._rotary is None else (self._rotary[0][places], self._rotary[1][places])
            self._context = Context(
                batch=len(lanes), positions=places, rotary=rotary, mask=None, cache=self.cache
            )  # fmt: skip
            self._placed = slots, positions
        return self._context

    def _begin(self, lanes: Sequence[Lane]) -> None:
        context, embedding = self._place(lanes), self.model.embedding
        assert embedding is not None, "the model is here whole"
        tokens = torch.tensor([[lane.token] for lane in lanes], device=self._device)
        embeddings = embedding(tokens)
        for row, lane in enumerate(lanes):
            if lane.thought is not None:
                embeddings[row, 0] = lane.thought
        states, carried = self.model.begin(tokens, context, embeddings)
        at = _slots(lanes, self._device)
        self._states[at] = states
        if self._carried is not None and carried is not None:
            self._carried[at] = carried

    def _pass(self, lanes: Sequence[Lane]) -> None:
        """A pass of each token over the loop block; then those that their rules stop."""
        context, at, parts = self._place(lanes), _slots(lanes, self._device), list(_runs(lanes))
        before = self._states[at]
        carried = None if self._carried is None else self._carried[at]
        entered = [
            self.model.enter(before[rows], None if carried is None else carried[rows], loop) for loop, rows in parts
        ]
        loops = parts[0][0] if len(parts) == 1 else tuple(lane.loop for lane in lanes)
        states = self.model.run_loop(torch.cat(entered), context, loops)
        self._states[at] = states
        watched: dict[ExitRule, list[int]] = {}
        for row, lane in enumerate(lanes):
            lane.loop += 1
            asks = lane.rule is not None and lane.stopped is None
            if asks and lane.rule is not None and lane.loop < self.model.config.num_passes(lane.num_loops):
                watched.setdefault(lane.rule, []).append(row)
        for rule, rows in watched.items():
            self._stop(rule, [lanes[row] for row in rows], before[rows], states[rows])

    def _stop(self, rule: ExitRule, lanes: Sequence[Lane], before: Tensor, states: Tensor) -> None:
        finished = output = None
        if needs_output(rule):
            finished = self._finish(states, lanes)
            output = self.model.all_logits(finished)
        slots, loops = [lane.slot for lane in lanes], [lane.loop for lane in lanes]
        stops = self._watch.stops(rule, slots, loops, before, states, output)
        for row, (lane, stop) in enumerate(zip(lanes, stops, strict=True)):
            if stop:
                lane.stopped = lane.loop
                if finished is not None and output is not None:
                    lane.seen = finished[row], output[row]
                else:
                    self._stopped[lane.slot] = states[row]
        shared = [lane for lane, stop in zip(lanes, stops, strict=True) if stop and lane.keys == "share"]
        shared.sort(key=lambda lane: (lane.loop, self.model.config.num_passes(lane.num_loops)))
        for (done, most), some in groupby(
            shared, key=lambda lane: (lane.loop, self.model.config.num_passes(lane.num_loops))
        ):
            group = list(some)
            self.cache.share([lane.slot for lane in group], [lane.position for lane in group], done, most)

    def _final(self, lanes: Sequence[Lane]) -> Tensor:
        """[n, d] final states of tokens that are through."""
        rest = [lane for lane in lanes if lane.seen is None]
        at = _slots(rest, self._device)
        states = self._states[at]
        if any(lane.stopped for lane in rest):
            stopped = torch.tensor([lane.stopped is not None for lane in rest], device=self._device)
            states = torch.where(stopped[:, None], self._stopped[at], states)
        if rest:
            states = self._finish(states, rest)
        if len(rest) == len(lanes):
            return states
        finished = iter(states)
        return torch.stack([next(finished) if lane.seen is None else lane.seen[0] for lane in lanes])

    def _finish(self, states: Tensor, lanes: Sequence[Lane]) -> Tensor:
        """What follows the loop, which reads and writes keys of its own if it has layers: the same after any loops, as
        they are kept by the number of an application after the most there are."""
        context = self._context
        if context is None or self.model.config.num_coda_layers:
            context = self._place(lanes)
        return self.model.finish(states, context, self.cache.num_passes)


def _slots(lanes: Sequence[Lane], device: torch.device) -> Tensor:
    return torch.tensor([lane.slot for lane in lanes], dtype=torch.int64, device=device)


def _runs(lanes: Sequence[Lane]) -> Iterator[tuple[int, slice]]:
    """Each loop that tokens are in, with where they are among them, which are in the order of loops."""
    start = 0
    for loop, group in groupby(lanes, key=lambda lane: lane.loop):
        stop = start + len(list(group))
        yield loop, slice(start, stop)
        start = stop
