"""All analyses of a set of evaluation rows, computed once for the tables, the figure and the page."""

from collections.abc import Iterable
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

    @property
    def task_groups(self) -> list[str]:
        return list(dict.fromkeys(curve.task_group for curve in self.curves))


def analyse(rows: Iterable[EvaluationRow], metric: str | None = None) -> Analysis:
    """Analyse the rows of any number of runs and steps; `metric` is the one to use in task groups with several.

    Raises:
        ValueError: there are no rows, or `choose_metric` refuses the metric.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("there are no rows")
    chosen = choose_metric(rows, metric)
    curves = make_curves(latest(chosen))
    fits = [fit_curve(curve) for curve in curves]
    fit_of = {(curve.task_group, curve.family): fit for curve, fit in zip(curves, fits, strict=True) if fit}
    ratios = [
        ratio_of(group, fit, fit_of[group, "baseline"])
        for (group, family), fit in fit_of.items()
        if family == "looped" and (group, "baseline") in fit_of
    ]
    return Analysis(
        curves=curves, fits=fits, ratios=ratios, gaps=find_gaps(curves), law=fit_law(latest(rows)),
        isoplots=make_isoplots(chosen, rows),
    )  # fmt: skip
