"""Loops against reasoning in text and in thoughts.

    python tools/loops_and_thoughts.py runs/sweeps/composition_small/*-seed*

Theorem 5.4 of Saunshi et al. (2025) simulates m steps of text of a model by m loops of a block not much larger. From
the test rows of runs of one task (cot; no_cot with train.num_loops, from weights that were trained before or from
nothing; coconut), each at the steps, loops and thoughts that it was trained with: accuracy against the tokens written
(thoughts count, the answer too) and against the FLOPs of an answer, mean and least to largest over seeds, with chance
and the task's best shortcut (`pretrain/tasks/shortcuts.py`) as lines. Prints a table and writes loops_and_thoughts.csv,
.png and .svg.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetune.answers.results import CoconutRow
from finetune.config import FinetuneConfig
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.config.read import read_config
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.provenance import counted, told_runs
from pretrain.scaling.labels import Label, place_labels
from pretrain.scaling.style import BLUE, GREEN, GREY, ORANGE, RED, draw_grid_lines, new_figure
from pretrain.tasks.shortcuts import best_shortcut, floor_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = {
    "cot": ("steps of text", RED, "s"),
    "loops": ("loops, every prefix answered before", BLUE, "o"),
    "no_cot": ("loops, from nothing", ORANGE, "D"),
    "coconut": ("thoughts", GREEN, "^"),
}
"""What is counted in each, and the colour and marker of its points."""
BARS = "least to largest of several seeds"
HEADER = ("series", "count", "loops", "accuracy_pct", "least", "largest", "new_tokens", "flops", "seeds")


class ReasoningPoint(NamedTuple):
    """Runs that differ in the seed alone."""

    series: str
    number: int
    """Steps of text, loops or thoughts."""
    num_loops: int
    accuracies: tuple[float, ...]
    """In percent, of each seed."""
    new_tokens: float
    flops: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (self.mean, min(self.accuracies), max(self.accuracies), self.new_tokens)
        shown = (f"{number:.1f}" for number in numbers)
        return (
            self.series,
            str(self.number),
            str(self.num_loops),
            *shown,
            f"{self.flops:.4g}",
            str(len(self.accuracies)),
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Draw accuracy of loops, steps of text and thoughts against their cost.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of finished fine-tuning runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: folder of the first run")
    return parser.parse_args(arguments)


def read_points(runs: Sequence[Path]) -> tuple[list[ReasoningPoint], dict[str, float], str]:
    """The points, the lines to draw (accuracies in percent by name), and what the points stand on.

    Raises:
        ValueError: a run has another method, no test row, or another task than the first, or two of one point differ in
            more than the seed.
    """
    pools: dict[tuple[str, int, int], dict[Path, CoconutRow]] = {}
    asked = None
    for run in dict.fromkeys(run.resolve() for run in runs):
        config = read_config(run / "config.yaml", FinetuneConfig)
        name, test = config.method.name, config.data.test
        series = "loops" if name == "no_cot" and config.checkpoint.init_from else name
        if series not in SERIES or test.task is None:
            raise ValueError(f"{run}: runs of cot, no_cot and coconut on a generated task are compared, not {name}")
        parameters = {key: value for key, value in test.parameters.items() if key != "elements_per_step"}
        if asked not in (None, (test.task, parameters)):
            raise ValueError(f"{run}: its task is {(test.task, parameters)}, that of the other runs {asked}")
        asked = test.task, parameters
        row = _trained_row(run, config)
        steps = max(map(int, row.examples_by_chain_length))
        count = {"cot": steps, "coconut": row.num_thoughts}.get(name, row.num_loops)
        pool = pools.setdefault((series, count, row.num_loops), {})
        for other, its in pool.items():
            if differs := _differs(its, row):
                raise ValueError(f"{run} and {other} are one point, {series} of {count}, but differ in {differs}")
        pool[run] = row
    assert asked is not None, "nargs is +"
    points = [
        ReasoningPoint(
            *key,
            tuple(100 * row.accuracy for row in rows.values()),
            statistics.fmean(row.new_tokens for row in rows.values()),
            statistics.fmean(row.flops_per_example for row in rows.values()),
        )
        for key, rows in sorted(pools.items())
    ]
    best, chance = best_shortcut(*asked), floor_of(*asked).chance or 0.0
    scored = [row for rows in pools.values() for row in rows.values()]
    note = f"{told_runs(scored)}; {counted((row.num_examples for row in scored), 'test questions')}"
    return points, {"chance": 100 * chance, f"best shortcut: {best.name}": 100 * best.accuracy}, note


def _differs(row: CoconutRow, other: CoconutRow) -> str:
    """What makes two rows more, or less, than two seeds of one thing; empty if nothing does."""
    settings, others = row.settings or {}, other.settings or {}
    names = [key for key in {**settings, **others} if settings.get(key) != others.get(key)]
    names += ["data.train"] if row.data != other.data else []
    names += ["data.test"] if row.inputs != other.inputs else []
    return ", ".join(names) or ("nothing, the seed included" if row.seed == other.seed else "")


def _trained_row(run: Path, config: FinetuneConfig) -> CoconutRow:
    """The newest test row of a run at the thoughts and loops that it was trained with, of all its test questions."""
    file = JsonLines(run / "eval" / "coconut.jsonl")
    loops = config.train.num_loops or config.model.num_loops
    thoughts = config.curriculum.max_slots if config.chosen_method.slots else 0
    rows = [row for row in file.read(CoconutRow) if (row.split, row.num_loops) == ("test", loops)]
    print_warnings(file.problems)
    asked = thoughts, config.data.test.num_examples
    rows = [row for row in rows if (row.num_thoughts, row.num_examples) == asked]
    if not rows:
        raise ValueError(
            f"{file.path}: no row of split test at {thoughts} thoughts and {loops} loops; a finished run has it"
        )
    return max(reversed(rows), key=lambda row: row.step)  # of one step the last: data.test may have been corrected


def draw(points: Sequence[ReasoningPoint], lines: dict[str, float], note: str, files: Sequence[Path]) -> None:
    """Two panels: accuracy against the tokens written, and against the FLOPs of an answer; below them the note."""
    with new_figure(files, 8.5, 4.0, note) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        names: list[list[Label]] = []
        for axes, label in zip(panels, ("tokens written, thoughts included", "MFLOP of an answer"), strict=True):
            draw_grid_lines(axes)
            names.append(_draw_panel(axes, points, uses_flops=label.startswith("MFLOP")))
            for (name, value), style in zip(lines.items(), (":", "--"), strict=True):
                axes.axhline(value, color=GREY, linestyle=style, label=f"{name} {value:.1f} %")
            axes.set_xscale("log")
            axes.margins(x=0.1)
            axes.set_xlabel(label)
            axes.set_ylim(0, 103)
        costs = [point.flops / 1e6 for point in points]
        whole = [digit * 10.0**power for power in range(-3, 12) for digit in (1, 2, 3, 5)]
        kept = [number for number in whole if min(costs) / 1.3 <= number <= 1.3 * max(costs)] or [max(costs)]
        for axes, ticks in zip(panels, (sorted({round(point.new_tokens) for point in points}), kept), strict=True):
            axes.minorticks_off()
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panels[0].set_ylabel("accuracy, %")
        if any(len(point.accuracies) > 1 for point in points):
            panels[0].plot([], [], color=GREY, marker="|", markersize=11, linestyle="none", label=BARS)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # settled, as names need it
        place_labels(figure, list(zip(panels, names, strict=True)))


def _draw_panel(axes: "Axes", points: Sequence[ReasoningPoint], *, uses_flops: bool) -> list[Label]:
    """The points, whose numbers are returned as names to write."""
    names = []
    for series, (noun, colour, marker) in SERIES.items():
        own = [point for point in points if point.series == series]
        if not own:
            continue
        x = [point.flops / 1e6 if uses_flops else point.new_tokens for point in own]
        means = [point.mean for point in own]
        spread = [
            [point.mean - min(point.accuracies) for point in own],
            [max(point.accuracies) - point.mean for point in own],
        ]
        axes.errorbar(x, means, spread, color=colour, marker=marker, linewidth=1.4, capsize=3, label=noun)
        at_one_place: dict[tuple[float, float], list[ReasoningPoint]] = {}
        for place, point in zip(x, own, strict=True):
            at_one_place.setdefault((place, round(point.mean, 1)), []).append(point)
        for (place, mean), there in at_one_place.items():
            error = max(abs(value - mean) for point in there for value in point.accuracies)
            names.append(Label(place, mean, ", ".join(str(point.number) for point in there), colour, error))
    return names


def compare(options: argparse.Namespace) -> None:
    points, lines, note = read_points(options.runs)
    out = options.out or options.runs[0].resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    with (out / "loops_and_thoughts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *(point.cells for point in points)])
    draw(points, lines, note, [out / f"loops_and_thoughts.{suffix}" for suffix in ("png", "svg")])
    table: list[tuple[str, ...]] = [HEADER, *(point.cells for point in points)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\n".join("  ".join(map(str.rjust, row, widths)) for row in table))
    print("\n".join(f"{name}: {value:.1f} %" for name, value in lines.items()))
    print(f"\n{out / 'loops_and_thoughts.csv'}, .png and .svg")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(compare, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
