"""What rewards teach: accuracy on validation questions, answered greedily, over the steps of reinforcement learning.

    python tools/reward_plot.py runs/sweeps/prosqa_hard_small_grpo/*-seed*

A line a policy, the mean over its seeds, with a band from the least to the largest. Beside it what the thoughts do: the
accuracy with every smaller number of them, at the last step, on an axis of its own, as it goes much further down.
Prints a table of the first and last step and writes rewards.csv, .png and .svg. What as many FLOPs of labels give is
not in it: hold it against a supervised run.
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
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.provenance import counted, told_runs, without_seed
from pretrain.scaling.style import BLUE, GREEN, GREY, ORANGE, RED, draw_grid_lines, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (RED, BLUE, GREEN, ORANGE, GREY)
HEADER = ("policy", "num_thoughts", "step", "accuracy_pct", "least", "largest", "seeds")


class RewardPoint(NamedTuple):
    """Runs of one configuration that differ in the seed alone, at one step and number of thoughts."""

    policy: str
    num_thoughts: int
    step: int
    accuracies: tuple[float, ...]
    """In percent, of each seed."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def cells(self) -> tuple[str, ...]:
        shown = (f"{number:.1f}" for number in (self.mean, min(self.accuracies), max(self.accuracies)))
        return self.policy, str(self.num_thoughts), str(self.step), *shown, str(len(self.accuracies))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Draw accuracy over the steps of reinforcement learning.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs of finetune/grpo.py")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: folder of the first run")
    return parser.parse_args(arguments)


def read_points(runs: Sequence[Path]) -> tuple[list[RewardPoint], str]:
    """The points of validations, by policy, thoughts and step, and what they stand on.

    Raises:
        ValueError: a run has no validation, or runs of one name are of several configurations.
    """
    pools: dict[tuple[str, int, int], dict[int | None, float]] = {}
    variants: dict[str, str | None] = {}
    validations: list[CoconutRow] = []
    for run in dict.fromkeys(run.resolve() for run in runs):
        file = JsonLines(run / "eval" / "coconut.jsonl")
        rows = [row for row in file.read(CoconutRow) if row.split == "validation"]
        print_warnings([f"{problem}: passed over" for problem in file.problems])
        if not rows:
            raise ValueError(f"{file.path}: no validation: name runs of finetune/grpo.py")
        validations += rows
        policy = without_seed(run.name)
        if variants.setdefault(policy, rows[0].variant) != rows[0].variant:
            raise ValueError(f"{run}: not of the configuration of the other runs called {policy}")
        for row in rows:
            pools.setdefault((policy, row.num_thoughts, row.step), {})[row.seed] = 100 * row.accuracy
    asked = counted((row.num_examples for row in validations), "validation questions")
    points = [RewardPoint(*key, tuple(of_seed.values())) for key, of_seed in pools.items()]
    return points, f"{told_runs(validations)}; {asked}; line: mean over seeds, band: least to largest"


def draw(points: Sequence[RewardPoint], note: str, files: Sequence[Path]) -> None:
    """Accuracy over steps with all thoughts, and at the last step over thoughts if there are any; below them the
    note."""
    policies = list(dict.fromkeys(point.policy for point in points))
    most = {name: max(point.num_thoughts for point in points if point.policy == name) for name in policies}
    has_thoughts = any(most.values())
    with new_figure(files, 9.0 if has_thoughts else 6.0, 3.6, note) as figure:
        panels = list(figure.subplots(1, 1 + has_thoughts, squeeze=False)[0])
        for axes in panels:
            draw_grid_lines(axes)
        for name, colour in zip(policies, COLOURS * len(policies), strict=False):
            own = [point for point in points if point.policy == name]
            over_steps = sorted((point for point in own if point.num_thoughts == most[name]), key=lambda p: p.step)
            num_seeds = len(over_steps[-1].accuracies)
            _draw_line(
                panels[0], [point.step for point in over_steps], over_steps, colour, f"{name}, {num_seeds} seeds"
            )
            if most[name]:
                last = sorted(
                    (point for point in own if point.step == over_steps[-1].step), key=lambda p: p.num_thoughts
                )
                _draw_line(panels[1], [point.num_thoughts for point in last], last, colour, None)
        panels[0].set_xlabel("steps of rewards")
        panels[0].set_ylabel("validation accuracy, %")
        if has_thoughts:
            panels[1].set_xlabel("thoughts, after the last step")
            panels[1].set_ylabel("validation accuracy, %")
            panels[1].set_xticks(range(max(most.values()) + 1))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _draw_line(axes: "Axes", x: Sequence[int], points: Sequence[RewardPoint], colour: str, label: str | None) -> None:
    axes.plot(x, [point.mean for point in points], color=colour, marker="o", markersize=4, linewidth=1.6, label=label)
    least, largest = ([extreme(point.accuracies) for point in points] for extreme in (min, max))
    axes.fill_between(x, least, largest, color=colour, alpha=0.18, linewidth=0)


def plot(options: argparse.Namespace) -> None:
    points, note = read_points(options.runs)
    out = options.out or options.runs[0].resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    with (out / "rewards.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *(point.cells for point in points)])
    draw(points, note, [out / f"rewards.{suffix}" for suffix in ("png", "svg")])
    ends = {name: {point.step for point in points if point.policy == name} for name, *_ in points}
    shown = [point for point in points if point.step in (min(ends[point.policy]), max(ends[point.policy]))]
    table: list[tuple[str, ...]] = [HEADER, *(point.cells for point in shown)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print("\n".join("  ".join(map(str.rjust, row, widths)) for row in table))
    print(f"\n{out / 'rewards.csv'}, .png and .svg")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(plot, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
