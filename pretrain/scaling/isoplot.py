"""Isoplots: downstream value against validation loss (log-perplexity) during training (arXiv 2502.17416, figs. 2, 7).

Models of equal loss that differ downstream differ in something the loss does not measure. Each step at which a run has
both values, at the same loop count, is a point; a straight line is fitted for each task group and family.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.config.saved_model import Family
from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.curves import mean_point

MIN_LOSSES = 3
"""Fewest distinct losses for a line."""


@dataclass(frozen=True, kw_only=True)
class IsoPoint:
    """One run at one loop count and step."""

    run: str
    num_loops: int
    step: int
    loss: float
    """Validation loss in nats per token."""
    value: float


@dataclass(frozen=True, kw_only=True)
class Isoplot:
    """The points of a task group and family, sorted by run, loop count and step."""

    task_group: str
    family: Family
    metric: str
    points: tuple[IsoPoint, ...]
    line: tuple[float, float] | None
    """Slope and intercept; None with fewer than `MIN_LOSSES` distinct losses."""


def make_isoplots(rows: Sequence[EvaluationRow], losses: Sequence[EvaluationRow]) -> list[Isoplot]:
    """Pair downstream values with losses; isoplots are sorted by task group and family.

    Args:
        rows: rows of all steps, one metric per task group; those of the validation text are ignored.
        losses: rows of all steps, of which the validation losses are used.
    """
    loss_at = {
        (row.run, row.num_loops, row.step): row.value
        for row in losses
        if row.task == "validation" and row.metric == "nll"
    }
    cells: dict[tuple[str, Family], dict[tuple[str, int, int], dict[str, EvaluationRow]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for row in rows:
        where = row.run, row.num_loops, row.step
        if row.task != "validation" and where in loss_at:
            cells[row.task_group, row.family][where][row.task] = row
    isoplots = []
    for (group, family), by_model in sorted(cells.items()):
        points = []
        for where, tasks in sorted(by_model.items()):
            run, num_loops, step = where
            value = mean_point(list(tasks.values())).value
            points.append(IsoPoint(run=run, num_loops=num_loops, step=step, loss=loss_at[where], value=value))
        metric = next(iter(next(iter(by_model.values())).values())).metric
        isoplots.append(
            Isoplot(task_group=group, family=family, metric=metric, points=tuple(points), line=_line(points))
        )
    return isoplots


def _line(points: Sequence[IsoPoint]) -> tuple[float, float] | None:
    losses = [point.loss for point in points]
    if len(set(losses)) < MIN_LOSSES:
        return None
    slope, intercept = np.polyfit(losses, [point.value for point in points], deg=1)
    return float(slope), float(intercept)
