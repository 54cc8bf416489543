"""Compare runs: `python tools/compare.py runs/sweeps/p_hop_small runs/other --csv table.csv`.

A row is one configuration: the settings in which the configurations differ, seeds as mean ± standard deviation of each
result at each loop count (and number of thoughts), what chance and the best shortcut get, tokens, and device-hours of
the training. Runs are seeds of one configuration only if all else is equal: settings, data and the questions of each
task; a repeated run is no seed. A folder without a run of its own stands for the runs in it. tools/scaling_plot.py
--colour KEY draws the same runs coloured by a setting.

--along optimizer.lr, or several settings, makes a row of all their values, for each result: where it is best at the
same one in every row, that one serves all. --figure draws the rows along one setting.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from finetune.answers.results import CoconutRow
from finetune.kinds import kind_of_saved
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, names
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import ResultRow, settings_of
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.provenance import counted, told_runs
from pretrain.rows.step import TimedStep
from pretrain.scaling.along import draw_along
from pretrain.scaling.analysis import without_repeats
from pretrain.scaling.comparable import questions_of
from pretrain.scaling.configurations import ConfigurationTable, Question, Result, Run, ask_apart
from pretrain.scaling.floors import NAMES
from pretrain.scaling.rows import choose_metric, latest
from pretrain.scaling.table import render
from pretrain.storage import is_there


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Compare runs: a row a configuration, mean ± sd over seeds.")
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run directories, folders of them, or files of rows as tools/publish.py writes them",
    )
    parser.add_argument(
        "--metric", type=names, default=[], metavar="[GROUP=]NAME,...", help="default: what each task is judged by"
    )
    parser.add_argument("--split", default="test", help="of fine-tuned runs; default: test")
    parser.add_argument(
        "--along", type=names, metavar="KEY,...", help="a column for each value of these settings, and which is best"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the results --along one setting")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    options = parser.parse_args(arguments)
    if options.figure and len(options.along or ()) != 1:
        parser.error("--figure draws along one setting: --along KEY")
    return options


def directories(paths: Iterable[Path]) -> list[Path]:
    """The run directories among paths and in folders of runs.

    Raises:
        ValueError: one holds none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = (
            [path] if is_there(path / "config.yaml") else sorted(file.parent for file in path.glob("*/config.yaml"))
        )
        if not inside:
            raise ValueError(f"{path}: no run there, and no folder of runs: a run has a config.yaml")
        found |= dict.fromkeys(inside)
    return list(found)


def load_rows(path: Path, options: argparse.Namespace, warnings: list[str]) -> list[tuple[Run, list[ResultRow]]]:
    """The runs in a file of rows over depth, as tools/publish.py makes one of many runs; hours are not in it."""
    file = JsonLines(path)
    chosen, left_out = choose_metric(file.read(EvaluationRow, required=True), options.metric)
    warnings += [*(f"{problem}: passed over" for problem in file.problems), *left_out]
    by_run: dict[str, list[EvaluationRow]] = defaultdict(list)
    for row in latest(chosen):
        by_run[row.run_id or row.run].append(row)
    return [
        (
            Run(
                name=rows[0].run, settings=dict(rows[0].settings or {}), seed=rows[0].seed, data=rows[0].data,
                tokens=rows[0].tokens_seen, hours=None, floors=_floors(rows),
                results={_question(row): Result(row.value, row.stderr) for row in rows},
            ),
            list(rows),
        )
        for rows in by_run.values()
    ]  # fmt: skip


