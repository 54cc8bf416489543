"""What a reasoning task is: a seeded generator, an exact solver, a text form and fixed splits, behind one small
interface.

1. `generate(seed, number)` makes one example from a random source that a hash of (task, parameters, seed, number)
   starts: any example can be made anywhere, in any order, and never depends on a rank, a worker or on Python's own
   hash.
2. `solve(question)` reads the question's text and nothing else, so it judges the generator instead of repeating it.
3. `split_of(example)` hashes the question's text: whatever parameters or seed made it, a question is in one split for
   ever.
4. `pick(split, seed, number)` is the number-th example of a split: the first of a run of candidates that falls into it.
5. `render(example)` gives the text in pieces, so that a trainer can have loss on the answer alone, or on steps and
   answer.

Examples of the same seed are the same for the same Python and the same code; tests hold a hash of some.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from random import Random
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

from pretrain.config.section import Section

Split = Literal["train", "validation", "test"]

HELD_OUT = 1 / 16
"""Share of all questions in the validation split, and again in the test split."""

MAX_TRIES = 4096
"""Candidates for one example of a split. That all of them miss a split of 1/16 of many questions has a chance of
1e-115."""


class Example(NamedTuple):
    question: str
    """All that is given."""
    steps: tuple[str, ...]
    """The reasoning in order, one text a step; empty for a task that is answered directly."""
    answer: str
    """The text, exactly."""


class Span(NamedTuple):
    """A stretch of an example's text."""

    kind: Literal["question", "step", "answer"]
    text: str


P = TypeVar("P", bound=Section)


class Task(ABC, Generic[P]):
    """A task at one difficulty. A subclass gives `name`, `parameters_type`, `make` and `solve`."""

    name: ClassVar[str]
    parameters_type: ClassVar[type[Section]]
    """Class of `parameters`: the difficulty, documented field by field."""
    question_end: ClassVar[str] = "\n"
    """Between the question and what follows it; given, like the question."""
    step_end: ClassVar[str] = "\n"
    """After each step; belongs to the step."""
    answer_start: ClassVar[str] = "### "
    """Before the answer, with or without steps; belongs to the answer."""

    def __init__(self, parameters: P) -> None:
        self.parameters = parameters
        # Without defaults: a parameter that is added later leaves the examples of those who do not set it as they are.
        self._hash = hashlib.blake2b(
            f"{self.name}\0{parameters.model_dump_json(exclude_defaults=True)}".encode(), digest_size=8
        )

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The symbols that every text of the task is made of, for a tokenizer of its own; None where it is written in
        words."""
        return None

    @abstractmethod
    def make(self, random: Random) -> Example:
        """One example, drawn from `random` alone."""

    @abstractmethod
    def solve(self, question: str) -> str:
        """The answer to a question, computed from its text.

        Raises:
            ValueError: the text is not a question of this task.
        """

    def prefix_answers(self, question: str) -> tuple[str | None, ...] | None:
        """The answer to every prefix of a question that ends with one of its symbols, for loss at every position.

        Returns:
            One answer a symbol, None where that prefix has none; the last is the question's. None for a task without
            such answers.
        """
        return None

    def generate(self, seed: int, number: int) -> Example:
        """The example of a seed and a number: a pure function of them and of the parameters."""
        state = self._hash.copy()
        state.update(b"\0%d\0%d" % (seed, number))
        return self.make(Random(int.from_bytes(state.digest(), "little")))

    @staticmethod
    def split_of(example: Example) -> Split:
        """The one split that an example can be in: a function of its question's text."""
        digest = hashlib.blake2b(example.question.encode(), digest_size=4, person=b"split").digest()
        share = int.from_bytes(digest, "little") / 2**32
        return "validation" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"

    def pick(self, split: Split, seed: int, number: int) -> Example:
        """The number-th example of a split, a pure function of the arguments and the parameters.

        Raises:
            ValueError: the task has too few different questions to fill the split.
        """
        first = number * MAX_TRIES
        for candidate in range(first, first + MAX_TRIES):
            example = self.generate(seed, candidate)
            if self.split_of(example) == split:
                return example
        parameters = self.parameters.model_dump_json()
        raise ValueError(
            f"task {self.name} with {parameters}: no question in {split}: it has too few questions; make it harder"
        )

    def examples(self, split: Split, seed: int) -> Iterator[Example]:
        """The examples of a split without end: `pick` of 0, 1, 2 and so on."""
        return (self.pick(split, seed, number) for number in count())

    def render(self, example: Example, *, with_steps: bool = True) -> tuple[Span, ...]:
        """The text of an example in pieces, to be laid end to end; bos and eos are the trainer's."""
        steps = example.steps if with_steps else ()
        return (
            Span("question", example.question + self.question_end),
            *(Span("step", step + self.step_end) for step in steps),
            Span("answer", self.answer_start + example.answer),
        )
