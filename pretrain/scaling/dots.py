"""The figure of more curves than there are colours, such as the designs of a loop: one line a curve, best on top.

A filled dot is the mean over seeds at the most loops that the model was trained with, a hollow one at the most loops
beyond; bars are ± the standard deviation over seeds (of one seed, the standard error over questions), small dots the
seeds. A family of rivals, the unlooped models, crosses all lines, and so do chance and the best shortcut. Other loop
counts, costs and points over training are on the page.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from pretrain.rows.metrics import LOWER_IS_BETTER, METRIC_NAMES, possible_range
from pretrain.scaling.analysis import Analysis
from pretrain.scaling.axes import DEPTH, subsample
from pretrain.scaling.floors import FLOOR_LINES
from pretrain.scaling.spots import Spot, spots_of
from pretrain.scaling.style import BLUE, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLUMNS = 2
LINE, TOP, BOTTOM, LEGEND = 0.28, 0.65, 0.6, 0.2
"""Inches of a line, of what stands above and below the lines, and of a line of the legend."""
NAMES, PANEL, BETWEEN = 3.3, 3.4, 0.3
"""Inches: of the names of the lines, of a panel, and between two."""
LETTERS, SIZE = 44, 9.5
"""Of a line of a name, which goes on in a second one, and its type."""
NEAR = 0.11
"""Share of the width of a panel within which names of two rivals go apart."""
SHIFT = 0.11
"""Of the filled dot upwards and the hollow one downwards, in lines."""


class Dots(NamedTuple):
    """One line of a panel."""

    name: str
    trained: Spot | None
    """At the most loops it was trained with, of those that were scored."""
    beyond: Spot | None
    """At the most loops, if it was not trained with so many."""

    @property
    def rank(self) -> float:
        """What lines are sorted by: the value at the most loops."""
        spot = self.beyond or self.trained
        return math.nan if spot is None else spot.value


class Panel(NamedTuple):
    """A task group."""

    title: str
    metric: str
    lines: list[Dots]
    rivals: list[Spot]
    floors: Mapping[str, float]


def draw_dots(analysis: Analysis, files: Sequence[Path], note: str) -> list[str]:
    """Draw the figure, with the note below it, and save it to every file. Where two lines would have one name, it is
    not drawn, the files that are there are removed, and the reason is returned."""
    panels = [_panel(analysis, group) for group in analysis.task_groups]
    for panel in panels:
        names = Counter(line.name for line in panel.lines)
        name, num_lines = names.most_common(1)[0]
        if num_lines > 1:
            for file in files:
                file.unlink(missing_ok=True)
            return [f"not drawn: {len(panel.lines)} models, of which {num_lines} would be called {name}"]
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    orders = [_order(row) for row in rows]
    width = NAMES + min(len(panels), COLUMNS) * (PANEL + BETWEEN)
    handles, columns = _handles(panels), min(COLUMNS, len(panels))
    height = sum(LINE * len(order) + TOP + BOTTOM for order in orders) + LEGEND * (
        math.ceil(len(handles) / columns) + 0.6
    )
    with new_figure(files, width, height, note) as figure:
        figure.set_layout_engine("none")  # the lines of neighbours are beside each other
        top = height = figure.get_figheight()
        for row, order in zip(rows, orders, strict=True):
            bottom = top - TOP - LINE * len(order)
            for column, panel in enumerate(row):
                left = NAMES + column * (PANEL + BETWEEN)
                place = (left / width, bottom / height, PANEL / width, LINE * len(order) / height)
                _draw_panel(figure.add_axes(place), panel, order, is_named=not column)
            top = bottom - BOTTOM
        figure.legend(
            handles=handles, loc="lower left", ncols=columns, borderaxespad=0.2, columnspacing=1.2, handlelength=1.4
        )
    return []


def _panel(analysis: Analysis, group: str) -> Panel:
    """A group's lines, and as its rivals the one curve of unlooped models, if there is one."""
    curves = [curve for curve in analysis.curves if curve.task_group == group]
    baselines = [curve for curve in curves if curve.family == "baseline"]
    rivals = baselines if len(baselines) == 1 else []
    mine = [curve for curve in curves if curve not in rivals]
    is_one_shape = len({curve.parts.shape for curve in mine}) == 1
    lines = []
    for curve in mine:
        spots = sorted((spot for spot in spots_of(curve, DEPTH) if spot.is_own), key=lambda spot: spot.place)
        trained = next((spot for spot in reversed(spots) if spot.is_trained), None)
        beyond = spots[-1] if spots and not spots[-1].is_trained else None
        shape, differs = curve.parts.shape, curve.parts.differs
        name = differs if is_one_shape and differs else " ".join(filter(None, (shape, differs)))
        num_seeds = max((len(spot.seeds) for spot in spots), default=0)
        lines.append(Dots(f"{name} ({num_seeds})" if num_seeds > 1 else name, trained, beyond))
    known = [spot for curve in rivals for spot in spots_of(curve, DEPTH) if spot.is_trained]
    return Panel(group, curves[0].metric, lines, known, analysis.floors.get(group, {}))


