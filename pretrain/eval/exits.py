"""Generation in which every token loops until a rule stops it (`pretrain/model/loop/exit_rules.py`), each row as if it
were alone.

The tokens of the prompts but the last run all loops, together; from then on each token of a row stops when its rule
says so, at the latest after all loops. Rows that have stopped leave the batch between loops, so a step costs what its
rows ask for. The keys and values that a stopped token lacks in later loops are those of the last loop it ran ("share"),
or it runs on for them alone and only its output is taken from the loop where it stopped ("compute"). Coda and head run
once, on the state where a token stopped; rules that look at the output run them after each loop.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.eval.sampling import Generation, GenerationCache, decoder_of, generate, next_logits
from pretrain.eval.scorer import Likelihood, Pair
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
        """Loops of each row [b] in each step so far; one step gives one new token of each row."""

    def count_loops(self, lengths: Sequence[int]) -> int:
        """Loops that the first `lengths` new tokens of each row took together; then begins anew."""
        steps = torch.stack(self.taken)
        counted = torch.arange(len(steps), device=steps.device)[:, None] < torch.tensor(lengths, device=steps.device)
        self.taken = []
        return int(steps[counted].sum())

    def __call__(
        self, tokens: Tensor, num_loops: int | None, *, positions: Tensor, mask: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        model = self.model
        most = model.config.num_passes(num_loops)
        assert isinstance(cache, GenerationCache)
        if tokens.shape[1] > 1:
            before = None if mask is None else mask[:, :, :-1, :-1]
            model(tokens[:, :-1], num_loops, positions=positions[:, :-1], mask=before, cache=cache)
            tokens, positions, mask = tokens[:, -1:], positions[:, -1:], None if mask is None else mask[:, :, -1:]
        if mask is None:
            mask = torch.ones(len(tokens), 1, 1, cache.length + 1, dtype=torch.bool, device=tokens.device)
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
                assert context.mask is not None
                part = model.context(
                    tokens[rows], positions=context.positions[rows], mask=context.mask[rows], cache=cache
                )
        return final, loops

    def _share_keys(self, cache: GenerationCache, loops: Tensor, most: int) -> None:
        """Give the newest position of rows that stopped early the keys and values of their last loop in later ones."""
        recurrence = self.model.recurrence
        for last in loops.unique().tolist():
            rows = (loops == last).nonzero().squeeze(-1)
            for loop in range(last, most):
                sources, targets = recurrence.in_loop(last - 1), recurrence.in_loop(loop)
                for (_, source), (_, target) in zip(sources, targets, strict=True):
                    if target.computes_keys:
                        cache.share_newest(source.newest_keys, target, rows)

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


class ExitScorer:
    """In place of a `Scorer` for the harness, on one process: scores and continues token by token, each token with the
    loops that a rule gives it, or all with the same number. Counts what that took.

    Args:
        model: the model.
        rule: when a token stops; None: all run all loops.
        keys: as of `ExitDecoder`.
        batch_size: sequences that run together.
    """

    def __init__(self, model: LoopedGPT, rule: ExitRule | None, keys: Keys, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.decoder = None if rule is None else ExitDecoder(model, rule, keys)
        self.num_tokens = self.num_loops = 0
        """Tokens that were scored or made, and loops that they took."""
        self.seconds = 0.0

    @property
    def mean_loops(self) -> float:
        return self.num_loops / max(self.num_tokens, 1)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)

    def likelihoods(self, pairs: Sequence[Pair], loops: Sequence[int]) -> list[list[Likelihood]]:
        """As of a `Scorer`, at one loop count, the most that a token runs."""
        (most,) = loops
        order = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
        found: dict[int, Likelihood] = {}  # by number of the pair
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            found |= zip(numbers, self._score([pairs[number] for number in numbers], most), strict=True)
        return [[found[number]] for number in range(len(pairs))]

    def continuations(
        self, prompts: Sequence[Sequence[int]], settings: Generation, is_over: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """As of a `Scorer`."""
        rows: list[list[int]] = []
        for start in range(0, len(prompts), self.batch_size):
            some = prompts[start : start + self.batch_size]
            started = time.perf_counter()
            new = generate(
                self.model, some, settings, decoder=self.decoder, row_numbers=range(start, start + len(some)),
                is_over=is_over,
            )  # fmt: skip
            self._count(list(map(len, new)), settings.num_loops, started)
            rows += new
        return rows

    @torch.inference_mode()
    def _score(self, pairs: Sequence[Pair], most: int) -> list[Likelihood]:
        started, decoder = time.perf_counter(), self.decoder or decoder_of(self.model)
        device = next(self.model.parameters()).device
        lengths = [len(continuation) for _, continuation in pairs]
        values, hits = [0.0] * len(pairs), [True] * len(pairs)
        steps, sent = next_logits(decoder, device, [context for context, _ in pairs], most, max(lengths)), None
        for step in range(max(lengths)):
            logits = next(steps) if sent is None else steps.send(sent)
            log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            wanted = [continuation[min(step, len(continuation) - 1)] for _, continuation in pairs]
            sent = torch.tensor(wanted, device=device)
            likely = log_p.gather(-1, sent[:, None]).squeeze(-1).tolist()
            greedy = (log_p.argmax(-1) == sent).tolist()
            for row in (row for row in range(len(pairs)) if step < lengths[row]):
                values[row] += likely[row]
                hits[row] = hits[row] and greedy[row]
        self._count(lengths, most, started)
        return [Likelihood(value, hit) for value, hit in zip(values, hits, strict=True)]

    def _count(self, lengths: list[int], most: int | None, started: float) -> None:
        self.seconds += time.perf_counter() - started
        self.num_tokens += sum(lengths)
        each = most or self.model.config.num_loops
        self.num_loops += each * sum(lengths) if self.decoder is None else self.decoder.count_loops(lengths)
