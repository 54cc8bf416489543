"""Points and curves: the mean of a task group for each run and loop count, by task group and family.

A run is identified by its name. Runs of the same family and depth are replicates (usually seeds) and stay separate
points of one curve, because the intervals of `fit.py` come from their scatter.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config.saved_model import Family
from pretrain.rows.evaluation import EvaluationRow

LOWER_IS_BETTER = frozenset({"nll", "ppl", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})
"""Metrics where a lower value is better; for all others a higher one is."""

ACCURACIES = frozenset({"acc", "accuracy", "acc_norm", "em", "exact_match"})
"""Metrics that are the share of correct answers, so binomial over examples."""

METRIC_NAMES = {
    "nll": "loss (nats per token)",
    "acc": "accuracy",
    "exact_match": "exact match",
    "bits_per_byte": "bits per byte",
}
"""Axis labels of metrics; other metrics are labelled with their name."""

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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one task group and family over all runs, sorted by depth."""

    task_group: str
    family: Family
    metric: str
    points: tuple[Point, ...]
    warnings: tuple[str, ...] = ()
    """Caveats about the curve, one line each."""

    @property
    def num_depths(self) -> int:
        return len({point.depth for point in self.points})


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


def make_curves(rows: Sequence[EvaluationRow]) -> list[Curve]:
    """Average the tasks of each group; curves are sorted by task group and family.

    Args:
        rows: one metric per task group, one step per run and task (`rows.choose_metric`, `rows.latest`).
    """
    cells: dict[tuple[str, Family], dict[tuple[int, str, int], list[EvaluationRow]]] = defaultdict(
        lambda: defaultdict(list)
    )
    tasks: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        cells[row.task_group, row.family][row.effective_depth, row.run, row.num_loops].append(row)
        tasks[row.task_group].add(row.task)
    curves = []
    for (group, family), by_model in sorted(cells.items()):
        metric = next(iter(by_model.values()))[0].metric
        points = tuple(mean_point(task_rows) for _, task_rows in sorted(by_model.items()))
        incomplete = sum(len(task_rows) < len(tasks[group]) for task_rows in by_model.values())
        warnings = list(_declines(points, metric))
        if incomplete:
            warnings.append(
                f"{incomplete} of {len(points)} points lack some of the group's "
                f"{len(tasks[group])} tasks: not like with like"
            )
        curves.append(Curve(task_group=group, family=family, metric=metric, points=points, warnings=tuple(warnings)))
    return curves


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
