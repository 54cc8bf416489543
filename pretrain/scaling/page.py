"""The figure as one self-contained HTML page: panels with a choice of axis, values on hover, then the tables."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.rows.metrics import METRIC_NAMES
from pretrain.scaling.analysis import Analysis
from pretrain.scaling.axes import DEPTH, Axis, possible_axes, subsample
from pretrain.scaling.colours import MARKERS, PALETTE, Look, looks
from pretrain.scaling.curves import Curve
from pretrain.scaling.fit import Fit
from pretrain.scaling.floors import CHANCE
from pretrain.scaling.law import JointLaw
from pretrain.scaling.table import table_html
from pretrain.scaling.tables import make_tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up"}
"""plotly's names of matplotlib's markers."""
MAX_COLUMNS = 3
PANEL_HEIGHT = 380  # pixels

HOVER = (
    "<b>%{customdata[0]}</b>, %{customdata[9]}, step %{customdata[1]}<br>"
    "%{customdata[2]}: %{y:.4g} ± %{customdata[3]}<br>"
    "effective depth %{customdata[4]}, loops %{customdata[5]}<br>"
    "%{customdata[6]:.4s} parameters, tokens %{customdata[7]}<br>training FLOPs %{customdata[8]}<br>"
    "%{customdata[10]:.3e} inference FLOPs, %{customdata[11]} bytes of cache per token"
    "<extra>%{fullData.name}</extra>"
)

FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Scaling with loops: {title}</title><link rel="icon" href="data:,">
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .5rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #e6e6e6; }}
p.note {{ color: #666; margin: .4rem 0; }}
</style></head><body>
<h1>Scaling with loops: {title}</h1>
{body}
<details><summary>Runs</summary><p>{runs}</p></details>
</body></html>
"""


def write_page(analysis: Analysis, file: Path, *, colour_by: str | None = None) -> None:
    """Write the page: about 5 MB, mostly the plotting library, which is included so that the page works offline;
    `colour_by` as of `draw`."""
    look = looks(analysis.curves, colour_by)
    figures = [_curve_figure(analysis, look)]
    if analysis.isoplots:
        figures.append(_isoplot_figure(analysis, look))
    figures += [_law_figure(law, name) for name, law in analysis.determined_laws.items()]
    # without the button that uploads the figure
    config = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["sendChartToCloud"]}
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, div_id=f"figure-{index}", config=config)
        for index, figure in enumerate(figures)
    ]
    parts += [table_html(table) for table in make_tables(analysis)]
    runs = dict.fromkeys(point.row.run for curve in analysis.curves for point in curve.all_points)
    names = [html.escape(run) for run in runs]
    title = names[0] if len(names) == 1 else f"{len(names)} runs, {names[0]} to {names[-1]}"
    page = FRAME.format(body="\n".join(parts), title=title, runs=", ".join(names))
    file.write_text(page, encoding="utf-8")


def _curve_figure(analysis: Analysis, look: Mapping[tuple[str, str], Look]) -> "Figure":
    """One panel per task group, and one menu that changes the axis of all panels."""
    groups = analysis.task_groups
    figure, places = _panels(groups)
    shown_for: list[Axis] = []
    named: set[tuple[str, str]] = set()
    usable = possible_axes(analysis.curves)
    for axis in usable:
        for curve, fit in zip(analysis.curves, analysis.fits, strict=True):
            own = look[curve.family, curve.name]
            traces = [_points_trace(curve, axis, own)]
            if axis is DEPTH and fit and fit.has_slope:
                traces.append(_line_trace(curve, fit, own))
            place = places[groups.index(curve.task_group)]
            for trace in traces:
                is_new = (axis.name, curve.name) not in named  # each curve appears in the legend once
                named.add((axis.name, curve.name))
                figure.add_trace(trace | {"visible": axis is DEPTH, "showlegend": is_new}, row=place[0], col=place[1])
                shown_for.append(axis)
    figure.update_xaxes(type="log", title_text=DEPTH.label, nticks=5, tickangle=0)
    for group, (row, column) in zip(groups, places, strict=True):
        metric = next(curve.metric for curve in analysis.curves if curve.task_group == group)
        figure.update_yaxes(title_text=METRIC_NAMES.get(metric, metric), row=row, col=column)
        for name, floor in analysis.floors.get(group, {}).items():
            line = {"line_color": "#999", "line_width": 1, "line_dash": "dot" if name == CHANCE else "dash"}
            text, place = f"{name} {floor:.3g}", {"row": row, "col": column}
            figure.add_hline(floor, annotation_text=text, **place, **line)
    _mark_depths(figure, analysis, places)
    names = [key for key in figure.layout.to_plotly_json() if key.startswith("xaxis")]
    buttons = []
    for axis in usable:
        layout: dict[str, Any] = {f"{name}.title.text": axis.label for name in names}
        layout |= {f"{name}.tickmode": "array" if axis is DEPTH else "auto" for name in names}
        layout |= {f"{name}.autorange": True for name in names}
        visible = {"visible": [shown is axis for shown in shown_for]}
        buttons.append({"label": axis.name, "method": "update", "args": [visible, layout]})
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 36}}
    figure.update_layout(updatemenus=[menu | {"showactive": True}], margin_t=110)
    return figure


