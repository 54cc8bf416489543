"""Points and curves: the mean of a task group for each run and loop count; what a curve is: `comparable.py`.

Runs of a curve that agree in the shape too are replicates, seeds, and stay separate points, because the intervals of
`fit.py` come from their scatter. Points at loop counts that a run was not trained at are kept apart: they are drawn,
and in no fit.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config.saved_model import Family
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.metrics import ACCURACIES, LOWER_IS_BETTER, SCORE
from pretrain.scaling.comparable import Comparable, CurveKey, CurveName, curve_names

ONE_SIDED_95 = 1.645
"""Standard errors that a chance difference exceeds in one direction with probability 5%."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run at one loop count, averaged over a group's tasks."""

    row: EvaluationRow
    """The latest of the averaged rows, for what they share: run, step, costs."""
    value: float
    stderr: float
    """Standard error of the mean over examples; 0 if unknown."""
    num_examples: int
    """Examples summed over the tasks."""

    @property
    def depth(self) -> int:
        """Effective depth in layers."""
        return self.row.effective_depth

    @property
    def label(self) -> str:
        """The model as k⊗L; where the row does not say k, the run without its seed."""
        return self.row.shape or re.sub(r"-seed\d+$", "", self.row.run)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Comparable points of one task group, sorted by depth."""

    task_group: str
    family: Family
    name: str
    """Of the curve among those of its group."""
    parts: CurveName
    """Of the name."""
    key: CurveKey
    metric: str
    """Of all tasks, or SCORE where they have different ones."""
    points: tuple[Point, ...]
    """At loop counts that the runs were trained at; a looped curve begins with its baseline k⊗1."""
    extrapolated: tuple[Point, ...] = ()
    """At other loop counts."""
    warnings: tuple[str, ...] = ()
    """Caveats about the curve, one line each."""

    @property
    def num_depths(self) -> int:
        return len({point.depth for point in self.points})

    @property
    def own_points(self) -> tuple[Point, ...]:
        """The trained points without those that a curve of baselines has too."""
        return tuple(point for point in self.points if point.row.family == self.family)

    @property
    def all_points(self) -> tuple[Point, ...]:
        return (*self.points, *self.extrapolated)


def example_stderr(row: EvaluationRow) -> float:
    """Standard error of a row over its examples: the row's own, else binomial for an accuracy, else 0 (unknown)."""
    if row.stderr is not None:
        return row.stderr
    if row.metric in ACCURACIES and 0 <= row.value <= 1:
        return math.sqrt(row.value * (1 - row.value) / row.num_examples)
    return 0.0


def mean_point(rows: Sequence[EvaluationRow]) -> Point:
    """Average the rows of one run and loop count, one per task."""
    return Point(
        row=max(rows, key=lambda row: row.step),
        value=math.fsum([row.value for row in rows]) / len(rows),
        stderr=math.hypot(*map(example_stderr, rows)) / len(rows),
        num_examples=sum([row.num_examples for row in rows]),
    )


Cells = dict[tuple[int, str, int, str], list[EvaluationRow]]
"""Rows of one point by depth, run, loop count and id of the run."""


