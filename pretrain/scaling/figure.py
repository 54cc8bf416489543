"""The figure as PNG and SVG: one panel per task group and axis, then the isoplots and the joint law, if any."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.scaling.analysis import Analysis
from pretrain.scaling.axes import DEPTH, Axis, informative_axes, subsample
from pretrain.scaling.curves import LOWER_IS_BETTER, METRIC_NAMES, Curve
from pretrain.scaling.fit import NO_LINE, Fit
from pretrain.scaling.isoplot import Isoplot
from pretrain.scaling.law import JointLaw
from pretrain.scaling.style import BLUE, GREEN, RED, draw_grid_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"looped": (BLUE, "o"), "baseline": (RED, "s"), "regularised": (GREEN, "^")}
"""Colour and marker of each family."""
MARKERS: dict[str, Any] = {"markeredgecolor": "white", "linestyle": "none"}
LINE: dict[str, Any] = {"linewidth": 1.4, "alpha": 0.55, "zorder": 1}

MAX_TICKS = 10
MAX_NUMBERS = 5
"""Most ticks on an axis with long numbers."""
ROUND_NUMBERS = (
    (1.0,),
    (1.0, 2.0, 5.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    tuple(tenths / 10 for tenths in range(10, 100)),
)
"""Candidate ticks within a decade, from few to many."""

MAX_SEARCHED = 100
"""Most points of a panel for which matplotlib searches the best position of the legend."""


def draw(analysis: Analysis, files: Sequence[Path]) -> None:
    """Draw the figure and save it to every file."""
    shown = informative_axes(analysis.curves)
    panels = _panels(analysis, shown)
    columns = len(shown) if len(shown) > 1 else min(2 if len(panels) == 4 else 3, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    with new_figure(files, 0.6 + 4.6 * columns, 0.3 + 3.7 * num_rows) as figure:
        all_axes = list(figure.subplots(num_rows, columns, squeeze=False).flat)
        for axes, panel in zip(all_axes, panels, strict=False):
            axes.margins(x=0.06, y=0.12)
            draw_grid_lines(axes)
            panel(axes)
        for axes in all_axes[len(panels) :]:
            axes.remove()


def _panels(analysis: Analysis, shown: Sequence[Axis]) -> list[Callable[["Axes"], None]]:
    panels: list[Callable[[Axes], None]] = []
    for group in analysis.task_groups:
        fitted = [
            (curve, fit) for curve, fit in zip(analysis.curves, analysis.fits, strict=True) if curve.task_group == group
        ]
        panels += [partial(_draw_group, fitted, axis) for axis in shown]
    for group in dict.fromkeys(isoplot.task_group for isoplot in analysis.isoplots):
        panels.append(partial(_draw_isoplot, [isoplot for isoplot in analysis.isoplots if isoplot.task_group == group]))
    if isinstance(analysis.law, JointLaw):
        panels.append(partial(_draw_law, analysis.law))
    return panels


def _draw_group(fitted: Sequence[tuple[Curve, Fit | None]], axis: Axis, axes: "Axes") -> None:
    for curve, fit in fitted:
        colour, marker = STYLES[curve.family]
        label = curve.family
        if axis is DEPTH and fit:
            label += f": {fit.alpha:+.3g} log D {'+' if fit.beta >= 0 else '−'} {abs(fit.beta):.3g}"
            ends = np.array([curve.points[0].depth, curve.points[-1].depth])
            axes.plot(ends, fit.alpha * np.log(ends) + fit.beta, color=colour, **LINE)
        elif axis is DEPTH:
            label += f" ({NO_LINE})"
        points = subsample(axis.placed(curve.points))
        places, values = [place for place, _ in points], [point.value for _, point in points]
        errors = [point.stderr for _, point in points]
        look: dict[str, Any] = MARKERS | {"color": colour, "marker": marker, "label": label}
        axes.errorbar(places, values, errors if any(errors) else None, markersize=6, elinewidth=1, capsize=2, **look)
    axes.set_xscale("log", base=axis.base)
    if axis is DEPTH:
        ticks = sorted({point.depth for curve, _ in fitted for point in curve.points})
        axes.set_xticks(ticks if len(ticks) <= MAX_TICKS else ticks[:: math.ceil(len(ticks) / MAX_TICKS)])
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        _few_ticks(axes)
    metric, num_points = fitted[0][0].metric, sum(len(curve.points) for curve, _ in fitted)
    _name(axes, fitted[0][0].task_group, axis.label, metric, rises=metric not in LOWER_IS_BETTER, num_points=num_points)


def _draw_isoplot(isoplots: Sequence[Isoplot], axes: "Axes") -> None:
    for isoplot in isoplots:
        colour, marker = STYLES[isoplot.family]
        points = subsample(isoplot.points)
        losses = [point.loss for point in points]
        label = isoplot.family
        if isoplot.line:
            slope, intercept = isoplot.line
            label += f": {slope:+.3g} per nat"
            ends = np.array([min(losses), max(losses)])
            axes.plot(ends, slope * ends + intercept, color=colour, **LINE)
        values = [point.value for point in points]
        axes.plot(losses, values, color=colour, marker=marker, markersize=5, label=label, **MARKERS)
    axes.invert_xaxis()  # the loss falls in training: time runs to the right
    metric, num_points = isoplots[0].metric, sum(len(isoplot.points) for isoplot in isoplots)
    title, x_label = f"{isoplots[0].task_group} over training", "validation loss (nats per token)"
    _name(axes, title, x_label, metric, rises=metric not in LOWER_IS_BETTER, num_points=num_points)


def _draw_law(law: JointLaw, axes: "Axes") -> None:
    loops = sorted(set(law.num_loops))
    named = loops[:: math.ceil(len(loops) / MAX_TICKS)]
    for num_loops in loops:
        chosen = np.array(law.num_loops) == num_loops
        label = f"{num_loops} loop{'s' * (num_loops > 1)}" if num_loops in named else None
        axes.plot(law.predicted[chosen], law.losses[chosen], marker="o", markersize=5, label=label, **MARKERS)
    ends = [law.losses.min(), law.losses.max()]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=1)
    low, high = law.phi_interval
    title = f"joint law: phi = {law.phi:.3g} [{low:.3g}, {high:.3g}]"
    _name(axes, title, "loss by the law (nats per token)", "nll", rises=True, num_points=len(law.losses))


def _few_ticks(axes: "Axes") -> None:
    """Label a few values of a logarithmic axis, even if it spans less than a decade and so has no power of ten."""
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for mantissas in ROUND_NUMBERS:
        candidates = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) > 2:
            break
    ticks = ticks[:: math.ceil(len(ticks) / MAX_NUMBERS) or 1]
    names = [f"{tick:.2g}".replace("e+0", "e").replace("e+", "e") if tick >= 1e4 else f"{tick:g}" for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_xticks([], minor=True)


def _name(axes: "Axes", title: str, x_label: str, metric: str, *, rises: bool, num_points: int) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(METRIC_NAMES.get(metric, metric))
    corner = "upper left" if rises else "upper right"  # normally free, and costs no search over all points
    axes.legend(loc="best" if num_points <= MAX_SEARCHED else corner)
