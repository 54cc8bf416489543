"""Generation in which every token loops until a rule stops it (`pretrain/model/loop/exit_rules.py`), each row as if it
were alone.

The tokens of the prompts run all loops, together; from then on each new token of a row stops when its rule says so, at
the latest after all loops. Rows that have stopped leave the batch between loops, so a step costs what its rows ask for.
The keys and values that a stopped token lacks in later loops are those of the last loop it ran ("share"), or it runs on
for them alone and only its output is taken from the loop where it stopped ("compute"). Coda and head run once, on the
state where a token stopped; rules that look at the output run them after each loop.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.eval.sampling import GenerationCache
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Context, KeyValueCache
from pretrain.model.loop.exit_rules import ExitRule

Keys = Literal["share", "compute"]
"""Where the keys and values of loops come from that a token did not need."""


class ExitDecoder:
    """A `Decoder` of a model that this process holds whole.

    Args:
        model: the model.
        rule: when a token stops.
        keys: see the file.
    """

    def __init__(self, model: LoopedGPT, rule: ExitRule, keys: Keys = "share") -> None:
        self.model, self.rule, self.keys = model, rule, keys
        self.taken: list[Tensor] = []
        """Loops of each row [b] in each step so far; the first step is that of the prompts."""

    def mean_loops(self, lengths: Sequence[int]) -> float:
        """Mean loop count of the tokens of a batch after the first, which the prompts' loops gave; then begins anew.

        Args:
            lengths: new tokens of each row.
        """
        steps = torch.stack(self.taken[1:]) if len(self.taken) > 1 else torch.stack(self.taken)
        counted = torch.arange(len(steps), device=steps.device)[:, None] < torch.tensor(lengths, device=steps.device)
        self.taken = []
        return steps[counted].double().mean().item() if counted.any() else steps.double().mean().item()

    def __call__(
        self, tokens: Tensor, num_loops: int | None, *, positions: Tensor, mask: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        model = self.model
        most = model.config.num_passes(num_loops)
        if not cache.length:
            states = model(tokens, num_loops, positions=positions, mask=mask, cache=cache)
            self.taken.append(torch.full(tokens.shape[:1], most, device=tokens.device))
            return model.all_logits(states.view(*tokens.shape, -1)[:, -1])
        assert tokens.shape[1] == 1 and isinstance(cache, GenerationCache)
        length, context = cache.length, model.context(tokens, positions=positions, mask=mask, cache=cache)
        states, loops = self._loop(tokens, context, most, length)
        if self.keys == "share":
            self._share_keys(cache, loops, most)
        cache.rows = None
        self._rewind_coda(cache, most, length)
        self.taken.append(loops)
        return model.all_logits(model.finish(states, context, most))

    def _loop(self, tokens: Tensor, context: Context, most: int, length: int) -> tuple[Tensor, Tensor]:
        """The states [b, d] with which the rows stop, and after how many loops, [b]."""
        model, cache = self.model, context.cache
        assert isinstance(cache, GenerationCache)
        current, carried = model.begin(tokens, context)
        final, loops = torch.empty_like(current), torch.full_like(tokens[:, 0], most)
        rows, is_open = torch.arange(len(current), device=current.device), torch.ones_like(loops, dtype=torch.bool)
        watch, part = _Watch(self.rule, model), context
        for loop in range(most):
            entered = model.enter(current, carried, loop)
            states = model.run_loop(entered, part, loop)
            stops = torch.ones_like(rows, dtype=torch.bool)
            if loop < most - 1:
                if watch.needs_output:
                    self._rewind_coda(cache, most, length)
                    watch.output = model.all_logits(model.finish(states, part, most))
                stops = watch.stops(current, states)
            stops = stops & is_open[rows]
            final[rows[stops]], loops[rows[stops]] = states[stops], loop + 1
            is_open[rows[stops]] = False
            if not is_open.any() and self.keys == "share":
                break
            current = states
            if self.keys == "share" and stops.any():
                stay = ~stops
                rows, current = rows[stay], current[stay]
                carried = None if carried is None else carried[stay]
                watch.keep(stay)
                cache.rows = rows
                mask = None if context.mask is None else context.mask.expand(len(tokens), -1, -1, -1)[rows]
                positions = context.positions.expand(len(tokens), -1)[rows]
                part = model.context(tokens[rows], positions=positions, mask=mask, cache=cache)
        return final, loops

    def _share_keys(self, cache: GenerationCache, loops: Tensor, most: int) -> None:
        """Give the newest position of rows that stopped early the keys and values of their last loop in later ones."""
        recurrence = self.model.recurrence
        for last in loops.unique().tolist():
            rows = (loops == last).nonzero().squeeze(-1)
            for loop in range(last, most):
                sources, targets = recurrence.in_loop(last - 1), recurrence.in_loop(loop)
                for (_, source), (_, target) in zip(sources, targets, strict=True):
                    cache.share_newest(source.number, target.number, rows)

    def _rewind_coda(self, cache: GenerationCache, most: int, length: int) -> None:
        cache.rewind(length, [application.number for _, application in self.model.recurrence.in_coda(most)])


class _Watch:
    """A rule at work on the rows that still loop, loop after loop."""

    def __init__(self, rule: ExitRule, model: LoopedGPT) -> None:
        self.rule, self.model = rule, model
        self.needs_output = rule.name in ("kl", "entropy")
        self.output: Tensor | None = None
        """[rows, v] logits after this loop."""
        self._before: Tensor | None = None  # log-probabilities after the loop before
        self._log_rest: Tensor | None = None  # log-probability that the gate has not stopped yet

    def keep(self, stay: Tensor) -> None:
        """The rows that go on."""
        self._before = None if self._before is None else self._before[stay]
        self._log_rest = None if self._log_rest is None else self._log_rest[stay]

    def stops(self, before: Tensor, states: Tensor) -> Tensor:
        """Which of the rows stop: [rows], from their states [rows, d] before and after this loop."""
        threshold = self.rule.threshold
        if self.rule.name == "gate":
            rest = F.logsigmoid(-self.model.exit_log_odds(states))
            self._log_rest = rest if self._log_rest is None else self._log_rest + rest
            return -self._log_rest.expm1() >= threshold
        if self.rule.name == "change":
            wide = states.to(torch.promote_types(states.dtype, torch.float32))
            return (wide - before.to(wide.dtype)).norm(dim=-1) < threshold * wide.norm(dim=-1)
        assert self.output is not None
        log_p = self.output.to(torch.promote_types(self.output.dtype, torch.float32)).log_softmax(-1)
        if self.rule.name == "entropy":
            return -(log_p.exp() * log_p).sum(-1) < threshold
        earlier, self._before = self._before, log_p
        if earlier is None:
            return torch.zeros(len(log_p), dtype=torch.bool, device=log_p.device)
        return (log_p.exp() * (log_p - earlier)).sum(-1) < threshold