def make_curves(rows: Sequence[EvaluationRow]) -> list[Curve]:
    """Average the tasks of each group; curves are sorted by task group and name.

    Args:
        rows: one metric per task, one step per run and task (`rows.choose_metric`, `rows.latest`).
    """
    comparable = Comparable(rows)
    groups: dict[str, dict[CurveKey, Cells]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    tasks: dict[str, set[str]] = defaultdict(set)
    keys = _PointKeys(comparable, rows)
    for row in rows:
        where = row.effective_depth, row.run, row.num_loops, row.run_id or ""
        tasks[row.task_group].add(row.task)
        groups[row.task_group][keys.of(row)][where].append(row)
    for row in rows:  # k⊗1 begins the curve of k⊗L, where there is one
        looped = keys.looped_of(row) if row.family == "baseline" else None
        if looped is not None and looped in groups[row.task_group]:
            where = row.effective_depth, row.run, row.num_loops, row.run_id or ""
            groups[row.task_group][looped][where].append(row)
    curves = []
    for group, by_key in sorted(groups.items()):
        firsts = {key: _first(cells, key) for key, cells in by_key.items()}
        runs = {key: [run for _, run, *_ in cells] for key, cells in by_key.items()}
        names = curve_names(firsts, runs)
        for key in sorted(by_key, key=lambda key: (key.family, str(names[key]))):
            curves.append(_curve(group, key, names[key], by_key[key], tasks[group]))
    return curves


class _PointKeys:
    """The curves of rows by their points: the tasks of a group that a point averages belong together, also where
    several versions of them were asked."""

    def __init__(self, comparable: Comparable, rows: Sequence[EvaluationRow]) -> None:
        self._comparable = comparable
        self._asked: dict[tuple[object, ...], set[str]] = defaultdict(set)
        if comparable.several:
            for row in rows:
                if questions := comparable.key(row).questions:
                    self._asked[self._point(row)].add(questions)

    def of(self, row: EvaluationRow) -> CurveKey:
        return self._with_questions(self._comparable.key(row), row)

    def looped_of(self, row: EvaluationRow) -> CurveKey | None:
        key = self._comparable.looped_key(row)
        return None if key is None else self._with_questions(key, row)

    def _with_questions(self, key: CurveKey, row: EvaluationRow) -> CurveKey:
        if not self._asked:
            return key
        return key._replace(questions="; ".join(sorted(self._asked.get(self._point(row), ()))))

    def _point(self, row: EvaluationRow) -> tuple[object, ...]:
        return row.task_group, row.run, row.run_id, row.num_loops


def _first(cells: Cells, key: CurveKey) -> EvaluationRow:
    found = [rows[0] for rows in cells.values()]
    return next((row for row in found if row.family == key.family), found[0])


def _curve(group: str, key: CurveKey, name: CurveName, cells: Cells, tasks: set[str]) -> Curve:
    points = [mean_point(rows) for _, rows in sorted(cells.items())]
    metrics = {row.metric for rows in cells.values() for row in rows}
    metric = next(iter(metrics)) if len(metrics) == 1 else SCORE
    trained = tuple(point for point in points if point.row.is_trained_depth)
    extrapolated = tuple(point for point in points if not point.row.is_trained_depth)
    incomplete = sum(len(rows) < len(tasks) for rows in cells.values())
    warnings = list(_declines(trained, metric))
    if extrapolated:
        loops = ", ".join(map(str, sorted({point.row.num_loops for point in extrapolated})))
        warnings.append(f"{len(extrapolated)} points at loop counts it was not trained at ({loops}): in no fit")
    if incomplete:
        warnings.append(
            f"{incomplete} of {len(points)} points lack some of the group's {len(tasks)} tasks: not like with like"
        )
    return Curve(
        task_group=group, family=key.family, name=str(name), parts=name, key=key, metric=metric,
        points=trained, extrapolated=extrapolated, warnings=tuple(warnings),
    )  # fmt: skip


def _declines(points: Sequence[Point], metric: str) -> list[str]:
    """One line for each depth at which the mean over runs is worse than at the depth before, beyond example noise."""
    by_depth: dict[int, list[Point]] = defaultdict(list)
    for point in points:
        by_depth[point.depth].append(point)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    verb = "rises" if metric in LOWER_IS_BETTER else "falls"
    lines, before = [], None
    for depth, runs in sorted(by_depth.items()):
        mean = math.fsum(point.value for point in runs) / len(runs)
        stderr = math.hypot(*(point.stderr for point in runs)) / len(runs)
        if before is not None and sign * (mean - before[1]) < -max(ONE_SIDED_95 * math.hypot(stderr, before[2]), 1e-12):
            doubt = "" if stderr or before[2] else " (standard errors unknown)"
            lines.append(
                f"{metric} {verb} with depth: {before[1]:.4g} at {before[0]} layers, {mean:.4g} at {depth}{doubt}"
            )
        before = depth, mean, stderr
    return lines
