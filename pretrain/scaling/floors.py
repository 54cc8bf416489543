"""What chance and the best shortcut get on a task group: lines below which a point shows no reasoning."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

from pretrain.rows.evaluation import EvaluationRow

CHANCE, SHORTCUT = "chance", "best shortcut"
NAMES = (CHANCE, SHORTCUT)
FLOOR_LINES: dict[str, Literal[":", "--"]] = {CHANCE: ":", SHORTCUT: "--"}
"""How matplotlib draws each."""
Floors = dict[str, dict[str, float]]
"""By task group, then by name."""


def floors_of(rows: Iterable[EvaluationRow]) -> Floors:
    """The floors of the groups of which every task has one, the same in all rows of it: means over the tasks."""
    found: dict[tuple[str, str], set[tuple[float | None, float | None]]] = defaultdict(set)
    for row in rows:
        found[row.task_group, row.task].add((row.chance, row.shortcut))
    floors: Floors = {}
    for group in dict.fromkeys(group for group, _ in found):
        tasks = [values for (other, _), values in found.items() if other == group]
        for number, name in enumerate(NAMES):
            each = [{value[number] for value in values} for values in tasks]
            known = [value for values in each if len(values) == 1 for value in values if value is not None]
            if len(known) == len(each):
                floors.setdefault(group, {})[name] = statistics.fmean(known)
    return floors
