"""All analyses of a set of evaluation rows, computed once for the tables, the figure and the page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.curves import Curve, make_curves
from pretrain.scaling.fit import Fit, Ratio, fit_curve, ratio_of
from pretrain.scaling.gap import Gap, find_gaps
from pretrain.scaling.isoplot import Isoplot, make_isoplots
from pretrain.scaling.law import JointLaw, fit_law
from pretrain.scaling.rows import choose_metric, latest


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The results. `fits` has one entry per curve; `law` is a string with the reason if no law could be fitted."""

    curves: list[Curve]
    fits: list[Fit | None]
    ratios: list[Ratio]
    gaps: list[Gap]
    law: JointLaw | str
    isoplots: list[Isoplot]
    left_out: list[str]
    """Results that are not finite and so no points, a line each."""

    @property
    def task_groups(self) -> list[str]:
        return list(dict.fromkeys(curve.task_group for curve in self.curves))


def analyse(rows: Iterable[EvaluationRow], metrics: Sequence[str] = ()) -> Analysis:
    """Analyse the rows of any number of runs and steps; `metrics` are the choices of `choose_metric`.

    Raises:
        ValueError: there are no rows, none has a finite value, or `choose_metric` refuses a choice.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("there are no rows")
    chosen = choose_metric(rows, metrics)
    # The latest step first: a run that diverged is not shown as it was before.
    newest = latest(chosen)
    curves = make_curves(_finite(newest))
    if not curves:
        raise ValueError(f"none of {len(newest)} results is finite: there is nothing to plot")
    fits = [fit_curve(curve) for curve in curves]
    fit_of = {(curve.task_group, curve.family): fit for curve, fit in zip(curves, fits, strict=True) if fit}
    ratios = [
        ratio_of(group, fit, fit_of[group, "baseline"])
        for (group, family), fit in fit_of.items()
        if family == "looped" and (group, "baseline") in fit_of
    ]
    return Analysis(
        curves=curves, fits=fits, ratios=ratios, gaps=find_gaps(curves), law=fit_law(_finite(latest(rows))),
        isoplots=make_isoplots(_finite(chosen), _finite(rows)),
        left_out=[
            f"run {row.run}, step {row.step}: {row.task} {row.metric} at {row.num_loops} loops is not finite: left out"
            for row in newest
            if not math.isfinite(row.value)
        ],
    )  # fmt: skip


def _finite(rows: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    return [row for row in rows if math.isfinite(row.value)]
