"""What chance and the best shortcut get on a task group: lines below which a point shows no reasoning."""

import statistics
from collections import defaultdict
from collections.abc import Iterable

from pretrain.rows.evaluation import EvaluationRow

CHANCE, SHORTCUT = "chance", "best shortcut"
NAMES = (CHANCE, SHORTCUT)
Floors = dict[str, dict[str, float]]
"""By task group, then by name."""


def floors_of(rows: Iterable[EvaluationRow]) -> Floors:
    """The floors of the groups of which every task has one, the same in all rows of it: means over the tasks."""
    found: dict[str, dict[str, list[set[float | None]]]] = defaultdict(lambda: defaultdict(lambda: [set(), set()]))
    for row in rows:
        for values, value in zip(found[row.task_group][row.task], (row.chance, row.shortcut), strict=True):
            values.add(value)
    floors: Floors = {}
    for group, tasks in found.items():
        for number, name in enumerate(NAMES):
            each = [values[number] for values in tasks.values()]
            known = [value for values in each if len(values) == 1 for value in values if value is not None]
            if len(known) == len(each):
                floors.setdefault(group, {})[name] = statistics.fmean(known)
    return floors