def _order(panels: Sequence[Panel]) -> list[str]:
    """Names of the lines from the bottom up: the first panel's best on top, below them what it does not have."""
    is_loss = panels[0].metric in LOWER_IS_BETTER
    names = [line.name for line in sorted(panels[0].lines, key=lambda line: line.rank, reverse=is_loss)]
    others = dict.fromkeys(line.name for panel in panels[1:] for line in panel.lines if line.name not in names)
    return [*others, *names]


def _draw_panel(axes: "Axes", panel: Panel, order: Sequence[str], *, is_named: bool) -> None:
    for line in panel.lines:
        y = order.index(line.name)
        if line.trained and line.beyond:
            axes.plot([line.trained.value, line.beyond.value], [y, y], color="#c8d8e4", linewidth=1.5, zorder=1)
        for spot, face, shift in ((line.trained, BLUE, SHIFT), (line.beyond, "white", -SHIFT)):
            if spot is None:
                continue
            axes.errorbar(
                [spot.value], [y + shift], xerr=[spot.error] if spot.error else None, fmt="o", color=BLUE, markersize=6,
                markerfacecolor=face, elinewidth=1, capsize=2, zorder=3,
            )  # fmt: skip
            if len(spot.seeds) > 1:
                seeds = subsample(spot.seeds)
                axes.plot(seeds, [y + 2.4 * shift] * len(seeds), ".", color=BLUE, markersize=3, zorder=2)
    _draw_rivals(axes, panel.rivals)
    for name, floor in panel.floors.items():
        axes.axvline(floor, color=GREY, linestyle=FLOOR_LINES[name], linewidth=1.2, zorder=0)
    low, high = possible_range(panel.metric)
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, low - 0.02 * (right - left)), min(right, high + 0.02 * (right - left)))
    axes.set_ylim(-0.7, len(order) - 0.3)
    names = ["\n".join(wrap(name, LETTERS, max_lines=2)) if is_named else "" for name in order]
    axes.set_yticks(range(len(order)), [name.replace("$", r"\$") for name in names], fontsize=SIZE, linespacing=0.95)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    better = "lower is better" if panel.metric in LOWER_IS_BETTER else "higher is better"
    axes.set_title(panel.title.replace("$", r"\$"), pad=20)
    axes.set_xlabel(f"{METRIC_NAMES.get(panel.metric, panel.metric)}, {better}".replace("$", r"\$"))


def _draw_rivals(axes: "Axes", rivals: Sequence[Spot]) -> None:
    if not rivals:
        return
    low, high = axes.get_xlim()
    order = sorted(rivals, key=lambda spot: spot.value)
    near = [right.value - left.value < NEAR * (high - low) for left, right in pairwise(order)]
    for spot, after, before in zip(order, [False, *near], [*near, False], strict=True):
        axes.axvline(spot.value, color=ORANGE, linewidth=1.4, zorder=0)
        axes.annotate(
            spot.label, (spot.value, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center" if after == before else "left" if after else "right", color="#a86f00", fontsize=9.5,
            annotation_clip=False,
        )  # fmt: skip


def _handles(panels: Sequence[Panel]) -> "list[Line2D]":
    """The entries of the legend."""
    from matplotlib.lines import Line2D

    dot = partial(Line2D, [], [], color=BLUE, marker="o", linestyle="none")
    lines = [line for panel in panels for line in panel.lines]
    trained = {line.trained.label for line in lines if line.trained}
    beyond = {line.beyond.label for line in lines if line.beyond}
    handles = [dot(label=f"{_one(trained)}the most loops it was trained with")]
    if any(line.beyond for line in lines):
        handles.append(dot(label=f"{_one(beyond)}more loops than it was trained with", markerfacecolor="white"))
    bar = "± sd over seeds, of one seed ± standard error; (n): seeds, small dots"
    handles.append(Line2D([], [], color=BLUE, linewidth=1, label=bar))
    if any(panel.rivals for panel in panels):
        handles.append(Line2D([], [], color=ORANGE, label="layers of their own, not looped"))
    for name in dict.fromkeys(name for panel in panels for name in panel.floors):
        handles.append(Line2D([], [], color=GREY, linestyle=FLOOR_LINES[name], label=name))
    return handles


def _one(labels: AbstractSet[str]) -> str:
    """What all dots are of, if it is one thing."""
    return f"{next(iter(labels))}: " if len(labels) == 1 else ""
