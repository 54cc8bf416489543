"""The figures of the latent search (`tools/latent_search.py`), each saved to every file given; suffixes say the format.
The note below each is what it stands on.

Figures of the paper that they follow (Hao et al. 2024, arXiv 2412.06769, first version): classes of reasoning 3, the
tree 5 and 6, parallelism 7, height 8.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.answers.results import CoconutRow
from finetune.search.latent_search import ThoughtNumbers
from finetune.search.search_tree import HeightValue, Process, ProcessBar
from finetune.search.tree_layout import TreeView
from pretrain.scaling.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, draw_grid_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

PROCESS_COLOURS = {
    Process.CORRECT_PATH: BLUE,
    Process.LONGER_PATH: SKY,
    Process.HALLUCINATION: RED,
    Process.WRONG_TARGET: ORANGE,
    Process.CORRECT_LABEL: GREEN,
    Process.INCORRECT_LABEL: PINK,
}
PROCESS_NAMES = {
    Process.CORRECT_LABEL: "no steps, right answer",
    Process.INCORRECT_LABEL: "no steps, wrong answer",
}
"""In the figure: the other classes are of paths, these of answers alone."""
LOOP_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
LINE: dict[str, Any] = {"marker": "o", "linewidth": 1.3, "capsize": 2}
"""A line through points with error bars."""
MAX_PANELS = 4
"""Numbers of thoughts that are drawn."""
WIDEST_TREE, NARROWEST_TREE = 9.6, 5.4
"""Inches: names have 9 pixels where the figure has 850, and the captions fit."""


def draw_process(bars: Sequence[ProcessBar], note: str, files: Sequence[Path]) -> None:
    """Accuracy of the answers, and classes of the reasoning, for every number of thoughts."""
    with new_figure(files, 10.5, 1.6 + 0.36 * len(bars), note) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2))
        positions = range(len(bars))
        accuracies, errors = [100 * bar.accuracy for bar in bars], [100 * bar.stderr for bar in bars]
        left.barh(positions, accuracies, xerr=errors, color=GREY, error_kw={"capsize": 2})
        left.set_yticks(positions, bar_names(bars))
        left.invert_yaxis()
        left.set_xlim(0, 104)
        left.set_xlabel("right answers (%)")
        left.set_title("Answers")
        before = [0.0] * len(bars)
        for process in Process:
            shares = [100 * bar.shares[process] for bar in bars]
            name, colour = PROCESS_NAMES.get(process, process.value), PROCESS_COLOURS[process]
            drawn = right.barh(positions, shares, left=before, color=colour, label=name)
            numbers = [f"{share:.0f}" if share >= 5 else "" for share in shares]
            right.bar_label(drawn, numbers, label_type="center", fontsize=9, color="white")
            before = [start + share for start, share in zip(before, shares, strict=True)]
        right.set_xlim(0, 100)
        right.set_xlabel("answers (%)")
        right.set_title("Reasoning in the text")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def bar_names(bars: Sequence[ProcessBar]) -> list[str]:
    """Thoughts, or the method of another run; the run's name where another has the same method."""
    methods = [bar.method for bar in bars]
    return [bar.method if bar.method and methods.count(bar.method) == 1 else bar.label for bar in bars]


def draw_parallelism(tops: Mapping[int, Sequence[Sequence[float]]], note: str, files: Sequence[Path]) -> None:
    """The summed value of the best nodes (`top_values`) over the questions, for each number of thoughts."""
    with new_figure(files, 0.6 + 3.1 * len(tops), 3.3, note) as figure:
        panels = figure.subplots(1, len(tops), sharey=True, squeeze=False)[0]
        for axes, (num_thoughts, curves) in zip(panels, tops.items(), strict=True):
            below: Sequence[float] = [0.0] * len(curves[0])
            for count, (curve, colour) in enumerate(zip(curves, (BLUE, ORANGE, GREEN), strict=True), start=1):
                percentiles = [100 * (number + 0.5) / len(curve) for number in range(len(curve))]
                axes.plot(percentiles, curve, color=colour, linewidth=1.5, label=f"top {count}")
                axes.fill_between(percentiles, below, curve, color=colour, alpha=0.18, linewidth=0)
                below = curve
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 1.02)
            draw_grid_lines(axes)
            axes.set_xlabel("percentile of the questions")
            axes.set_title(_after(num_thoughts))
        panels[0].set_ylabel("value together")
        panels[0].legend()