def _points_trace(curve: Curve, axis: Axis, look: Look) -> dict[str, Any]:
    placed = [(place, point) for place, point in axis.placed(curve.all_points) if point.row.family == curve.family]
    points = subsample(placed)
    details = []
    for _, point in points:
        row, error = point.row, f"{point.stderr:.2g}" if point.stderr else "unknown"
        costs = _known(row.tokens_seen), _known(row.train_flops), point.label, row.eval_flops_per_token
        costs = *costs, _known(row.cache_bytes_per_token)
        details.append((row.run, row.step, curve.metric, error, point.depth, row.num_loops, row.num_params, *costs))
    errors = [point.stderr for _, point in points]
    symbols = [SYMBOLS[look.marker] + ("" if point.row.is_trained_depth else "-open") for _, point in points]
    return _markers(
        curve.name, look, [place for place, _ in points], [point.value for _, point in points], details, HOVER,
        {"size": 9, "symbol": symbols},
    ) | {"error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1}}  # fmt: skip


def _known(count: float | None) -> str:
    return "unknown" if count is None else f"{count:.4g}"


def _line_trace(curve: Curve, fit: Fit, look: Look) -> dict[str, Any]:
    depths = np.geomspace(curve.points[0].depth, curve.points[-1].depth, 30)
    low, high = fit.alpha_interval
    hover = f"alpha {fit.alpha:.4g} [{low:.4g}, {high:.4g}]<br>beta {fit.beta:.4g}<extra></extra>"
    line = _line(curve.name, look, depths.tolist(), (fit.alpha * np.log(depths) + fit.beta).tolist())
    return line | {"name": html.escape(curve.name), "hovertemplate": hover}


def _markers(
    name: str, own: Look, x: list[float], y: list[float], details: Sequence[tuple[object, ...]], hover: str,
    look: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    marker = {"color": own.colour, "symbol": SYMBOLS[own.marker], **look}
    name = html.escape(name)
    return {
        "type": "scatter", "mode": "markers", "name": name, "legendgroup": name, "x": x, "y": y, "marker": marker,
        "customdata": details, "hovertemplate": hover,
    }  # fmt: skip


def _line(name: str, own: Look, x: list[float], y: list[float]) -> dict[str, Any]:
    line = {"color": own.colour, "width": 1.5}
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": html.escape(name),
        "x": x,
        "y": y,
        "line": line,
        "opacity": 0.6,
    }


def _mark_depths(figure: "Figure", analysis: Analysis, places: Sequence[tuple[int, int]]) -> None:
    """Put ticks at the depths that occur; by default there are none between powers of ten."""
    for group, (row, column) in zip(analysis.task_groups, places, strict=True):
        depths = sorted(
            {point.depth for curve in analysis.curves if curve.task_group == group for point in curve.all_points}
        )
        ticks = depths[:: math.ceil(len(depths) / 10)]
        figure.update_xaxes(tickmode="array", tickvals=ticks, ticktext=list(map(str, ticks)), row=row, col=column)


def _isoplot_figure(analysis: Analysis, look: Mapping[tuple[str, str], Look]) -> "Figure":
    groups = list(dict.fromkeys(isoplot.task_group for isoplot in analysis.isoplots))
    figure, places = _panels([f"{group} over training" for group in groups])
    named: set[str] = set()
    for number, isoplot in enumerate(analysis.isoplots):
        own = look.get((isoplot.family, isoplot.name), Look(PALETTE[number % len(PALETTE)], MARKERS[isoplot.family]))
        row, column = places[groups.index(isoplot.task_group)]
        shown = subsample(isoplot.points)
        losses = [point.loss for point in shown]
        details = [(point.run, point.step, point.num_loops) for point in shown]
        hover = (
            "<b>%{customdata[0]}</b>, step %{customdata[1]}, loops %{customdata[2]}<br>loss %{x:.4g}, "
            f"{html.escape(isoplot.metric)} %{{y:.4g}}<extra></extra>"
        )
        points = _markers(isoplot.name, own, losses, [point.value for point in shown], details, hover, {"size": 8})
        figure.add_trace(points | {"showlegend": isoplot.name not in named}, row=row, col=column)
        named.add(isoplot.name)
        if isoplot.line and isoplot.line.has_slope:
            fitted, ends = isoplot.line, [min(losses), max(losses)]
            line = _line(isoplot.name, own, ends, [fitted.slope * end + fitted.intercept for end in ends])
            figure.add_trace(line | {"showlegend": False, "hoverinfo": "skip"}, row=row, col=column)
        figure.update_yaxes(title_text=METRIC_NAMES.get(isoplot.metric, isoplot.metric), row=row, col=column)
    figure.update_xaxes(title_text="validation loss (nats per token)", autorange="reversed")
    return figure


def _law_figure(law: JointLaw, variant: str) -> "Figure":
    low, high = law.phi_interval
    title = f"joint law of {variant}" if variant else "joint law"
    figure, ((row, column),) = _panels([f"{title}: phi = {law.phi:.3g} [{low:.3g}, {high:.3g}]"])
    loops = np.array(law.num_loops)
    for num_loops in sorted(set(law.num_loops)):
        chosen = np.flatnonzero(loops == num_loops)
        trace = {
            "type": "scatter", "mode": "markers", "name": f"{num_loops} loop{'s' * (num_loops > 1)}",
            "x": law.predicted[chosen].tolist(), "y": law.losses[chosen].tolist(),
            "customdata": [(law.runs[i], float(law.equivalent_params[i]), float(law.tokens[i])) for i in chosen],
            "hovertemplate": "<b>%{customdata[0]}</b><br>law %{x:.4f}, measured %{y:.4f}<br>"
            "%{customdata[1]:.4s} equivalent parameters, %{customdata[2]:.4s} tokens",
        }  # fmt: skip
        figure.add_trace(trace, row=row, col=column)
    ends = [float(law.losses.min()), float(law.losses.max())]
    equal = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "line": {"color": "#888", "width": 1}}
    figure.add_trace(equal | {"showlegend": False, "hoverinfo": "skip"}, row=row, col=column)
    figure.update_xaxes(title_text="loss by the law (nats per token)")
    figure.update_yaxes(title_text="measured")
    return figure


def _panels(titles: Sequence[str]) -> tuple["Figure", list[tuple[int, int]]]:
    """An empty figure with one panel per title, and the (row, column) of each panel, from 1."""
    from plotly.subplots import make_subplots

    columns = min(MAX_COLUMNS, len(titles))
    num_rows = math.ceil(len(titles) / columns)
    gap = min(0.25, 110 / (PANEL_HEIGHT * num_rows))
    figure = make_subplots(
        rows=num_rows, cols=columns, subplot_titles=[html.escape(title) for title in titles], vertical_spacing=gap
    )
    figure.update_layout(template="plotly_white", height=PANEL_HEIGHT * num_rows + 90)
    return figure, [(index // columns + 1, index % columns + 1) for index in range(len(titles))]
