"""Prompts of several lengths, and names for what a model says to them. No torch."""

from dataclasses import dataclass

import numpy as np

from pretrain.verification.comparison import Numbers

NUM_NEW = 5
"""Tokens that each prompt is continued by."""
LENGTHS = (7, 1, 3, 7)
"""Of the prompts: padding of several widths, and none."""
NUM_SCORED = 3
"""Tokens of a continuation that is scored."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    contexts: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    loops: tuple[int, ...]
    vocab_size: int
    """Tokens of the tokenizer."""

    @classmethod
    def draw(cls, vocab_size: int, loops: tuple[int, ...]) -> "Prompts":
        random = np.random.default_rng(0)
        rows = [tuple(random.integers(0, vocab_size, length + NUM_SCORED).tolist()) for length in LENGTHS]
        return cls(
            contexts=tuple(row[:-NUM_SCORED] for row in rows), continuations=tuple(row[-NUM_SCORED:] for row in rows),
            loops=loops, vocab_size=vocab_size,
        )  # fmt: skip

    @property
    def pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return list(zip(self.contexts, self.continuations, strict=True))

    def score_name(self, number: int, num_loops: int) -> str:
        return f"score of continuation {number + 1} at L={num_loops}"

    def probability_name(self, number: int, place: int, num_loops: int) -> str:
        return f"log-probability of new token {place + 1} of prompt {number + 1} at L={num_loops}"

    def token_numbers(self, rows: list[list[int]], num_loops: int) -> Numbers:
        """The new tokens of each prompt, by name."""
        return {
            f"new token {place + 1} of prompt {number + 1} at L={num_loops}": token
            for number, row in enumerate(rows)
            for place, token in enumerate(row)
        }