def draw_heights(heights: Mapping[int, Sequence[HeightValue]], note: str, files: Sequence[Path]) -> None:
    """Mean value of right and wrong nodes of the frontier against their height, for each number of thoughts, with its
    standard error over nodes; a value is not below 0, so no bar is."""
    with new_figure(files, 0.6 + 3.1 * len(heights), 3.3, note) as figure:
        panels = figure.subplots(1, len(heights), sharey=True, squeeze=False)[0]
        for axes, (num_thoughts, groups) in zip(panels, heights.items(), strict=True):
            for is_right, colour, marker, label in (
                (True, BLUE, "o", "leads to the target"),
                (False, RED, "s", "does not lead there"),
            ):
                chosen = [group for group in groups if group.is_right is is_right]
                xs, means = [group.height for group in chosen], [group.mean for group in chosen]
                look = LINE | {"color": colour, "marker": marker, "markeredgecolor": "white", "label": label}
                bars = [[min(group.stderr, group.mean) for group in chosen], [group.stderr for group in chosen]]
                axes.errorbar(xs, means, bars, **look)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(x=0.12)
            axes.set_ylim(bottom=0)
            draw_grid_lines(axes)
            axes.set_xlabel("height: steps to the nearest leaf")
            axes.set_title(_after(num_thoughts))
        panels[0].set_ylabel("mean value of a frontier node")
        handles, names = panels[0].get_legend_handles_labels()
        title = "with the standard error over nodes"
        figure.legend(handles, names, loc="outside lower center", ncols=2, title=title, title_fontsize=10)


def draw_tree(views: Mapping[int, TreeView], note: str, files: Sequence[Path]) -> None:
    """The reachable part of the graph of one question, every node with its value after a number of thoughts; as many
    side by side as leave names legible."""
    from matplotlib import colormaps

    shades = colormaps["Blues"]
    first = next(iter(views.values()))
    width = max(2.8, 0.62 * first.width)
    rows = math.ceil(len(views) / max(1, int((WIDEST_TREE - 0.4) / width)))
    columns = math.ceil(len(views) / rows)
    whole = max(NARROWEST_TREE, 0.4 + width * columns)
    with new_figure(files, whole, 0.6 + rows * (0.4 + 0.95 * first.depth), note) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in panels:
            axes.set_axis_off()
        for axes, (num_thoughts, view) in zip(panels, views.items(), strict=False):
            _draw_nodes(axes, view, shades)
            axes.set_title(_after(num_thoughts))
            axes.margins(0.14, 0.08)
        captions = (
            "shade and number: value, the probability that the next step names the node",
            "dark ring: frontier; green ring: target; dark arrows: shortest paths",
        )
        figure.supxlabel("\n".join(captions), fontsize=9.5, color="#444444")


def _draw_nodes(axes: "Axes", view: TreeView, shades: "Colormap") -> None:
    for edge in view.edges:
        begin, end = view.nodes[edge.parent].place, view.nodes[edge.child].place
        colour, thickness = ("#444444", 1.8) if edge.is_shortest else ("#bbbbbb", 0.9)
        bend = 0.0 if begin[1] - end[1] == 1 else 0.22  # past the nodes that a straight line would go through
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": thickness, "shrinkA": 17, "shrinkB": 17}
        axes.annotate("", xy=end, xytext=begin, arrowprops=arrow | {"connectionstyle": f"arc3,rad={bend}"}, zorder=1)
    for node in view.nodes.values():
        ring, thickness = (GREEN, 2.4) if node.is_target else ("#222222" if node.is_frontier else "#bbbbbb", 1.3)
        axes.scatter(
            *node.place, s=1000, color=shades(0.75 * node.value), edgecolors=ring, linewidths=thickness, zorder=2
        )
        text = node.name if node.is_root else f"{node.name}\n{node.value:.2f}"
        ink = "white" if node.value > 0.6 else "black"
        axes.annotate(text, node.place, ha="center", va="center", fontsize=7.5, zorder=3, color=ink)


def draw_thoughts(found: ThoughtNumbers, note: str, files: Sequence[Path]) -> None:
    """Length and direction of thoughts, and the tokens that those about one question decode to."""
    num_thoughts = len(found.norms)
    positions = list(range(1, num_thoughts + 1))
    with new_figure(files, 11.5, 3.4, note) as figure:
        size, turn, words = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
        size.errorbar(positions, found.norms, found.norm_deviations, color=BLUE, label="thoughts", **LINE)
        low, high = found.token_norm - found.token_norm_deviation, found.token_norm + found.token_norm_deviation
        size.axhspan(low, high, color=GREY, alpha=0.3, linewidth=0)
        size.axhline(found.token_norm, color=GREY, linewidth=1.3, label="token embeddings")
        size.set_ylim(0, None)
        size.set_ylabel("length of the vector")
        size.set_title("Size")
        size.legend()
        turn.errorbar(positions[1:], found.cosines, found.cosine_deviations, color=BLUE, **LINE)
        turn.axhline(0, color=GREY, linewidth=1)
        turn.set_ylim(-1.05, 1.05)
        turn.set_ylabel("cosine with the thought before")
        turn.set_title("Direction")
        for axes in (size, turn):
            axes.set_xlabel("thought")
            axes.set_xlim(0.5, num_thoughts + 0.5)
            axes.set_xticks(positions)
            draw_grid_lines(axes)
        words.set_axis_off()
        words.set_title(f"Likeliest tokens, question {found.question}")
        cells = [[f"{token!r} {probability:.2f}" for token, probability in row] for row in found.top_tokens]
        names = [f"thought {position}" for position in positions]
        table = words.table(cells, rowLabels=names, cellLoc="left", edges="open", bbox=(0.14, 0, 0.86, 0.97))
        table.auto_set_font_size(False)
        table.set_fontsize(9)


