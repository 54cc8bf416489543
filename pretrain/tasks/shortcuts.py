"""How far a task's shortcuts get (`Task.shortcuts`): the accuracy that a model has to beat before it can be said to
reason.

A rule that cannot tell some answers apart guesses one of them, and its expected accuracy counts, so that no coin is
thrown. The most common answer is a shortcut of every task.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pretrain.tasks.task import Example, Task

MOST_COMMON = "most common answer"


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
