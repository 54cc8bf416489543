"""The interface of a reasoning task: a seeded generator, an exact solver, a text form and fixed splits.

1. `generate(seed, number)` makes one example from a random source seeded with a hash of (task, parameters, seed,
   number). Examples can be made anywhere and in any order, independent of ranks, workers and Python's own hash.
2. `solve(question)` reads only the question's text, so it checks the generator instead of repeating it.
3. `split_of(example)` hashes the problem, by default the question's text: it is always in the same split, whatever
   parameters or seed made it. `problem(example)` may be less than the text: 12+34 is the problem of 34+12 too.
4. `pick(split, seed, number)` is the number-th example of a split: the first of `MAX_TRIES` candidates in that split.
5. `longest(size)` is at least as long as every example, so that a run is refused at its start whose sequences are too
   short for one that it may draw after days.
6. `shortcuts` are rules that need no reasoning, to be scored beside every model.
7. `graph_form` reads the graph of a question, and steps as its edges, where there is one to search.
8. `render(example)` gives the text in spans, so that a trainer can supervise only the answer, or steps and answer.

The same seed gives the same examples for the same version of Python and of the code; tests check a hash of some.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

from pretrain.keyed_hash import bits
from pretrain.schema.section import Section
from pretrain.tasks.graph_form import GraphForm

Split = Literal["train", "validation", "test"]

HELD_OUT = 1 / 16
"""Share of all questions in the validation split, and again in the test split."""

MAX_TRIES = 4096
"""Candidates for one example of a split; with many questions, all miss a split of 1/16 with probability 1e-115."""

MAX_REPEATS = 256
"""Examples without a new problem after which a split is taken to have no other."""

Size = Callable[[str], int]
"""Tokens of a text."""


Rule = Callable[[str], Sequence[str]]
"""From a question to the answers that a shortcut cannot tell apart; whoever uses it guesses one of them."""


class Example(NamedTuple):
    question: str
    steps: tuple[str, ...]
    """The text of each reasoning step, in order; empty for a task that is answered directly."""
    answer: str
    """The exact text of the answer."""


class TextPart(NamedTuple):
    """A part of an example's text."""

    kind: Literal["question", "step", "answer"]
    text: str


P = TypeVar("P", bound=Section)


class SplitByProblem(Section):
    """Parameters of a task whose questions can be the same problem in other words."""

    split_by: Literal["question", "problem"] = "question"
    """What is in one split alone. question = the text, as in runs before this key; problem = whatever the words."""


class Task(ABC, Generic[P]):
    """A task at one difficulty. A subclass gives `name`, `parameters_type`, `make`, `solve` and `longest`."""

    name: ClassVar[str]
    parameters_type: ClassVar[type[Section]]
    """Class of `parameters`, whose fields are the difficulty."""
    question_end: ClassVar[str] = "\n"
    """Text after the question, part of its span."""
    step_end: ClassVar[str] = "\n"
    """Text after each step, part of its span."""
    answer_start: ClassVar[str] = "### "
    """Text before the answer, with or without steps; part of its span."""
    graph_form: ClassVar[GraphForm | None] = None
    """How its questions write a graph through which the steps lead; None if they have none."""
    is_prose: ClassVar[bool] = False
    """Whether texts are sentences of words from a list, whose tokens add up; else any characters may follow another."""

    def __init__(self, parameters: P) -> None:
        self.parameters = parameters
        # Defaults are left out, so that a parameter added later does not change the examples where it is not set.
        self._key = f"{self.name}\0{parameters.model_dump_json(exclude={'split_by'}, exclude_defaults=True)}"

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """All symbols of the task's texts, for a tokenizer of symbols; None if the texts are words."""
        return None

    @abstractmethod
    def make(self, random: Random) -> Example:
        """Draw one example, using no other randomness than `random`."""

    @abstractmethod
    def solve(self, question: str) -> str:
        """The answer to a question, computed from its text.

        Raises:
            ValueError: the text is not a question of this task.
        """

    @abstractmethod
    def longest(self, size: Size) -> Example:
        """What is written like an example and has parts, every one of them as long as that of any example, in
        characters and in symbols of `vocabulary`; in tokens, of which `size` counts those of a text, if the task
        `is_prose`. The question need not have this answer."""

    @property
    def shortcuts(self) -> Mapping[str, Rule]:
        """Rules by name that need less than the task is meant to need: what a model has to beat. The most common answer
        is one for every task and is not among them (`pretrain/tasks/shortcuts.py`)."""
        return {}

    def options(self, question: str) -> Sequence[str]:
        """The answers that a question names to choose from; empty where it names none."""
        return ()

    def prefix_answers(self, question: str) -> tuple[str | None, ...] | None:
        """The answer to every prefix of a question, one per symbol, for a loss at every position: None where a prefix
        has no answer; the last is the answer to the question. None if the task does not support this."""
        return None

    def generate(self, seed: int, number: int) -> Example:
        """The example of a seed and a number, a pure function of these and the parameters."""
        return self.make(Random(bits(f"{self._key}\0{seed}\0{number}", "little")))

    def problem(self, example: Example) -> str:
        """What two examples share that test the same thing."""
        return example.question

    def split_of(self, example: Example) -> Split:
        """The split of an example, a function of its problem."""
        digest = hashlib.blake2b(self.problem(example).encode(), digest_size=4, person=b"split").digest()
        share = int.from_bytes(digest, "little") / 2**32
        return "validation" if share < HELD_OUT else "test" if share < 2 * HELD_OUT else "train"

    def pick(self, split: Split, seed: int, number: int) -> Example:
        """The number-th example of a split, a pure function of the arguments and the parameters.

        Raises:
            ValueError: the task has too few distinct questions to fill the split.
        """
        first = number * MAX_TRIES
        for candidate in range(first, first + MAX_TRIES):
            example = self.generate(seed, candidate)
            if self.split_of(example) == split:
                return example
        which = f"task {self.name} with {self.parameters.model_dump_json()}"
        raise ValueError(f"{which}: no question in {split}: it has too few questions; make it harder")

    def pick_distinct(self, split: Split, seed: int, count: int) -> Iterator[Example]:
        """The first examples of a split without those whose problem has been there: what a test may count as
        independent. Fewer than `count` if the split has not so many problems.

        Raises:
            ValueError: as `pick`.
        """
        found: set[str] = set()
        number = newest = 0
        while len(found) < count and number - newest < MAX_REPEATS:
            example = self.pick(split, seed, number)
            number += 1
            problem = self.problem(example)
            if problem not in found:
                found.add(problem)
                newest = number
                yield example

    def render(self, example: Example, *, with_steps: bool = True) -> tuple[TextPart, ...]:
        """The text of an example as consecutive spans; the trainer adds bos and eos."""
        steps = example.steps if with_steps else ()
        return (
            TextPart("question", example.question + self.question_end),
            *(TextPart("step", step + self.step_end) for step in steps),
            TextPart("answer", self.answer_start + example.answer),
        )
