"""Plot accuracy or loss against effective depth, with fitted laws, from evaluation rows: command of `pretrain/scaling`.

Writes scaling.png, scaling.svg, scaling.html (one page, with values on hover) and fit.csv, and prints the tables. Takes
seconds, mostly for drawing.

    python tools/scaling_plot.py [FILE.jsonl ...] [--out DIR] [--metric [GROUP=]NAME ...]
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, names
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.analysis import analyse
from pretrain.scaling.figure import draw
from pretrain.scaling.page import write_page
from pretrain.scaling.rows import PREFERRED, tell_apart
from pretrain.scaling.tables import make_tables, render, write_fits

DEFAULT_FILES = "runs/*/eval/depth.jsonl"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Plot rows against effective depth and fit alpha·log(depth) + beta.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=f"rows; default: {DEFAULT_FILES}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for figures and fit.csv; default: the first file's")
    parser.add_argument(
        "--metric", type=names, default=[], metavar="[GROUP=]NAME,...",
        help=f"metrics to plot where a task group has several; default: the first it has of {', '.join(PREFERRED)}",
    )  # fmt: skip
    return parser.parse_args(arguments)


def plot(options: argparse.Namespace) -> None:
    files = options.files or sorted(Path().glob(DEFAULT_FILES))
    if not files:
        raise ValueError(
            f"nothing to plot: no file matches {DEFAULT_FILES}; train with validation.every > 0, or name files of rows"
        )
    rows, notes = tell_apart({file: JsonLines(file).read(EvaluationRow, strict=True) for file in files})
    if not rows:
        raise ValueError(f"nothing to plot: no rows in {', '.join(map(str, files))}")
    analysis = analyse(rows, options.metric)
    print_warnings([*notes, *analysis.left_out])
    out = options.out or files[0].parent
    out.mkdir(parents=True, exist_ok=True)
    draw(analysis, [out / "scaling.png", out / "scaling.svg"])
    write_page(analysis, out / "scaling.html")
    write_fits(analysis, out / "fit.csv")
    print("\n\n".join(map(render, make_tables(analysis))))
    print(f"\nplot: {out / 'scaling.png'}, .svg and .html, fits: {out / 'fit.csv'}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(plot, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