def load(path: Path, options: argparse.Namespace, warnings: list[str]) -> tuple[Run, list[ResultRow]] | None:
    """A run directory and its rows; None for one that was not trained here, as an imported model.

    Raises:
        ValueError: its configuration is damaged.
    """
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        schema = kind_of_saved(values).schema
        config: Any = schema.read_saved(values) if isinstance(values.get("run"), dict) else None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{path / 'config.yaml'}: not the configuration of a run of this version") from None
    if config is None:
        warnings.append(f"{path} was not trained here: left out")
        return None
    files = JsonLines(path / "eval" / "depth.jsonl"), JsonLines(path / "eval" / "coconut.jsonl")
    deep, tuned = files[0].read(EvaluationRow), files[1].read(CoconutRow)
    steps = JsonLines(path / "metrics.jsonl")
    times = steps.read(TimedStep)
    for file in (*files, steps):
        warnings += [f"{problem}: passed over" for problem in file.problems]
    chosen, left_out = choose_metric(deep, options.metric) if deep else ([], [])
    warnings += left_out
    newest = latest(chosen)
    answers = {
        (row.num_thoughts, row.num_loops, row.inputs): row
        for row in sorted(tuned, key=lambda row: row.step)
        if row.split == options.split
    }
    rows: list[ResultRow] = [*newest, *answers.values()]
    known = rows[-1] if rows else None
    results = {_question(row): Result(row.value, row.stderr) for row in newest}
    results |= {_question(row): Result(row.accuracy, row.stderr) for row in answers.values()}
    run = Run(
        name=path.name, settings=settings_of(config), seed=config.run.seed, data=known.data if known else None,
        tokens=times[-1].tokens_seen if times and times[-1].tokens_seen else (known.tokens_seen if known else None),
        hours=_hours(path, times), results=results, floors=_floors(rows),
    )  # fmt: skip
    return run, rows


def _question(row: ResultRow) -> Question:
    if isinstance(row, CoconutRow):
        label = f"{row.split} accuracy k={row.num_thoughts} L={row.num_loops}"
        return Question(label, f"N={row.num_examples} {row.inputs or ''}".strip())
    assert isinstance(row, EvaluationRow)
    return Question(f"{row.task} {row.metric} L={row.num_loops}", questions_of(row))


def _floors(rows: Sequence[ResultRow]) -> dict[str, float]:
    found = {}
    for row in rows:
        task = row.split if isinstance(row, CoconutRow) else row.task if isinstance(row, EvaluationRow) else ""
        for name, floor in zip(NAMES, (row.chance, row.shortcut), strict=True):
            found |= {} if floor is None else {f"{task} {name}": floor}
    return found


def _hours(path: Path, times: Sequence[TimedStep]) -> float | None:
    """Steps of which no row was kept took as long as the others."""
    if not times:
        return None
    found = re.search(r"^ranks: (\d+)", _text(path / "environment.txt"), re.MULTILINE)
    seconds = sum(row.step_time_s for row in times) / len(times) * times[-1].step
    return seconds * int(found[1] if found else 1) / 3600


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def compare(options: argparse.Namespace) -> None:
    warnings: list[str] = []
    found = [run for path in options.runs if path.suffix == ".jsonl" for run in load_rows(path, options, warnings)]
    folders = directories([path for path in options.runs if path.suffix != ".jsonl"])
    found += [loaded for path in folders if (loaded := load(path, options, warnings)) is not None]
    if not found:
        print_warnings(list(dict.fromkeys(warnings)))
        raise ValueError("nothing to compare: none of these runs was trained here, and no file has a row")
    rows = [row for _, its in found for row in its]
    kept, repeats = without_repeats(rows)
    ids = {row.run_id for row in rows} - {row.run_id for row in kept}
    found = [(run, its) for run, its in found if not its or its[0].run_id not in ids or its[0].run_id is None]
    warnings += repeats + ask_apart([run for run, _ in found])
    print_warnings(list(dict.fromkeys(warnings)))
    comparison = ConfigurationTable.of([run for run, _ in found])
    print(render(comparison.along(options.along) if options.along else comparison.table()))
    if options.figure:
        (setting,) = options.along
        asked = [row.num_examples for row in kept if row.num_examples]
        noun = (
            "sequences"
            if all(isinstance(row, EvaluationRow) and row.task == "validation" for row in kept)
            else "questions"
        )
        draw_along(comparison.lines(setting), setting, [options.figure], f"{told_runs(kept)}; {counted(asked, noun)}")
        print(f"\nfigure: {options.figure}")
    if options.csv:
        comparison.write_csv(options.csv)
        print(f"\ntable: {options.csv}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(compare, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
