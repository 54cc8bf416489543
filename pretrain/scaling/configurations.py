"""Runs by configuration: what differs, seeds as mean and spread, and the same along settings that were swept."""

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.rows.identity import digest
from pretrain.rows.metrics import LOWER_IS_BETTER
from pretrain.scaling.along import SweptLine
from pretrain.scaling.comparable import short_names, shown_value
from pretrain.scaling.table import Table


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


Found = dict[tuple[str, ...], list[Result]]
"""Results by values of the settings along which they are shown."""
LOOPS = "model.num_loops"


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
        others, found = self._found_along(settings)
        columns = sorted({values for row in found.values() for values in row}, key=lambda each: list(map(_order, each)))
        rows = []
        for place, results in sorted(found.items(), key=lambda row: list(map(_order, row[0]))):
            best = _best(place[-1], results)
            rows.append((*place, *(_spread(results.get(values, [])) for values in columns), " ".join(best)))
        title = f"along {', '.join(settings)}"
        return Table(title=title, header=(*others, "result", *map(" ".join, columns), "best at"), rows=rows)

    def lines(self, setting: str) -> list[SweptLine]:
        """The same along one setting, for its figure.

        Raises:
            ValueError: its values are no numbers.
        """
        others, found = self._found_along([setting])
        short = short_names(set(others))
        lines = []
        for place, results in sorted(found.items(), key=lambda row: list(map(_order, row[0]))):
            of_all, _, loops = place[-1].partition(" L=")
            said = [f"{short[key]}={value}" for key, value in zip(others, place, strict=False) if value != "default"]
            panel = "\n".join(each for each in said if not each.startswith(f"{short.get(LOOPS)}=")) or "defaults"
            try:
                ordered = sorted((float(value), values) for (value, *_), values in results.items())
            except ValueError:
                raise ValueError(f"--figure: {setting} is not a number in every run: leave --figure out") from None
            points = [(at, statistics.fmean(each.value for each in its), _error(its)) for at, its in ordered]
            best = [at for at, _, _ in points].index(float(_best(place[-1], results)[0]))
            lines.append(
                SweptLine(panel=panel, result=of_all, name=f"L={loops}" if loops else of_all, points=points, best=best)
            )
        return lines

    def _found_along(self, settings: Sequence[str]) -> tuple[list[str], dict[tuple[str, ...], Found]]:
        """The settings that set rows apart; the results of each row by the values of what they are along."""
        for key in settings:
            if key not in self.keys:
                raise ValueError(f"--along {key}: the runs differ in {', '.join(self.keys) or 'nothing'}")
        others = sorted(key for key in self.keys if key not in settings)
        found: dict[tuple[str, ...], Found] = defaultdict(lambda: defaultdict(list))
        for run in (run for group in self.groups for run in group):
            for label, result in run.results.items():
                place = (*(_shown(run, key) for key in others), str(label))
                found[place][tuple(_shown(run, key) for key in settings)].append(result)
        return others, found

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


def _best(label: str, results: Found) -> tuple[str, ...]:
    """At which values the mean over seeds is best."""
    means = {values: statistics.fmean(each.value for each in its) for values, its in results.items()}
    is_lower = any(f" {metric} " in f" {label} " for metric in LOWER_IS_BETTER)
    return min(means, key=lambda values: means[values] if is_lower else -means[values])


def _error(results: Sequence[Result]) -> float:
    if len(results) > 1:
        return statistics.stdev(result.value for result in results)
    return results[0].stderr or 0.0


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
