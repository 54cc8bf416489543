"""Induction copying, a reasoning primitive: a sequence of words, some repeated; answer with the word after them.

    qbn wxa odt jtp jme pzn odt jtp -> jme

MidAS (arXiv 2409.19044) describes the task as finding a subsequence inside a longer sequence and printing the item that
follows it, without giving its prompts. The sizes (ten random words of three letters, a subsequence of five words) are
not from the paper. All words are distinct. There are no steps.
"""

import re
import string
from random import Random

from pydantic import Field, model_validator

from pretrain.schema.section import Section
from pretrain.tasks.task import Example, Rule, Size, Task


class InductionCopyingParameters(Section):
    num_words: int = Field(default=10, ge=2)
    """Words in the sequence."""
    num_repeated: int = Field(default=5, ge=1)
    """Words in the repeated subsequence; it starts at a random position and never contains the last word."""
    word_length: int = Field(default=3, ge=1, le=10)
    """Letters in a word."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "InductionCopyingParameters":
        if self.num_repeated >= self.num_words:
            raise ValueError(f"num_repeated={self.num_repeated} leaves no word to follow in num_words={self.num_words}")
        if 26**self.word_length < 2 * self.num_words:
            few = f"word_length={self.word_length} gives too few different words"
            raise ValueError(f"{few} for num_words={self.num_words}")
        return self


class InductionCopying(Task[InductionCopyingParameters]):
    name = "induction_copying"
    parameters_type = InductionCopyingParameters
    question_end = " "
    answer_start = ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*string.ascii_lowercase, " ")

    @property
    def shortcuts(self) -> dict[str, Rule]:
        size = self.parameters.num_words
        return {
            "one of the words": lambda question: question.split(" ")[:size],
            "one of the words that are not repeated": lambda question: _said_once(question.split(" ")),
            "last new word": lambda question: question.split(" ")[size - 1 : size],
        }

    def make(self, random: Random) -> Example:
        parameters = self.parameters
        length = parameters.word_length
        words: dict[str, None] = {}  # a set that keeps the order of drawing
        while len(words) < parameters.num_words:
            letters = "".join(random.choices(string.ascii_lowercase, k=length * (parameters.num_words - len(words))))
            words.update(dict.fromkeys(letters[start : start + length] for start in range(0, len(letters), length)))
        sequence = list(words)
        start = int(random.random() * (parameters.num_words - parameters.num_repeated))
        end = start + parameters.num_repeated
        return Example(" ".join(sequence + sequence[start:end]), (), sequence[end])

    def longest(self, size: Size) -> Example:
        return self.generate(0, 0)  # all are of one length

    def solve(self, question: str) -> str:
        if not re.fullmatch(r"[a-z]+( [a-z]+)*", question):
            raise ValueError(f"not words in a row: {question!r}")
        words = question.split(" ")
        repeated = words[-self.parameters.num_repeated :]
        for start in range(len(words) - 2 * len(repeated), -1, -1):
            if words[start : start + len(repeated)] == repeated:
                return words[start + len(repeated)]
        raise ValueError(f"its last {len(repeated)} words are not in it before: {question!r}")


def _said_once(words: list[str]) -> list[str]:
    return [word for word in words if words.count(word) == 1]
