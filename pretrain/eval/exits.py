"""Scores and continuations in which every token loops until a rule stops it, and what that took."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pretrain.eval.scorer import Likelihood, Pair
from pretrain.generation.engine import Continuation, Wish
from pretrain.generation.generate import count_loops, fulfil
from pretrain.generation.sampling import Generation, LoopKeys, check_prompts
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.exit_rules import ExitRule


class ExitScorer:
    """In place of a `Scorer` for the harness, on one process: scores and continues token by token, each token with the
    loops that a rule gives it, or all with the same number. Counts what that took.

    Args:
        model: the model.
        rule: when a token stops; None: all run all loops.
        keys: of the loops that tokens leave out.
        batch_size: sequences that run together.
    """

    def __init__(self, model: LoopedGPT, rule: ExitRule | None, keys: LoopKeys, batch_size: int) -> None:
        self.model, self.rule, self.batch_size = model, rule, batch_size
        self.keys: LoopKeys = keys
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
        size = self.model.config.vocab_size
        settings = Generation(max_new_tokens=1, vocab_size=size, num_loops=most, rule=self.rule, keys=self.keys)
        order = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
        wishes = [
            Wish(prompt=context, settings=settings, forced=continuation, wants_likelihood=True)
            for context, continuation in (pairs[number] for number in order)
        ]
        scored = zip(order, self._fulfil(wishes), strict=True)
        found = {
            number: Likelihood(sum(each.log_probabilities), all(each.are_likeliest)) for number, each in scored
        }  # by number of the pair
        return [[found[number]] for number in range(len(pairs))]

    def continuations(
        self, prompts: Sequence[Sequence[int]], settings: Generation, is_over: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        """As of a `Scorer`."""
        check_prompts(self.model, prompts, settings.vocab_size, settings.max_new_tokens - 1)
        how = replace(settings, rule=self.rule, keys=self.keys)
        wishes = [
            Wish(prompt=prompt, settings=how, row_number=number, is_over=is_over)
            for number, prompt in enumerate(prompts)
        ]
        return [each.tokens for each in self._fulfil(wishes)]

    def _fulfil(self, wishes: Sequence[Wish]) -> list[Continuation]:
        started = time.perf_counter()
        found = fulfil(self.model, wishes, batch=self.batch_size)
        self.seconds += time.perf_counter() - started
        self.num_tokens += sum(max(len(each.tokens), 1) for each in found)
        self.num_loops += count_loops(found)
        return found
