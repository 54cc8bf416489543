"""Results against one setting that was swept, such as the learning rate: a panel for each configuration that is equal
in all else but its number of loops, a line for each of these. Where the lowest points of the lines stand above each
other, one value serves any number of loops."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretrain.scaling.colours import PALETTE
from pretrain.scaling.style import draw_grid_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, WIDTH, HEIGHT = 3, 3.0, 3.1
"""Panels beside each other, and inches of each."""


class SweptLine(NamedTuple):
    """A result of configurations that differ in the swept setting alone."""

    panel: str
    """What sets its configurations apart from those of other panels, a line each."""
    result: str
    """Task and metric."""
    name: str
    """Number of loops."""
    points: list[tuple[float, float, float]]
    """Value of the setting, mean of the result, and its spread: sd over seeds, or the standard error of one."""
    best: int
    """Which of the points."""


def draw_along(lines: Sequence[SweptLine], setting: str, files: Sequence[Path], note: str) -> None:
    """Draw the lines and save the figure to every file; the best point of a line is filled."""
    panels = list(dict.fromkeys((line.panel, line.result) for line in lines))
    names = sorted({line.name for line in lines}, key=lambda name: (len(name), name))
    columns = min(COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    with new_figure(files, WIDTH * columns, HEIGHT * num_rows, note) as figure:
        every = figure.subplots(
            num_rows, columns, sharex=True, sharey=len({line.result for line in lines}) == 1, squeeze=False
        ).flatten()
        for axes, (panel, result) in zip(every, panels, strict=False):
            some = [line for line in lines if (line.panel, line.result) == (panel, result)]
            _draw_panel(axes, panel, some, names)
            axes.set_xlabel(setting)
            axes.set_ylabel(result)
        for axes in every[len(panels) :]:
            axes.set_visible(False)


def _draw_panel(axes: "Axes", title: str, lines: Sequence[SweptLine], names: Sequence[str]) -> None:
    axes.set_title(title, fontsize=10)
    draw_grid_lines(axes)
    if all(at > 0 for line in lines for at, _, _ in line.points):
        axes.set_xscale("log")
    for line in lines:
        colour = PALETTE[names.index(line.name) % len(PALETTE)]
        at, values, spreads = zip(*line.points, strict=True)
        axes.errorbar(
            at, values, yerr=spreads, color=colour, marker="o", markerfacecolor="white", markersize=5, linewidth=1.3,
            label=line.name,
        )  # fmt: skip
        axes.plot(at[line.best], values[line.best], marker="o", color=colour, markersize=7, zorder=3)
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.legend(title="filled: best", title_fontsize=9.5, fontsize=9.5)
