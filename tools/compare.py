"""Compare runs: `python tools/compare.py runs/sweeps/p_hop_small runs/other --csv table.csv`.

A row is one configuration: the settings in which the configurations differ, seeds as mean ± standard deviation of each
result at each loop count (and number of thoughts), what chance and the best shortcut get, tokens, and device-hours of
the training. Runs are seeds of one configuration only if all else is equal: settings, data and the questions of each
task; a repeated run is no seed. A folder without a run of its own stands for the runs in it. tools/scaling_plot.py
--colour KEY draws the same runs coloured by a setting.

--along optimizer.lr, or several settings, makes a row of all their values, for each result: where it is best at the
same one in every row, that one serves all.
"""

if __name__ == "__main__":
    from pretrain.command.console import end_on_interrupt

    end_on_interrupt()

import argparse
import csv
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finetune.answers.results import CoconutRow
from finetune.kinds import kind_of_saved
from pretrain.command.console import print_warnings, run_command
from pretrain.command.options import OptionParser, names
from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.identity import ResultRow, digest, settings_of
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.metrics import LOWER_IS_BETTER
from pretrain.rows.step import TimedStep
from pretrain.scaling.analysis import without_repeats
from pretrain.scaling.comparable import questions_of, shown_value
from pretrain.scaling.floors import NAMES
from pretrain.scaling.rows import choose_metric, latest
from pretrain.scaling.table import Table, render
from pretrain.storage import is_there


class Question(NamedTuple):
    """What a result answers."""

    label: str
    """Task, metric, loops and thoughts."""
    asked: str = ""
    """The examples and the form of prompts, where runs were not all asked the same."""

    def __str__(self) -> str:
        return f"{self.label} [{self.asked}]" if self.asked else self.label


class Result(NamedTuple):
    value: float
    stderr: float | None


