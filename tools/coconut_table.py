"""Compare fine-tuned runs: `python tools/coconut_table.py runs/prosqa_*_small-seed*`.

Prints a Markdown table of the runs' test rows (`eval/coconut.jsonl`), one line per method and number of thoughts and
loops: accuracy as mean ± standard deviation over seeds, and mean new tokens, time and FLOPs per example.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetune.answers.results import CoconutRow
from finetune.method.methods import METHODS
from pretrain.command.console import print_warnings, run_command
from pretrain.rows.jsonl import JsonLines

HEADER = ("method", "thoughts", "loops", "accuracy %", "new tokens", "ms/example", "MFLOP/example", "runs")
Key = tuple[int, int, int]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare fine-tuned runs by method.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="directories of runs, or files of their rows")
    parser.add_argument("--split", default="test", help="rows of this split; default: test")
    return parser.parse_args(arguments)


def newest_rows(runs: Sequence[Path], split: str) -> dict[Key, list[CoconutRow]]:
    """The newest row of every run, by method (its index in METHODS), number of thoughts and number of loops."""
    newest: dict[tuple[str, int, int], CoconutRow] = {}
    for run in runs:
        file = JsonLines(run if run.is_file() else run / "eval" / "coconut.jsonl")
        rows = [row for row in file.read(CoconutRow) if row.split == split]
        print_warnings(file.problems)
        if not rows:
            hint = "a finished run has them, and tools/eval_coconut.py writes some"
            raise ValueError(f"{file.path}: no rows of split {split}; {hint}")
        by_step = sorted(rows, key=lambda row: row.step)
        newest.update({(row.run, row.num_thoughts, row.num_loops): row for row in by_step})
    rows_by_key: dict[Key, list[CoconutRow]] = {}
    for row in newest.values():
        key = (list(METHODS).index(row.method), row.num_thoughts, row.num_loops)  # type: ignore[arg-type]
        rows_by_key.setdefault(key, []).append(row)
    return dict(sorted(rows_by_key.items()))


def line_of(rows: Sequence[CoconutRow]) -> tuple[str, ...]:
    """One line of the table."""
    accuracies = [100 * row.accuracy for row in rows]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(rows) > 1 else ""
    means = ("new_tokens", "seconds_per_example", "flops_per_example")
    tokens, seconds, flops = (statistics.mean(getattr(row, name) for row in rows) for name in means)
    return (
        rows[0].method, str(rows[0].num_thoughts), str(rows[0].num_loops), f"{statistics.mean(accuracies):.1f}{spread}",
        f"{tokens:.1f}", f"{1000 * seconds:.2f}", f"{flops / 1e6:.1f}", str(len(rows)),
    )  # fmt: skip


def work(options: argparse.Namespace) -> None:
    lines = [HEADER, ("---",) * len(HEADER), *map(line_of, newest_rows(options.runs, options.split).values())]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(work, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
