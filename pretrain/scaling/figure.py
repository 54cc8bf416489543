"""The figure as PNG and SVG: two panels per task group (depth and parameters, or the axes that are asked for), then
isoplots and the joint law, if any; of kinds of tasks one panel each (depth). What would say nothing is not drawn: depth
where all models have one, a law that its points do not determine. More curves than there are colours are dots instead
(`dots.py`) where their names differ, unless axes are asked for, and the joint law beside them is a figure of its own,
law.png and law.svg.

Points of a curve are the means over its seeds, joined and named k⊗L, with the standard deviation over seeds, or the
standard error over examples where there is one; small dots are the single seeds. Loop counts that a model was not
trained at are hollow and joined by dots. The figure is at most two panels wide, so that its smallest type has 9 pixels
where it is shown 850 pixels wide.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.rows.metrics import LOWER_IS_BETTER, METRIC_NAMES, possible_range
from pretrain.scaling.analysis import Analysis
from pretrain.scaling.axes import DEPTH, Axis, informative_axes, subsample
from pretrain.scaling.colours import MARKERS, PALETTE, Look, looks
from pretrain.scaling.curves import Curve
from pretrain.scaling.dots import draw_dots
from pretrain.scaling.fit import NO_SLOPE, Fit
from pretrain.scaling.floors import FLOOR_LINES
from pretrain.scaling.isoplot import Isoplot
from pretrain.scaling.kinds import SlopeDifference
from pretrain.scaling.labels import Label, place_labels
from pretrain.scaling.law import JointLaw
from pretrain.scaling.spots import Spot, dodge, meaning_of_bars, spots_of
from pretrain.scaling.style import GREY, draw_grid_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
PANEL_WIDTH, PANEL_HEIGHT = 5.4, 3.7
LEFT, RIGHT, TOP, BOTTOM = 0.8, 0.25, 0.4, 0.55
"""Inches around the axes of a panel: for the numbers and names of the axes, and the title."""
LEGEND_LINE = 0.19
"""Inches of a line of a legend."""
SHORT, SHORT_COLUMNS = 12, 4
"""Letters of names that stand beside each other in a legend, and how many do."""
LETTERS = 62
"""Letters of a line of a legend; a longer name has two."""
LINE: dict[str, Any] = {"linewidth": 1.6, "alpha": 0.5, "zorder": 1}
Looks = dict[tuple[str, str], Look]
Labels = list[tuple["Axes", list[Label]]]
DrawPanel = Callable[["Axes", Labels], None]

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


def draw(
    analysis: Analysis, files: Sequence[Path], *, colour_by: str | None = None, wanted: Sequence[Axis] = ()
) -> list[str]:
    """Draw the figure and save it to every file.

    Args:
        analysis: what is drawn.
        files: their suffix is the format. Where there is nothing to draw, those that are there are removed.
        colour_by: a key of the configuration (`colours.py`).
        wanted: the axes of the panels of a task group; by default the informative ones.

    Returns:
        What is not drawn as it would say nothing, and why, a line each.
    """
    num_curves = Counter(curve.task_group for curve in analysis.curves)
    laws = [partial(_draw_law, law, name) for name, law in analysis.determined_laws.items()]
    beside = [file.with_name(f"law{file.suffix}") for file in files]
    note = analysis.note
    if max(num_curves.values()) > len(PALETTE) and not (colour_by or wanted or analysis.is_of_kinds):
        undrawn = draw_dots(analysis, files, note)
        _draw_panels(laws, 1, beside, note)
        return undrawn + _undetermined(analysis)
    _draw_panels([], 0, beside, note)
    panels = _panels(analysis, looks(analysis.curves, colour_by), wanted)
    curves, isoplots = Counter[str](), Counter[str]()  # lines of their names in the legend of each group
    for curve, fit in zip(analysis.curves, analysis.fits, strict=True):
        curves[curve.task_group] += len(_lines(_curve_label(curve, fit)))
    for isoplot in analysis.isoplots:
        isoplots[isoplot.task_group] += len(_lines(_isoplot_label(isoplot)))
    most = max([*curves.values(), *isoplots.values()], default=0) + 1
    most += max(map(len, analysis.floors.values()), default=0) + 2 * len(analysis.differences) + 1  # what bars are
    _draw_panels([*panels, *laws], most, files, note)
    return _of_one_depth(analysis, wanted) + _undetermined(analysis)


def _draw_panels(panels: Sequence[DrawPanel], most: int, files: Sequence[Path], note: str) -> None:
    """Panels beside and below each other, with room for `most` lines in the legend of each, above the note; without
    any, files of that name, which are of other rows, are removed."""
    if not panels:
        for file in files:
            file.unlink(missing_ok=True)
        return
    columns = min(COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    labels: Labels = []
    width, height = PANEL_WIDTH * columns, (PANEL_HEIGHT + LEGEND_LINE * most) * num_rows
    with new_figure(files, width, height, note) as figure:
        figure.set_layout_engine("none")  # each panel has its place, and its legend one below it
        height = figure.get_figheight()
        for number, panel in enumerate(panels):
            row, column = divmod(number, columns)
            left, top = PANEL_WIDTH * column + LEFT, height - (PANEL_HEIGHT + LEGEND_LINE * most) * row - TOP
            size = PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM
            axes = figure.add_axes((left / width, (top - size[1]) / height, size[0] / width, size[1] / height))
            axes.margins(x=0.1, y=0.12)
            draw_grid_lines(axes)
            panel(axes, labels)
            _legend(axes, (left - 0.5) / width, (top - size[1] - BOTTOM) / height)
        place_labels(figure, labels)


def _axes_of(analysis: Analysis, group: str, wanted: Sequence[Axis]) -> Sequence[Axis]:
    """The axes of the panels of a task group."""
    found = informative_axes([curve for curve in analysis.curves if curve.task_group == group])
    return wanted or [axis for axis in found if axis is DEPTH or not analysis.is_of_kinds]


def _of_one_depth(analysis: Analysis, wanted: Sequence[Axis]) -> list[str]:
    of_depth: dict[float, list[str]] = {}
    for group in () if wanted else analysis.task_groups:
        if DEPTH not in _axes_of(analysis, group, wanted):
            depth = next(curve.all_points[0].depth for curve in analysis.curves if curve.task_group == group)
            of_depth.setdefault(depth, []).append(group)
    return [
        f"not drawn against depth: {', '.join(groups)}: all models are {depth:g} layers deep"
        for depth, groups in of_depth.items()
    ]


def _undetermined(analysis: Analysis) -> list[str]:
    found = []
    for name, law in analysis.laws.items():
        if isinstance(law, JointLaw) and law.undetermined:
            of_variant = f" of {name}" if len(analysis.laws) > 1 else ""
            found.append(f"not drawn: joint law{of_variant}: {law.undetermined}")
    return found


def _panels(analysis: Analysis, look: Looks, wanted: Sequence[Axis]) -> list[DrawPanel]:
    panels: list[DrawPanel] = []
    for group in analysis.task_groups:
        fitted = [
            (curve, fit) for curve, fit in zip(analysis.curves, analysis.fits, strict=True) if curve.task_group == group
        ]
        floors = analysis.floors.get(group, {})
        panels += [partial(_draw_group, fitted, axis, look, floors) for axis in _axes_of(analysis, group, wanted)]
    if analysis.differences:
        panels[-1] = partial(_draw_last_kind, panels[-1], analysis.differences)
    for group in dict.fromkeys(isoplot.task_group for isoplot in analysis.isoplots):
        mine = [isoplot for isoplot in analysis.isoplots if isoplot.task_group == group]
        panels.append(partial(_draw_isoplot, mine, look))
    return panels


def _draw_group(
    fitted: Sequence[tuple[Curve, Fit | None]], axis: Axis, look: Looks, floors: Mapping[str, float], axes: "Axes",
    labels: Labels,
) -> None:  # fmt: skip
    low, high = possible_range(fitted[0][0].metric)
    axes.set_xscale("log", base=axis.base)
    places = {place for curve, _ in fitted for place, _ in axis.placed(curve.all_points)}
    if len(places) == 1:
        axes.set_xlim(min(places) / 2, max(places) * 2)
    drawn = dodge([(curve, spots_of(curve, axis)) for curve, _ in fitted])
    named: list[Label] = []
    for (curve, fit), (_, spots) in zip(fitted, drawn, strict=True):
        colour, marker = look[curve.family, curve.name]
        label = _curve_label(curve, fit if axis is DEPTH else None)
        if axis is DEPTH and fit and fit.has_slope:
            ends = np.array([curve.points[0].depth, curve.points[-1].depth])
            axes.plot(ends, np.clip(fit.alpha * np.log(ends) + fit.beta, low, high), color=colour, **LINE)
        trained = [spot for spot in spots if spot.is_trained]
        _join(axes, trained, colour, "-")
        for model in dict.fromkeys(spot.model for spot in spots if not spot.is_trained):
            beyond = [spot for spot in spots if spot.model == model and not spot.is_trained]
            own = [spot for spot in trained if spot.model == model]
            _join(axes, sorted([*own[-1:], *beyond], key=lambda spot: spot.place), colour, ":")
        for is_trained in (True, False):
            own = [spot for spot in spots if spot.is_trained is is_trained and spot.is_own]
            face = colour if is_trained else "white"
            _draw_spots(axes, own, (low, high), color=colour, marker=marker, markerfacecolor=face)
        axes.plot([], [], color=colour, marker=marker, markersize=7, linewidth=1.2, label=label)
        seeds = [(spot.place, value) for spot in spots if spot.is_own for value in spot.seeds if len(spot.seeds) > 1]
        if seeds:
            x, y = zip(*subsample(seeds), strict=True)
            axes.plot(x, y, ".", color=colour, markersize=3.5, alpha=0.6, linestyle="none", zorder=3)
        named += [Label(spot.place, spot.value, spot.label, colour, spot.error) for spot in spots if spot.is_own]
    labels.append((axes, named))
    if axis is DEPTH:
        ticks = sorted({point.depth for curve, _ in fitted for point in curve.all_points})
        axes.set_xticks(ticks if len(ticks) <= MAX_TICKS else ticks[:: math.ceil(len(ticks) / MAX_TICKS)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xticks([], minor=True)
    else:
        _few_ticks(axes)
    if bars := meaning_of_bars([spot for _, spots in drawn for spot in spots if spot.is_own]):
        axes.plot([], [], color="#666666", marker="|", markersize=11, linestyle="none", label=bars)
    metric = fitted[0][0].metric
    for name, floor in floors.items():
        axes.axhline(
            floor, color=GREY, linestyle=FLOOR_LINES[name], linewidth=1.2, zorder=1, label=f"{name} {floor:.3g}"
        )
    _keep_within(axes, low, high)
    name_axes(axes, fitted[0][0].task_group, axis.label, metric)
    if any(curve.extrapolated for curve, _ in fitted):
        axes.plot([], [], "o", color="#666666", markerfacecolor="white", label="hollow: loops it was not trained with")


def _draw_last_kind(
    panel: Callable[["Axes", Labels], None], differences: Sequence[SlopeDifference], axes: "Axes", labels: Labels
) -> None:
    """A panel with the differences of slopes below its legend."""
    panel(axes, labels)
    for found in differences:
        low, high = found.fit.alpha_interval
        slope = f"{found.fit.alpha:+.3g} log D [{low:+.3g}, {high:+.3g}]"
        axes.plot([], [], " ", label=f"{' − '.join(found.kinds)}, {found.curve.name}:\n{slope}")


def _curve_label(curve: Curve, fit: Fit | None) -> str:
    return curve.name + (f": {_slope_text(fit)}" if fit else "")


def _isoplot_label(isoplot: Isoplot) -> str:
    line = isoplot.line
    if line is None:
        return isoplot.name
    low, high = line.slope_interval
    slope = f"{line.slope:+.3g} per nat [{low:+.3g}, {high:+.3g}]" if line.has_slope else NO_SLOPE
    return f"{isoplot.name}: {slope}"


def _slope_text(fit: Fit) -> str:
    low, high = fit.alpha_interval
    return f"{fit.alpha:+.3g} log D [{low:+.3g}, {high:+.3g}]" if fit.has_slope else NO_SLOPE


def _join(axes: "Axes", spots: Sequence[Spot], colour: str, style: str) -> None:
    places, values = [spot.place for spot in spots], [spot.value for spot in spots]
    axes.plot(places, values, style, color=colour, linewidth=0.9, alpha=0.8, zorder=2)


def _draw_spots(axes: "Axes", spots: Sequence[Spot], span: tuple[float, float], **look: Any) -> None:
    """Means with their errors, which end where values end."""
    if not spots:
        return
    values = np.array([spot.value for spot in spots])
    errors = np.array([spot.error for spot in spots])
    bounds = np.stack([np.minimum(errors, values - span[0]), np.minimum(errors, span[1] - values)]).clip(min=0)
    axes.errorbar(
        [spot.place for spot in spots], values, bounds if errors.any() else None, markersize=7, elinewidth=1.2,
        capsize=3, linestyle="none", zorder=4, **look,
    )  # fmt: skip


def _keep_within(axes: "Axes", low: float, high: float) -> None:
    """Limit the vertical axis to what values can be; an axis of equal values gets a height."""
    bottom, top = axes.get_ylim()
    if top - bottom < (0.02 if math.isfinite(high) else 1e-6 * abs(top)):
        bottom, top = bottom - 0.05, top + 0.05
    axes.set_ylim(max(bottom, low), min(top, high))
    for line in axes.lines:
        line.set_clip_on(False)  # a marker at the limit is whole; all of them are within it


def _draw_isoplot(isoplots: Sequence[Isoplot], look: Looks, axes: "Axes", _: Labels) -> None:
    low, high = possible_range(isoplots[0].metric)
    for number, isoplot in enumerate(isoplots):
        own = Look(PALETTE[number % len(PALETTE)], MARKERS[isoplot.family])
        colour, marker = look.get((isoplot.family, isoplot.name), own)
        points = subsample(isoplot.points)
        losses = [point.loss for point in points]
        if isoplot.line and isoplot.line.has_slope:
            line, ends = isoplot.line, np.array([min(losses), max(losses)])
            axes.plot(ends, np.clip(line.slope * ends + line.intercept, low, high), color=colour, **LINE)
        values = [point.value for point in points]
        axes.plot(
            losses, values, color=colour, marker=marker, markersize=4.5, label=_isoplot_label(isoplot),
            linestyle="none", alpha=0.7,
        )  # fmt: skip
    _keep_within(axes, low, high)
    axes.invert_xaxis()  # the loss falls in training: time runs to the right
    name_axes(axes, f"{isoplots[0].task_group} over training", "validation loss (nats per token)", isoplots[0].metric)


def _draw_law(law: JointLaw, variant: str, axes: "Axes", _: Labels) -> None:
    loops = sorted(set(law.num_loops))
    named = loops[:: math.ceil(len(loops) / MAX_TICKS)]
    for num_loops in loops:
        chosen = np.array(law.num_loops) == num_loops
        label = f"{num_loops} loop{'s' * (num_loops > 1)}" if num_loops in named else None
        axes.plot(law.predicted[chosen], law.losses[chosen], "o", markersize=5, label=label, markeredgecolor="white")
    ends = [law.losses.min(), law.losses.max()]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=1)
    low, high = law.phi_interval
    worth = f"phi = {law.phi:.3g} [{low:.3g}, {high:.3g}]"
    below = {"ha": "right", "va": "bottom", "fontsize": 9, "color": "#666666"}  # the points lie on the other diagonal
    axes.text(0.98, 0.03, variant.replace(", ", "\n"), transform=axes.transAxes, **below)
    name_axes(axes, f"joint law: {worth}", "loss by the law (nats per token)", "nll")


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


def name_axes(axes: "Axes", title: str, x_label: str, metric: str) -> None:
    """Title and names of the axes of a panel with values of a metric."""
    better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    axes.set_title(title.replace("$", r"\$"))
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{METRIC_NAMES.get(metric, metric)}, {better}".replace("$", r"\$"))


def _legend(axes: "Axes", left: float, top: float) -> None:
    """Below the panel, at a place of the figure, where it hides no point."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        short = max(map(len, names)) < SHORT
        names = ["\n".join(_lines(name)).replace("$", r"\$") for name in names]
        axes.legend(
            handles, names, loc="upper left", bbox_to_anchor=(left, top), bbox_transform=axes.figure.transFigure,
            ncols=SHORT_COLUMNS if short else 1, borderaxespad=0, handlelength=1.6, labelspacing=0.25,
        )  # fmt: skip


def _lines(name: str) -> list[str]:
    """Of a legend; a name that has some already keeps them."""
    return name.splitlines() if "\n" in name else wrap(name, LETTERS, max_lines=2, subsequent_indent="  ")