def draw_grid(rows: Sequence[CoconutRow], note: str, files: Sequence[Path]) -> None:
    """Accuracy at every number of thoughts and loops: against the FLOPs of an answer, and as a table."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    loops, thoughts = (sorted({getattr(row, name) for row in rows}) for name in ("num_loops", "num_thoughts"))
    with new_figure(files, 10.5, 3.6, note) as figure:
        cost, cells = figure.subplots(1, 2, width_ratios=(1.4, 1))
        for number, num_loops in enumerate(loops):
            chosen = sorted((row for row in rows if row.num_loops == num_loops), key=lambda row: row.num_thoughts)
            spent, accuracies = [row.flops_per_example for row in chosen], [100 * row.accuracy for row in chosen]
            colour, label = LOOP_COLOURS[number % len(LOOP_COLOURS)], f"{num_loops} loop{'s' * (num_loops > 1)}"
            look: dict[str, Any] = {"color": colour, "label": label, "marker": "o", "markersize": 5, "linewidth": 1.2}
            cost.errorbar(spent, accuracies, [100 * row.stderr for row in chosen], elinewidth=0.8, **look)
            for row in chosen:
                where = (row.flops_per_example, 100 * row.accuracy)
                cost.annotate(
                    str(row.num_thoughts), where, xytext=(4, 5), textcoords="offset points", fontsize=9, color=colour
                )
        best = best_for_cost(rows)
        ends = [*best, (max(row.flops_per_example for row in rows), best[-1][1])]
        look = {"color": GREY, "linestyle": ":", "linewidth": 1.3, "zorder": 0, "label": "best for the cost"}
        cost.step(*zip(*ends, strict=True), where="post", **look)
        if len(loops) > 1:
            cost.set_xscale("log")
        is_wide = max(row.flops_per_example for row in rows) > 10 * min(row.flops_per_example for row in rows)
        wide = len(loops) > 1 and is_wide
        cost.xaxis.set_major_locator(LogLocator(base=10, numticks=6) if wide else MaxNLocator(nbins=4))
        cost.xaxis.set_minor_locator(NullLocator())
        cost.xaxis.set_major_formatter(EngFormatter(sep=""))
        draw_grid_lines(cost)
        cost.set_xlabel("forward FLOPs of an answer (number at a point: thoughts)")
        cost.set_ylabel("right answers (%)")
        cost.set_title("Accuracy against cost")
        figure.legend(*cost.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        _draw_cells(cells, rows, loops, thoughts)


def best_for_cost(rows: Sequence[CoconutRow]) -> list[tuple[float, float]]:
    """(FLOPs of an answer, accuracy in %) of every row that is better than all cheaper ones and those of equal cost."""
    best: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row.flops_per_example, -row.accuracy)):
        if not best or 100 * row.accuracy > best[-1][1]:
            best.append((row.flops_per_example, 100 * row.accuracy))
    return best


def _draw_cells(axes: "Axes", rows: Sequence[CoconutRow], loops: Sequence[int], thoughts: Sequence[int]) -> None:
    accuracy = {(row.num_loops, row.num_thoughts): 100 * row.accuracy for row in rows}
    shown = [[accuracy.get((num_loops, count), float("nan")) for count in thoughts] for num_loops in loops]
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=125, aspect="auto")
    for line, values in enumerate(shown):
        for column, value in enumerate(values):
            axes.annotate(
                f"{value:.0f}", (column, line), ha="center", va="center", color="white" if value > 70 else "black"
            )
    axes.set_xticks(range(len(thoughts)), [str(count) for count in thoughts])
    axes.set_yticks(range(len(loops)), [str(count) for count in loops])
    axes.set_xlabel("thoughts")
    axes.set_ylabel("loops")
    axes.set_title("Right answers (%)")


def _after(num_thoughts: int) -> str:
    return f"after {num_thoughts} thought{'s' * (num_thoughts != 1)}"
