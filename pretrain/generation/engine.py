"""Continuous batching: sequences that are generated together join and leave between steps.

A sequence waits until a slot is free, has the keys and values of its prompt computed, and then has a token under way at
all times: each that comes through the model (`pretrain/generation/stepper.py`) gives the next. After the prompt may
come latent thoughts, each the state of the position before, and tokens that are forced; then text, until an
end-of-sequence token, the caller's word, or the largest number of tokens. Open sequences are kept in the first slots,
so that rows in the same loop read their keys where they lie.

What a sequence becomes depends on itself, the model and its settings alone: its logits equal those of the sequence
alone up to the rounding of matrix products, which may differ between batch sizes; in low precision that can decide
between two tokens of nearly equal probability.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pretrain.generation.sampling import Generation, choose_tokens, draw_uniform
from pretrain.generation.stepper import Lane, Stepper
from pretrain.keyed_hash import open_uniform


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be generated."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    settings: Generation
    row_number: int = 0
    """Number of the row in the whole job, for its draws."""
    draws: str | None = None
    """Names its draws, which depend on that and their place alone. Default: by settings.seed and the row's number."""
    num_thoughts: int = 0
    """Latent thoughts after the prompt."""
    script: Sequence[int] = ()
    """Tokens after prompt and thoughts that are no part of the text."""
    never: Sequence[int] = ()
    """Tokens that are not chosen."""
    forced: Sequence[int] | None = None
    """The text, where it is given and its likelihood is asked for."""
    wants_likelihood: bool = False
    """Whether log-probabilities of the new tokens are asked for."""
    is_over: Callable[[list[int]], bool] = lambda _: False
    """Asked of the new tokens after each one; True ends the sequence."""

    @property
    def length(self) -> int:
        """Most positions that go through the model; the last new token is never an input."""
        return len(self.prompt) - 1 + self.num_steps

    @property
    def num_steps(self) -> int:
        """Most of them that go one after the other: the prompt but for its last token goes at once."""
        return self.num_thoughts + len(self.script) + self.most

    @property
    def most(self) -> int:
        """New tokens at most."""
        return self.settings.max_new_tokens if self.forced is None else len(self.forced)

    def draw(self, place: int) -> float:
        """The number in (0, 1) at which the new token at a place, from 0, is drawn."""
        if self.draws is None:
            return draw_uniform(self.settings.seed, self.row_number, place)
        return open_uniform(f"{self.draws}/{place}")


@dataclass(kw_only=True, eq=False)
class Continuation:
    """A sequence while it grows, and then; equal to itself alone, as two may wish for the same."""

    wish: Wish
    tokens: list[int] = field(default_factory=list)
    """New ones, without the end-of-sequence token."""
    loops: list[int] = field(default_factory=list)
    """That each new token took before it was chosen, the end-of-sequence token among them."""
    log_probabilities: list[float] = field(default_factory=list)
    """Of the new tokens, in nats, if they are asked for."""
    are_likeliest: list[bool] = field(default_factory=list)
    """Whether each of these was the likeliest."""
    reason: str | None = None
    """Why it has ended: "stop" (its end, or the caller's word), "length" or "cancelled"; None: it has not."""
    num_thought: int = 0
    """Thoughts so far."""
    num_scripted: int = 0
    """Tokens of the script so far."""
    num_positions: int = 0
    """In its slot, that of the token under way among them."""

    @property
    def is_open(self) -> bool:
        return self.reason is None


