"""Isoplots: downstream value against validation loss (log-perplexity) during training (arXiv 2502.17416, figs. 2, 7).

Models of equal loss that differ downstream differ in something the loss does not measure. Each step at which a run has
both values, at the same loop count, is a point; a straight line is fitted for each task group and curve, from a step on
where the relation is linear (the paper's, from 120,000 of 400,000 on). Its interval resamples whole runs where there
are several, as the steps of one are not independent, and points where there is one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.config.saved_model import Family
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.metrics import SCORE
from pretrain.scaling.comparable import FORM, VALIDATION, Comparable, CurveKey, curve_names
from pretrain.scaling.curves import mean_point

MIN_LOSSES = 3
"""Fewest distinct losses for a line."""
NUM_DRAWS = 500


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
class IsoLine:
    slope: float
    """Per nat."""
    intercept: float
    slope_interval: tuple[float, float]
    """95%."""

    @property
    def has_slope(self) -> bool:
        return self.slope_interval[0] > 0 or self.slope_interval[1] < 0


@dataclass(frozen=True, kw_only=True)
class Isoplot:
    """The points of a curve over training, sorted by run, loop count and step."""

    task_group: str
    family: Family
    name: str
    """As of a `Curve`."""
    metric: str
    points: tuple[IsoPoint, ...]
    line: IsoLine | None
    """None with fewer than `MIN_LOSSES` distinct losses."""


def make_isoplots(
    rows: Sequence[EvaluationRow], losses: Sequence[EvaluationRow], *, from_step: int = 0
) -> list[Isoplot]:
    """Pair downstream values with losses; isoplots are sorted by task group and name.

    Args:
        rows: rows of all steps, one metric per task; those of the validation text are ignored.
        losses: rows of all steps, of which the validation losses are used.
        from_step: first step that counts.
    """
    loss_at = {
        (row.run, row.num_loops, row.step): row.value
        for row in losses
        if row.task == VALIDATION and row.metric == "nll" and row.step >= from_step
    }
    if not loss_at:
        return []
    comparable = Comparable(rows, FORM)
    groups: dict[str, dict[CurveKey, dict[tuple[str, int, int], dict[str, EvaluationRow]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in rows:
        where = row.run, row.num_loops, row.step
        if row.task != VALIDATION and where in loss_at and row.is_trained_depth:
            key = comparable.key(row)._replace(tokens=None)  # they grow along the points
            groups[row.task_group][key][where][row.task] = row
    isoplots = []
    for group, by_key in sorted(groups.items()):
        firsts = {key: next(iter(next(iter(points.values())).values())) for key, points in by_key.items()}
        names = curve_names(firsts, {key: [run for run, _, _ in points] for key, points in by_key.items()})
        for key in sorted(by_key, key=lambda key: (key.family, str(names[key]))):
            points, metrics = [], set()
            for where, tasks in sorted(by_key[key].items()):
                run, num_loops, step = where
                value = mean_point(list(tasks.values())).value
                points.append(IsoPoint(run=run, num_loops=num_loops, step=step, loss=loss_at[where], value=value))
                metrics |= {row.metric for row in tasks.values()}
            if len({point.step for point in points}) == 1:
                continue  # nothing of it is over training
            metric = metrics.pop() if len(metrics) == 1 else SCORE
            isoplots.append(
                Isoplot(
                    task_group=group, family=key.family, name=str(names[key]), metric=metric, points=tuple(points),
                    line=_line(points),
                )
            )  # fmt: skip
    return isoplots


def _line(points: Sequence[IsoPoint]) -> IsoLine | None:
    losses = np.array([point.loss for point in points])
    if len(np.unique(losses)) < MIN_LOSSES:
        return None
    values = np.array([point.value for point in points])
    slope, intercept = np.polyfit(losses, values, deg=1)
    runs = np.unique([point.run for point in points], return_inverse=True)[1]
    units = runs if runs.max() else np.arange(len(points))
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    rng, slopes = np.random.default_rng(0), []
    for _ in range(NUM_DRAWS):
        drawn = np.concatenate([members[unit] for unit in rng.integers(0, len(members), len(members))])
        x, y = losses[drawn], values[drawn]
        centred = x - x.mean()
        if centred @ centred > 0:
            slopes.append(centred @ (y - y.mean()) / (centred @ centred))
    low, high = np.percentile(slopes, [2.5, 97.5])
    return IsoLine(slope=float(slope), intercept=float(intercept), slope_interval=(float(low), float(high)))
