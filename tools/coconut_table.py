"""Compare fine-tuned runs: `python tools/coconut_table.py runs/prosqa_*_small-seed*`.

Prints a Markdown table of the runs' test rows (`eval/coconut.jsonl`), one line for runs that differ in the seed alone
and each number of thoughts and loops: accuracy as mean ± standard deviation over seeds beside its standard error over
examples, chance, the best shortcut, and mean new tokens, time and FLOPs per example. Unlike rows are never averaged:
other settings, training data, questions or batches are lines of their own, and the settings that differ are named.

Two things tell whether thoughts are what helps: the accuracy with none, one, ... of them, and the controls, which have
the curriculum without thoughts or thoughts without the curriculum. Where either is missing, a line says which command
makes it.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import os
import re
import statistics
import sys
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path

from finetune.answers.results import CoconutRow
from finetune.method.methods import CONTROLS, METHODS
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser
from pretrain.rows.identity import parse_inputs
from pretrain.rows.jsonl import JsonLines
from pretrain.scaling.comparable import shown_value

HEADER = (
    "method", "run", "thoughts", "loops", "accuracy %", "± examples", "examples", "chance %", "best shortcut %",
    "new tokens", "ms/example", "batch", "MFLOP/example", "differs in", "seeds",
)  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Compare fine-tuned runs by method.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="directories of runs, or files of their rows")
    parser.add_argument("--split", default="test", help="rows of this split; default: test")
    return parser.parse_args(arguments)


def newest_rows(runs: Sequence[Path], split: str) -> list[tuple[Path, CoconutRow]]:
    """The newest row of everything that was asked of each run, with the path that was given.

    Raises:
        ValueError: a run has no rows of this split.
    """
    newest: dict[Hashable, tuple[Path, CoconutRow]] = {}
    places = [os.path.realpath(run) for run in runs]
    for run in (run for number, run in enumerate(runs) if places.index(places[number]) == number):
        file = JsonLines(run if run.is_file() else run / "eval" / "coconut.jsonl")
        rows = [row for row in file.read(CoconutRow) if row.split == split]
        print_warnings([f"{problem}: passed over" for problem in file.problems])
        if not rows:
            hint = "a finished run has them, and tools/eval_coconut.py writes some"
            raise ValueError(f"{file.path}: no rows of split {split}; {hint}")
        for row in sorted(rows, key=lambda row: row.step):
            who = row.run_id or (file.path, row.run)
            cell = row.num_thoughts, row.num_loops
            newest[who, row.variant, *cell, row.num_examples, row.inputs, row.batch] = run, row
    return list(newest.values())


def pooled(rows: Iterable[CoconutRow]) -> list[list[CoconutRow]]:
    """Rows in lists. Those of one differ in the seed alone: they have the same method, thoughts, loops, configuration
    (`CoconutRow.variant`), training data, questions and batch, and no two are of one seed; rows that do not say their
    configuration, the same name up to its `-seed<N>`."""
    pools: dict[tuple[object, ...], dict[Hashable, CoconutRow]] = {}
    for row in rows:
        method = list(METHODS).index(row.method)  # type: ignore[arg-type]
        variant = row.variant or name_without_seed(row)
        asked = row.num_examples, row.inputs or "", row.batch or 0
        key = (method, row.num_thoughts, row.num_loops, *asked, variant, row.data or "")
        seeds = pools.setdefault(key, {})
        if row.seed is not None and row.seed in seeds:
            first = seeds[row.seed]
            print_warnings([f"run {row.run} has configuration and seed of run {first.run}: no further seed, left out"])
        else:
            seeds[len(seeds) if row.seed is None else row.seed] = row
    found = [list(seeds.values()) for seeds in pools.values()]
    order = list(METHODS)
    return sorted(found, key=lambda rows: (order.index(rows[0].method), rows[0].num_thoughts, rows[0].num_loops))  # type: ignore[arg-type]


def name_without_seed(row: CoconutRow) -> str:
    return re.sub(r"-seed\d+$", "", row.run)


def apart(pools: Sequence[Sequence[CoconutRow]]) -> list[str]:
    """What sets each line apart from others of its method, thoughts and loops: settings, data, questions."""
    facts = [_facts(rows[0]) for rows in pools]
    found = []
    for rows, mine in zip(pools, facts, strict=True):
        cell = _cell(rows[0])
        others = [each for other, each in zip(pools, facts, strict=True) if _cell(other[0]) == cell]
        keys = dict.fromkeys(key for each in others for key in each)
        differing = [key for key in keys if len({each.get(key, "default") for each in others}) > 1]
        found.append(", ".join(f"{key}={mine.get(key, 'default')}" for key in differing))
    return found


def _cell(row: CoconutRow) -> tuple[object, ...]:
    return row.method, row.num_thoughts, row.num_loops


def _facts(row: CoconutRow) -> dict[str, str]:
    """All that can set rows apart, by name."""
    found = {key: shown_value(value) for key, value in (row.settings or {}).items()}
    found |= {} if row.data is None else {"data": row.data[:6]}
    return found | {"test set": parse_inputs(row.inputs).get("examples", "unknown")[:6]}


def missing_thoughts(found: Sequence[tuple[Path, CoconutRow]], split: str) -> list[str]:
    """For runs that were scored with thoughts or pauses, but not with each smaller number: the commands that do it."""
    scored: dict[tuple[Path, str], set[int]] = {}
    for path, row in found:
        if METHODS[row.method].slots is not None:  # type: ignore[index]
            scored.setdefault((path, row.run), set()).add(row.num_thoughts)
    runs: dict[tuple[int, ...], list[str]] = {}
    for (path, name), numbers in scored.items():
        if left := tuple(sorted(set(range(max(numbers))) - numbers)):
            runs.setdefault(left, []).append(str(path) if path.is_dir() else name)
    where = "" if split == "test" else f" --split {split}"
    return [
        f"no rows with {', '.join(map(str, left))} thoughts of {', '.join(names)}: "
        f"python tools/eval_coconut.py --run {names[0]} --latents all{where}"
        for left, names in runs.items()
    ]


def missing_controls(found: Sequence[tuple[Path, CoconutRow]]) -> list[str]:
    """For methods with thoughts and a curriculum: the controls that no run with the same training data and test set
    has."""

    def data_of(row: CoconutRow) -> tuple[object, ...]:
        return row.data, row.inputs, row.num_examples

    there = {(row.method, *data_of(row)) for _, row in found}
    said: dict[str, str] = {}
    for path, row in found:
        method = METHODS[row.method]  # type: ignore[index]
        is_rewarded = any(key.startswith(("rollout.", "grpo.")) for key in row.settings or {})
        if method.stages != "all" or not method.has_thoughts or is_rewarded:  # rewards need no curriculum
            continue
        if left := [name for name in CONTROLS if (name, *data_of(row)) not in there]:
            run = f"--config {path / 'config.yaml'}" if path.is_dir() else "with the same file"
            command = f"python finetune/coconut.py {run} method.name={left[0]} run.name={left[0]}"
            what = f"nothing beside {row.method} with {', '.join(left)}, its controls"
            said.setdefault(what, f"{what}: {command}")
    return list(said.values())


def line_of(rows: Sequence[CoconutRow], differs: str) -> tuple[str, ...]:
    """The line of runs that differ in the seed alone."""
    accuracies = [100 * row.accuracy for row in rows]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(rows) > 1 else ""
    means = ("new_tokens", "seconds_per_example", "flops_per_example", "stderr")
    tokens, seconds, flops, error = (statistics.mean(getattr(row, name) for row in rows) for name in means)
    first, runs = rows[0], ", ".join(dict.fromkeys(map(name_without_seed, rows)))
    return (
        first.method, runs, str(first.num_thoughts), str(first.num_loops),
        f"{statistics.mean(accuracies):.1f}{spread}", f"{100 * error:.1f}", str(first.num_examples),
        *("" if floor is None else f"{100 * floor:.1f}" for floor in (first.chance, first.shortcut)), f"{tokens:.1f}",
        f"{1000 * seconds:.2f}", str(first.batch or ""), f"{flops / 1e6:.1f}", differs, str(len(rows)),
    )  # fmt: skip


def work(options: argparse.Namespace) -> None:
    found = newest_rows(options.runs, options.split)
    pools = pooled(row for _, row in found)
    differs = apart(pools)
    if any("test set=" in text for text in differs):
        print_warnings(["runs that have other test sets are not averaged: give data.test a seed of its own"])
    lines = [HEADER, ("---",) * len(HEADER), *map(line_of, pools, differs)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    print_warnings([*missing_thoughts(found, options.split), *missing_controls(found)])


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(work, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
