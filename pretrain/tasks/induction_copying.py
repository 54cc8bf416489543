"""Induction copying, a reasoning primitive: words in a row, then some of them again; say the word that followed them.

    qbn wxa odt jtp jme pzn odt jtp -> jme

Find a subsequence inside a longer sequence and output the item that follows it: so MidAS (arXiv 2409.19044) describes
the task, without its prompts; ten random words of three letters and a subsequence of five words are remembered numbers,
not printed ones. Words differ from each other. There are no steps.
"""

import re
import string
from random import Random

from pydantic import Field, model_validator

from pretrain.config.section import Section
from pretrain.tasks.task import Example, Task


class InductionCopyingParameters(Section):
    num_words: int = Field(default=10, ge=2)
    """Words of the sequence."""
    num_repeated: int = Field(default=5, ge=1)
    """Words of the subsequence that is repeated; it begins at a random place and never holds the last word."""
    word_length: int = Field(default=3, ge=1, le=10)
    """Letters of a word."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "InductionCopyingParameters":
        if self.num_repeated >= self.num_words:
            raise ValueError(f"num_repeated={self.num_repeated} leaves no word to follow in num_words={self.num_words}")
        if 26**self.word_length < 2 * self.num_words:
            raise ValueError(
                f"word_length={self.word_length} gives too few different words for num_words={self.num_words}"
            )
        return self


class InductionCopying(Task[InductionCopyingParameters]):
    name = "induction_copying"
    parameters_type = InductionCopyingParameters
    question_end = " "
    answer_start = ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*string.ascii_lowercase, " ")

    def make(self, random: Random) -> Example:
        parameters = self.parameters
        length = parameters.word_length
        words: dict[str, None] = {}  # a set in the order of drawing
        while len(words) < parameters.num_words:
            letters = "".join(random.choices(string.ascii_lowercase, k=length * (parameters.num_words - len(words))))
            words.update(dict.fromkeys(letters[start : start + length] for start in range(0, len(letters), length)))
        sequence = list(words)
        start = int(random.random() * (parameters.num_words - parameters.num_repeated))
        end = start + parameters.num_repeated
        return Example(" ".join(sequence + sequence[start:end]), (), sequence[end])

    def solve(self, question: str) -> str:
        if not re.fullmatch(r"[a-z]+( [a-z]+)*", question):
            raise ValueError(f"not words in a row: {question!r}")
        words = question.split(" ")
        repeated = words[-self.parameters.num_repeated :]
        for start in range(len(words) - 2 * len(repeated), -1, -1):
            if words[start : start + len(repeated)] == repeated:
                return words[start + len(repeated)]
        raise ValueError(f"its last {len(repeated)} words are not in it before: {question!r}")