class GenerationEngine:
    """Args:
    stepper: runs the model.
    num_slots: sequences that are under way at once.
    device: of the model.
    """

    def __init__(self, stepper: Stepper, *, num_slots: int, device: torch.device) -> None:
        self._stepper, self._num_slots, self._device = stepper, num_slots, device
        self._waiting: deque[Continuation] = deque()
        self._open: list[Continuation] = []
        """By slot."""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def is_idle(self) -> bool:
        return not self._open and not self._waiting

    def add(self, wish: Wish) -> Continuation:
        """Let a sequence join as soon as a slot is free."""
        continuation = Continuation(wish=wish)
        self._waiting.append(continuation)
        return continuation

    @torch.inference_mode()
    def adopt(self, wishes: Sequence[Wish], lengths: Sequence[int], states: Tensor) -> list[Continuation]:
        """Go on with sequences that have come to their text elsewhere; one lies in each of the first slots.

        Args:
            wishes: of each.
            lengths: positions of each so far.
            states: [n, d] final states at the last of these, which give the first new tokens; as loops these count 0.
        """
        assert self.is_idle and len(wishes) <= self._num_slots
        continuations = [
            Continuation(wish=wish, num_thought=wish.num_thoughts, num_scripted=len(wish.script)) for wish in wishes
        ]
        self._open = list(continuations)
        self._take([Lane(slot=slot, position=length - 1, token=0) for slot, length in enumerate(lengths)], states)
        self._close_ended()
        return continuations

    @torch.inference_mode()
    def cancel(self, continuation: Continuation) -> None:
        """Let a sequence leave; one that has ended stays as it is."""
        if not continuation.is_open:
            return
        continuation.reason = "cancelled"
        if continuation in self._waiting:
            self._waiting.remove(continuation)
            return
        self._close([self._open.index(continuation)])

    @torch.inference_mode()
    def step(self) -> list[Continuation]:
        """Take a step; the sequences that have a new token, or have ended, by it."""
        self._admit()
        if not self._open:
            return []
        lanes, states = self._stepper.advance()
        changed = self._take(lanes, states)
        self._close_ended()
        return changed

    def _admit(self) -> None:
        """Give waiting sequences the slots that are free."""
        joined: list[tuple[int, Continuation]] = []
        while self._waiting and len(self._open) < self._num_slots:
            joined.append((len(self._open), self._waiting.popleft()))
            self._open.append(joined[-1][1])
        by_loops: dict[int | None, list[tuple[int, Sequence[int]]]] = {}
        for slot, continuation in joined:
            wish = continuation.wish
            if len(wish.prompt) > 1:
                by_loops.setdefault(wish.settings.num_loops, []).append((slot, wish.prompt[:-1]))
        for num_loops, some in by_loops.items():
            self._stepper.fill([slot for slot, _ in some], [prompt for _, prompt in some], num_loops)
        for slot, continuation in joined:
            prompt = continuation.wish.prompt
            self._enter(slot, continuation, len(prompt) - 1, prompt[-1])

    def _enter(
        self, slot: int, continuation: Continuation, position: int, token: int, thought: Tensor | None = None
    ) -> None:
        settings, continuation.num_positions = continuation.wish.settings, position + 1
        self._stepper.enter(
            Lane(
                slot=slot, position=position, token=token, thought=thought, num_loops=settings.num_loops,
                rule=settings.rule, keys=settings.keys,
            )
        )  # fmt: skip

    def _take(self, lanes: list[Lane], states: Tensor) -> list[Continuation]:
        """Go on with the sequences whose tokens are through; those that have a new token, or have ended."""
        choosing: list[int] = []
        for row, lane in enumerate(lanes):
            continuation = self._open[lane.slot]
            wish = continuation.wish
            if continuation.num_thought < wish.num_thoughts:
                continuation.num_thought += 1
                self._enter(lane.slot, continuation, lane.position + 1, 0, states[row])
            elif continuation.num_scripted < len(wish.script):
                continuation.num_scripted += 1
                self._enter(lane.slot, continuation, lane.position + 1, wish.script[continuation.num_scripted - 1])
            else:
                choosing.append(row)
        if not choosing:
            return []
        some = states if len(choosing) == len(lanes) else states[choosing]
        logits = self._stepper.logits([lanes[row] for row in choosing], some)
        continuations = [self._open[lanes[row].slot] for row in choosing]
        tokens = self._choose(continuations, logits)
        for row, continuation, token in zip(choosing, continuations, tokens, strict=True):
            lane = lanes[row]
            continuation.loops.append(lane.stopped or lane.loop)
            self._append(continuation, token)
            if continuation.is_open:
                self._enter(lane.slot, continuation, lane.position + 1, token)
        return continuations

    def _append(self, continuation: Continuation, token: int) -> None:
        wish = continuation.wish
        if wish.forced is None and token in wish.settings.end_ids:
            continuation.reason = "stop"
            return
        continuation.tokens.append(token)
        if wish.is_over(continuation.tokens):
            continuation.reason = "stop"
        elif len(continuation.tokens) == wish.most:
            continuation.reason = "length"

    def _choose(self, continuations: list[Continuation], logits: Tensor) -> list[int]:
        """The next token of each, from its logits [n, v]; their likelihoods where they are asked for."""
        chosen = [0] * len(continuations)
        alike: dict[tuple[float, float, int, int], list[int]] = {}
        for row, continuation in enumerate(continuations):
            wish, settings = continuation.wish, continuation.wish.settings
            if wish.never:
                logits[row, list(wish.never)] = -torch.inf
            if wish.forced is not None:
                chosen[row] = wish.forced[len(continuation.tokens)]
                continue
            how = (settings.temperature, settings.top_p, settings.top_k, settings.vocab_size)
            alike.setdefault(how, []).append(row)
        for rows in alike.values():
            settings = continuations[rows[0]].wish.settings
            draws = [each.wish.draw(len(each.tokens)) for each in (continuations[row] for row in rows)]
            some = logits if len(rows) == len(continuations) else logits[rows]
            uniforms = torch.tensor(draws, dtype=torch.float64, device=logits.device)
            tokens = choose_tokens(some[:, : settings.vocab_size], settings, uniforms).tolist()
            for row, token in zip(rows, tokens, strict=True):
                chosen[row] = token
        self._note_likelihoods(continuations, logits, chosen)
        return chosen

    def _note_likelihoods(self, continuations: list[Continuation], logits: Tensor, tokens: list[int]) -> None:
        rows = [row for row, each in enumerate(continuations) if each.wish.wants_likelihood]
        if not rows:
            return
        wide = logits[rows].to(torch.promote_types(logits.dtype, torch.float32))
        wanted = torch.tensor([tokens[row] for row in rows], device=logits.device)
        found = wide.log_softmax(-1).gather(-1, wanted[:, None]).squeeze(-1).tolist()
        for row, value, is_likeliest in zip(rows, found, (wide.argmax(-1) == wanted).tolist(), strict=True):
            continuations[row].log_probabilities.append(value)
            continuations[row].are_likeliest.append(is_likeliest)

    def _close_ended(self) -> None:
        self._close([slot for slot, each in enumerate(self._open) if not each.is_open])

    def _close(self, slots: list[int]) -> None:
        """Free the slots of sequences that have ended; the last open ones move into the first slots that are free."""
        for slot in reversed(slots):
            self._stepper.leave(slot)
            last = self._open.pop()
            if slot < len(self._open):
                self._stepper.move(len(self._open), slot, last.num_positions)
                self._open[slot] = last
