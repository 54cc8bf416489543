"""How much of the gap between its two baselines a looped model covers, in percent (arXiv 2502.17416, eq. 1):

    % gap = 100 · (looped - iso-parameter) / (iso-FLOP - iso-parameter)

The iso-parameter baseline of k⊗L is an unlooped model with equally many parameters (k⊗1), the iso-FLOP baseline one
with equally many FLOPs per token (kL⊗1), both after the same number of training tokens, within `TOLERANCE`. Replicates
(seeds) are looped models of one curve (`comparable.py`) at one loop count, and baselines those of a curve that agrees
with it in all but the shape, equal by the rule above. A gap of losses is one of perplexities, as in the paper's tables.
They are averaged. If there are several, the best ones are compared too, as the paper does for addition, where training
is noisy and the question is what a model can learn.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, assert_never

import numpy as np

from pretrain.rows.metrics import LOWER_IS_BETTER
from pretrain.scaling.curves import Curve, Point

TOLERANCE = 0.01
"""Largest relative difference of "equal" models: k and kL layers have different norms, tokens come in whole batches."""

Statistic = Literal["mean", "best"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One looped model and its baselines in one task group; values of a missing baseline are None."""

    task_group: str
    metric: str
    statistic: Statistic
    """How the values summarise the replicates."""
    runs: tuple[str, ...]
    num_loops: int
    depth: int
    num_params: int
    value: float
    iso_param: float | None
    iso_flop: float | None

    @property
    def covered_pct(self) -> float | None:
        if self.iso_param is None or self.iso_flop is None or self.iso_param == self.iso_flop:
            return None
        return 100 * (self.value - self.iso_param) / (self.iso_flop - self.iso_param)


def find_gaps(curves: Sequence[Curve]) -> list[Gap]:
    """The gaps of all looped models with two or more loops, by task group; one loop is its own baseline."""
    baselines: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for curve in curves:
        if curve.family == "baseline":
            baselines[curve.task_group, curve.key.all_but_shape].extend(curve.points)
    gaps = []
    for curve in curves:
        if curve.family != "looped":
            continue
        group_baselines = _Baselines(baselines[curve.task_group, curve.key.all_but_shape])
        to_shown, metric = (np.exp, "ppl") if curve.metric == "nll" else (np.asarray, curve.metric)
        models: dict[tuple[float, ...], list[Point]] = defaultdict(list)
        for point in curve.own_points:
            if point.row.num_loops > 1:
                tokens = -1 if point.row.tokens_seen is None else point.row.tokens_seen
                key = (point.row.num_params, point.depth, point.row.num_loops, point.row.eval_flops_per_token, tokens)
                models[key].append(point)
        for _, seeds in sorted(models.items(), reverse=True):
            first = seeds[0]
            iso_param = group_baselines.like(first, "num_params")
            iso_flop = group_baselines.like(first, "eval_flops_per_token")
            iso_param, iso_flop = to_shown(iso_param), to_shown(iso_flop)
            values = to_shown(np.array([point.value for point in seeds]))
            statistics: tuple[Statistic, ...] = ("mean", "best") if len(seeds) > 1 else ("mean",)
            for statistic in statistics:
                of = partial(_summarise, statistic, metric)
                gaps.append(
                    Gap(
                        task_group=curve.task_group, metric=metric, statistic=statistic,
                        runs=tuple(point.row.run for point in seeds), num_loops=first.row.num_loops, depth=first.depth,
                        num_params=first.row.num_params, value=of(values),
                        iso_param=of(iso_param) if len(iso_param) else None,
                        iso_flop=of(iso_flop) if len(iso_flop) else None,
                    )
                )  # fmt: skip
    return gaps


def _summarise(statistic: Statistic, metric: str, values: np.ndarray) -> float:
    match statistic:
        case "mean":
            return float(values.mean())
        case "best":
            return float(values.min() if metric in LOWER_IS_BETTER else values.max())
    assert_never(statistic)


class _Baselines:
    """The baselines of a task group as columns."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.values = np.array([point.value for point in points])
        self.columns = {
            name: np.array([getattr(point.row, name) for point in points], dtype=float)
            for name in ("tokens_seen", "num_params", "eval_flops_per_token")
        }

    def like(self, point: Point, column: str) -> np.ndarray:
        """The values of the baselines that equal a point in `tokens_seen` and `column`; the unknown equals nothing."""
        is_equal = np.ones(len(self.values), dtype=bool)
        for name in (column, "tokens_seen"):
            wanted = float("nan") if getattr(point.row, name) is None else getattr(point.row, name)
            is_equal &= np.abs(self.columns[name] - wanted) <= TOLERANCE * wanted
        return self.values[is_equal]
