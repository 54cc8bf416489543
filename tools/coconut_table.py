"""Compare fine-tuned runs: `python tools/coconut_table.py runs/prosqa_*_small-seed*`.

Prints a Markdown table of the runs' test rows (`eval/coconut.jsonl`), one line for runs that differ in the seed alone
and each number of thoughts and loops: accuracy as mean ± standard deviation over seeds, and mean new tokens, time and
FLOPs per example.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import re
import statistics
import sys
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

from finetune.answers.results import CoconutRow
from finetune.method.methods import METHODS
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.rows.jsonl import JsonLines

HEADER = ("method", "run", "thoughts", "loops", "accuracy %", "new tokens", "ms/example", "MFLOP/example", "seeds")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Compare fine-tuned runs by method.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="directories of runs, or files of their rows")
    parser.add_argument("--split", default="test", help="rows of this split; default: test")
    return parser.parse_args(arguments)


def pooled_rows(runs: Sequence[Path], split: str) -> list[list[CoconutRow]]:
    """The newest rows of all runs. Those of one list differ in the seed alone: they have the same method, thoughts,
    loops, number of examples and configuration (`CoconutRow.variant`); rows that do not say their configuration, the
    same name up to its `-seed<N>`.

    Raises:
        ValueError: a run has no rows of this split.
    """
    newest: dict[Hashable, CoconutRow] = {}
    for run in dict.fromkeys(Path(os.path.realpath(run)) for run in runs):
        file = JsonLines(run if run.is_file() else run / "eval" / "coconut.jsonl")
        rows = [row for row in file.read(CoconutRow) if row.split == split]
        print_warnings(file.problems)
        if not rows:
            hint = "a finished run has them, and tools/eval_coconut.py writes some"
            raise ValueError(f"{file.path}: no rows of split {split}; {hint}")
        for row in sorted(rows, key=lambda row: row.step):
            newest[file.path, row.run, row.variant, row.num_thoughts, row.num_loops, row.num_examples] = row
    pools: dict[tuple[int, int, int, int, str], list[CoconutRow]] = {}
    for row in newest.values():
        method = list(METHODS).index(row.method)  # type: ignore[arg-type]
        variant = row.variant or name_without_seed(row)
        pools.setdefault((method, row.num_thoughts, row.num_loops, row.num_examples, variant), []).append(row)
    return [pools[key] for key in sorted(pools)]


def name_without_seed(row: CoconutRow) -> str:
    return re.sub(r"-seed\d+$", "", row.run)


def line_of(rows: Sequence[CoconutRow]) -> tuple[str, ...]:
    """The line of runs that differ in the seed alone."""
    accuracies = [100 * row.accuracy for row in rows]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(rows) > 1 else ""
    means = ("new_tokens", "seconds_per_example", "flops_per_example")
    tokens, seconds, flops = (statistics.mean(getattr(row, name) for row in rows) for name in means)
    first, names = rows[0], ", ".join(dict.fromkeys(map(name_without_seed, rows)))
    return (
        first.method, names, str(first.num_thoughts), str(first.num_loops),
        f"{statistics.mean(accuracies):.1f}{spread}", f"{tokens:.1f}", f"{1000 * seconds:.2f}",
        f"{flops / 1e6:.1f}", str(len(rows)),
    )  # fmt: skip


def work(options: argparse.Namespace) -> None:
    lines = [HEADER, ("---",) * len(HEADER), *map(line_of, pooled_rows(options.runs, options.split))]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(work, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
