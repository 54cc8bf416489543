"""Kinds of tasks, such as recall and reasoning: the mean over the tasks of each, and whether depth is worth more to one
than to another (Saunshi et al. 2025, figure 3).

The difference of two slopes is the slope of the difference: the values of one run at one loop count are subtracted
before a line is fitted, so what a seed does to both kinds is no noise of it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.metrics import is_share
from pretrain.scaling.curves import Curve, Point
from pretrain.scaling.fit import Fit, fit_curve
from pretrain.scaling.rows import in_group

Kinds = Mapping[str, Sequence[str]]
"""Task groups, or single tasks, of each kind by its name; what is both means the task."""


@dataclass(frozen=True, kw_only=True)
class SlopeDifference:
    """What depth is worth more to one kind than to another, for the models of one curve."""

    kinds: tuple[str, str]
    curve: Curve
    """Of the first kind."""
    fit: Fit
    """Of value of the first minus value of the second = alpha·log(D) + beta."""


def of_kinds(rows: Sequence[EvaluationRow], kinds: Kinds) -> list[EvaluationRow]:
    """The rows of each kind, as one task group of its name.

    Args:
        rows: with one metric per task.
        kinds: a task may be of several.

    Raises:
        ValueError: there are no rows of what a kind names, or their metrics have no mean.
    """
    found = []
    names = {member for members in kinds.values() for member in members} & {row.task for row in rows}
    known = {row.task_group for row in rows} | {row.task for row in rows}
    for kind, members in kinds.items():
        for member in members:
            if member not in known:
                raise ValueError(f"--group {kind}: no row is of {member!r}: there are {', '.join(sorted(known))}")
        mine = [row for row in rows if (row.task if row.task in names else row.task_group) in members]
        metrics = {row.metric for row in mine}
        if len(metrics) > 1 and not all(map(is_share, metrics)):
            raise ValueError(f"--group {kind}: {', '.join(sorted(metrics))} have no mean: choose tasks of like metrics")
        found += [in_group(row, kind) for row in mine]
    return found


def differences(curves: Sequence[Curve]) -> list[SlopeDifference]:
    """Of each two kinds, first minus second, for each models' curve that both have, where a line can be fitted."""
    by_kind: dict[str, list[Curve]] = {}
    for curve in curves:
        by_kind.setdefault(curve.task_group, []).append(curve)
    found = []
    for first, second in combinations(by_kind, 2):
        others = {curve.key._replace(questions=""): curve for curve in by_kind[second]}
        for curve in by_kind[first]:
            other = others.get(curve.key._replace(questions=""))
            fit = fit_curve(_minus(curve, other)) if other else None
            if fit:
                found.append(SlopeDifference(kinds=(first, second), curve=curve, fit=fit))
    return found


def _minus(curve: Curve, other: Curve) -> Curve:
    values = {_model(point): point for point in other.points}
    points = [
        replace(point, value=point.value - mine.value, stderr=math.hypot(point.stderr, mine.stderr))
        for point in curve.points
        if (mine := values.get(_model(point)))
    ]
    return replace(curve, metric="difference", points=tuple(points), extrapolated=())


def _model(point: Point) -> tuple[str, str | None, int]:
    return point.row.run, point.row.run_id, point.row.num_loops