@dataclass(kw_only=True)
class Run:
    """A run directory, as far as it is compared."""

    name: str
    settings: dict[str, Any]
    seed: int | None
    data: str | None
    tokens: int | None
    hours: float | None
    """Device-hours of training: seconds of its steps times ranks."""
    results: dict["Question", Result]
    floors: dict[str, float]
    """What takes no reasoning: chance and the best shortcut of each task."""

    @property
    def configuration(self) -> str:
        return digest([self.settings, self.data])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OptionParser(description="Compare runs: a row a configuration, mean ± sd over seeds.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, or folders of them")
    parser.add_argument(
        "--metric", type=names, default=[], metavar="[GROUP=]NAME,...", help="default: what each task is judged by"
    )
    parser.add_argument("--split", default="test", help="of fine-tuned runs; default: test")
    parser.add_argument(
        "--along", type=names, metavar="KEY,...", help="a column for each value of these settings, and which is best"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    return parser.parse_args(arguments)


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


def ask_apart(runs: Sequence[Run]) -> list[str]:
    """Leave the questions out of the names of results that all runs were asked alike; a line for each other name."""
    asked: dict[str, set[str]] = defaultdict(set)
    for question in (question for run in runs for question in run.results):
        asked[question.label].add(question.asked)
    several = {label for label, versions in asked.items() if len(versions) > 1}
    for run in runs:
        run.results = {
            question if question.label in several else Question(question.label): result
            for question, result in run.results.items()
        }
    return [f"{label}: the runs were not asked the same questions: shown apart" for label in sorted(several)]


@dataclass(frozen=True, kw_only=True)
class ConfigurationTable:
    """Runs by configuration."""

    groups: list[list[Run]]
    keys: list[str]
    """Settings in which they differ."""
    labels: list[Question]
    """Results that any of them has."""
    floors: list[str]
    """The same of what takes no reasoning."""

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "ConfigurationTable":
        by_configuration: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            by_configuration[run.configuration].append(run)
        groups = list(by_configuration.values())
        every = dict.fromkeys(key for run in runs for key in run.settings)
        keys = [key for key in every if len({_shown(group[0], key) for group in groups}) > 1]
        if len({group[0].data for group in groups} - {None}) > 1:
            keys.append("data")
        labels = list(dict.fromkeys(label for run in runs for label in run.results))
        floors = list(dict.fromkeys(label for run in runs for label in run.floors))
        return cls(groups=groups, keys=keys, labels=labels, floors=floors)

    def table(self) -> Table:
        header = ("runs", *self.keys, "seeds", "tokens", "device-hours", *map(str, self.labels), *self.floors)
        rows = [
            (
                _names(group), *(_shown(group[0], key) for key in self.keys), str(len(group)),
                _mean_of([run.tokens for run in group]), _mean_of([run.hours for run in group]),
                *(_spread([run.results[label] for run in group if label in run.results]) for label in self.labels),
                *(_floor(group, name) or "-" for name in self.floors),
            )
            for group in self.groups
        ]  # fmt: skip
        notes = ["mean ± standard deviation over seeds; of one seed, (± standard error over examples)"]
        return Table(title=f"{len(rows)} configurations", header=header, rows=rows, notes=notes)

    def along(self, settings: Sequence[str]) -> Table:
        """A row for each result of configurations that agree in all but some settings, a column for each value of
        these.

        Raises:
            ValueError: the runs do not differ in one of them.
        """
        for key in settings:
            if key not in self.keys:
                raise ValueError(f"--along {key}: the runs differ in {', '.join(self.keys) or 'nothing'}")
        others = [key for key in self.keys if key not in settings]
        found: dict[tuple[str, ...], dict[tuple[str, ...], list[Result]]] = defaultdict(lambda: defaultdict(list))
        for run in (run for group in self.groups for run in group):
            for label, result in run.results.items():
                place = (*(_shown(run, key) for key in others), str(label))
                found[place][tuple(_shown(run, key) for key in settings)].append(result)
        columns = sorted({values for row in found.values() for values in row}, key=lambda each: list(map(_order, each)))
        rows = []
        for place, results in sorted(found.items(), key=lambda row: list(map(_order, row[0]))):
            means = {values: statistics.fmean(each.value for each in its) for values, its in results.items()}
            is_lower = any(f" {metric} " in f" {place[-1]} " for metric in LOWER_IS_BETTER)
            best = min(means, key=lambda values: means[values] if is_lower else -means[values])
            rows.append((*place, *(_spread(results.get(values, [])) for values in columns), " ".join(best)))
        title = f"along {', '.join(settings)}"
        return Table(title=title, header=(*others, "result", *map(" ".join, columns), "best at"), rows=rows)

    def write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            numbers = [f"{label}{part}" for label in self.labels for part in (" mean", " sd", " stderr", " seeds")]
            writer.writerow(["runs", *self.keys, "seeds", "tokens", "device_hours", *numbers, *self.floors])
            for group in self.groups:
                cells: list[object] = []
                for label in self.labels:
                    found = [run.results[label] for run in group if label in run.results]
                    values = [result.value for result in found]
                    cells.append(statistics.fmean(values) if values else "")
                    cells.append(statistics.stdev(values) if len(values) > 1 else "")
                    cells += [found[0].stderr if len(found) == 1 else "", len(found)]
                writer.writerow(
                    [
                        " ".join(run.name for run in group), *(_shown(group[0], key) for key in self.keys), len(group),
                        _mean_of([run.tokens for run in group]), _mean_of([run.hours for run in group]), *cells,
                        *(_floor(group, name) for name in self.floors),
                    ]
                )  # fmt: skip


def _shown(run: Run, key: str) -> str:
    if key == "data":
        return run.data or "unknown"
    return shown_value(run.settings.get(key, "default"))


def _order(shown: str) -> tuple[float, str]:
    """What is not set, then numbers by size, then words."""
    if shown == "default":
        return float("-inf"), shown
    try:
        return float(shown), ""
    except ValueError:
        return float("inf"), shown


def _floor(group: Sequence[Run], name: str) -> str:
    """Of any of the runs: they were asked the same."""
    return next((f"{run.floors[name]:.4g}" for run in group if name in run.floors), "")


def _names(group: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"-seed\d+$", "", run.name) for run in group))


def _mean_of(numbers: Sequence[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{statistics.fmean(known):.3g}" if known else "unknown"


def _spread(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    values = [result.value for result in results]
    mean = f"{statistics.fmean(values):.4g}"
    if len(values) > 1:
        return f"{mean} ± {statistics.stdev(values):.2g}"
    return mean if results[0].stderr is None else f"{mean} (± {results[0].stderr:.2g})"


def compare(options: argparse.Namespace) -> None:
    warnings: list[str] = []
    found = [loaded for path in directories(options.runs) if (loaded := load(path, options, warnings)) is not None]
    if not found:
        raise ValueError("nothing to compare: none of these runs was trained here")
    rows = [row for _, its in found for row in its]
    kept, repeats = without_repeats(rows)
    ids = {row.run_id for row in rows} - {row.run_id for row in kept}
    found = [(run, its) for run, its in found if not its or its[0].run_id not in ids or its[0].run_id is None]
    warnings += repeats + ask_apart([run for run, _ in found])
    print_warnings(list(dict.fromkeys(warnings)))
    comparison = ConfigurationTable.of([run for run, _ in found])
    print(render(comparison.along(options.along) if options.along else comparison.table()))
    if options.csv:
        comparison.write_csv(options.csv)
        print(f"\ntable: {options.csv}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(partial(compare, parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
