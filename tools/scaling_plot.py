"""Plot accuracy or loss against effective depth, with fitted laws, from evaluation rows: command of `pretrain/scaling`.

Writes scaling.png, scaling.svg, scaling.html (one page, with values on hover) and fit.csv, and prints the tables, and
what is not drawn as it would say nothing; of more curves than there are colours, the joint law goes to law.png and
law.svg. Takes seconds, mostly for drawing.

    python tools/scaling_plot.py [FILE.jsonl ...] [--out DIR] [--metric [GROUP=]NAME ...] [--colour KEY]
        [--axis NAME ...] [--group NAME=TASK_GROUP,... ...]

One curve is one k (prelude, coda) with L varying and everything else equal, or the unlooped models with k varying; what
differs gets a curve of its own, named by the difference (`pretrain/scaling/comparable.py`). Models that stand above
each other are equal in what the axis measures: --axis "inference FLOPs" --axis "cache bytes" --axis "step time" has a
panel for each; the page has a menu. With kinds of tasks, as --group recall=induction_copying,variable_assignment
--group reasoning=p_hop,addition, groups.png, groups.svg and groups.csv have the mean over the tasks of each kind, its
slope, and the difference of the slopes.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import gc
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, at_least, named_list, names
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.analysis import analyse
from pretrain.scaling.axes import AXES, chosen_axes
from pretrain.scaling.colours import value_of
from pretrain.scaling.figure import draw
from pretrain.scaling.page import write_page
from pretrain.scaling.rows import tell_apart, with_step_times
from pretrain.scaling.table import render
from pretrain.scaling.tables import make_tables, write_fits

DEFAULT_FILES = ("runs/*/eval/depth.jsonl", "runs/sweeps/*/*/eval/depth.jsonl")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Plot rows against effective depth and fit alpha·log(depth) + beta.")
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"rows; default: {DEFAULT_FILES[0]}, or of sweeps"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for figures and fit.csv; default: the first file's")
    parser.add_argument(
        "--metric", type=names, default=[], metavar="[GROUP=]NAME,...",
        help="metrics to plot where tasks have several; default: the one that each task is judged by",
    )  # fmt: skip
    parser.add_argument(
        "--axis", action="append", default=[], metavar="NAME",
        help=f"{', '.join(axis.name for axis in AXES)}: axis of a panel of scaling.png; repeat it for several",
    )  # fmt: skip
    parser.add_argument("--colour", metavar="KEY", help="colour by a configuration key, such as optimizer.lr, or seed")
    parser.add_argument(
        "--group", type=named_list, action="append", default=[], metavar="NAME=TASK_GROUP,...",
        help="kind of tasks for groups.png; repeat it for each kind",
    )  # fmt: skip
    parser.add_argument(
        "--from-step",
        type=at_least(0),
        default=0,
        metavar="N",
        help="first step of the plots over training; default: 0",
    )
    return parser.parse_args(arguments)


def plot(options: argparse.Namespace) -> None:
    files = options.files or next(filter(None, (sorted(Path().glob(pattern)) for pattern in DEFAULT_FILES)), [])
    if not files:
        raise ValueError(
            f"nothing to plot: no file matches {DEFAULT_FILES[0]}; train with validation.every > 0, or name files of "
            "rows"
        )
    found, problems = {}, []
    for path in files:
        file = JsonLines(path)
        found[path] = with_step_times(file.read(EvaluationRow, required=True), path)
        problems += [f"{problem}: passed over" for problem in file.problems]
    print_warnings(problems)
    rows, notes = tell_apart(found)
    if not rows:
        raise ValueError(f"nothing to plot: no rows in {', '.join(map(str, files))}")
    analysis = analyse(rows, options.metric, from_step=options.from_step)
    kinds = analyse(rows, options.metric, kinds=dict(options.group)) if options.group else None
    if options.colour and not any(value_of(row, options.colour) for row in rows):
        raise ValueError(f"--colour {options.colour}: no row says its configuration; rows of this version do")
    print_warnings([*notes, *analysis.left_out])
    out = options.out or files[0].parent
    out.mkdir(parents=True, exist_ok=True)
    axes = chosen_axes(options.axis, analysis.curves)
    undrawn = draw(analysis, [out / "scaling.png", out / "scaling.svg"], colour_by=options.colour, wanted=axes)
    write_page(analysis, out / "scaling.html", colour_by=options.colour)
    write_fits(analysis, out / "fit.csv")
    tables = make_tables(analysis)
    if kinds:
        undrawn += draw(kinds, [out / "groups.png", out / "groups.svg"], colour_by=options.colour)
        write_fits(kinds, out / "groups.csv")
        tables += make_tables(kinds)
    print("\n\n".join(map(render, tables)))
    print("\n" + "".join(f"{line}\n" for line in undrawn), end="")
    names = "scaling.png", "scaling.svg", "law.png", "law.svg", "scaling.html"
    drawn = [out / name for name in names if (out / name).exists()]
    print(f"plot: {', '.join(map(str, drawn))}, fits: {out / 'fit.csv'}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(plot, parse(arguments)))


if __name__ == "__main__":
    gc.disable()  # rows are no garbage, and to look for some among a hundred thousand takes a third of the time
    sys.exit(main())
