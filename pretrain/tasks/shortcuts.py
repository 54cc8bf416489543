"""How far chance and a task's shortcuts get (`Task.shortcuts`): the accuracy that a model has to beat before it can be
said to reason.

Chance knows nothing of the question but its options: it takes one of those that the question names (`Task.options`), or
else the answer to another question.

A rule that cannot tell some answers apart guesses one of them, and its expected accuracy counts, so that no coin is
thrown. The most common answer is a shortcut of every task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pretrain.schema.section import Section
from pretrain.tasks.registry import make_task, task_class
from pretrain.tasks.task import Example, Task

NUM_EXAMPLES = 500
"""Questions that the rules of a configured task are scored on."""
NUM_SEEN = 100
"""Others, whose most common answer is one of the rules."""
MOST_COMMON = "most common answer"


class Shortcut(NamedTuple):
    name: str
    accuracy: float


class Floor(NamedTuple):
    """Accuracies that need no reasoning; the fields are those of `ResultRow`. Those of what is no task are unknown."""

    shortcut: float | None = None
    chance: float | None = None

    @property
    def described(self) -> str:
        """For the line above results; empty if unknown."""
        named = (("best shortcut", self.shortcut), ("chance", self.chance))
        return "".join(f"; {name} {100 * value:.1f} %" for name, value in named if value is not None)


NO_FLOOR = Floor()


def floor_of(name: str | None, parameters: Mapping[str, object]) -> Floor:
    """Of a task, found once and kept; None is no task.

    Raises:
        ValueError: as `make_task`.
    """
    if name is None:
        return NO_FLOOR
    best, chance = _measure(name, make_task(name, parameters).parameters)
    return Floor(best.accuracy, chance)


def best_shortcut(name: str, parameters: Mapping[str, object]) -> Shortcut:
    """The shortcut that gets farthest on a task at its difficulty, found once and kept.

    Raises:
        ValueError: as `make_task`.
    """
    return _measure(name, make_task(name, parameters).parameters)[0]


@lru_cache
def _measure(name: str, parameters: Section) -> tuple[Shortcut, float]:
    """The best shortcut, and the accuracy of chance."""
    task = task_class(name)(parameters)
    # Of any split: a rule learns nothing but the most common answer, which is that of another seed.
    asked = [task.generate(0, number) for number in range(NUM_EXAMPLES)]
    seen = [task.generate(1, number) for number in range(NUM_SEEN)]
    rules = [Shortcut(*score) for score in score_rules(task, asked, seen).items()]
    return max(rules, key=lambda rule: rule.accuracy), _chance(task, asked)


def _chance(task: Task[Any], examples: Sequence[Example]) -> float:
    counts = Counter(example.answer for example in examples)
    total = 0.0
    for example in examples:
        options = task.options(example.question)
        of_another = (counts[example.answer] - 1) / (len(examples) - 1)
        total += options.count(example.answer) / len(options) if options else of_another
    return total / len(examples)


def score_rules(task: Task[Any], examples: Sequence[Example], seen: Sequence[Example]) -> dict[str, float]:
    """Expected accuracy on `examples` of every shortcut of the task; the most common answer is that of `seen`."""
    counts = Counter(example.answer for example in seen).most_common()
    most_common = [answer for answer, count in counts if count == counts[0][1]]
    rules = {MOST_COMMON: lambda _: most_common, **task.shortcuts}
    found = dict.fromkeys(rules, 0.0)
    for example in examples:
        for name, rule in rules.items():
            if answers := rule(example.question):
                found[name] += answers.count(example.answer) / len(answers)
    return {name: total / len(examples) for name, total in found.items()}
