"""Select of evaluation rows the latest step and the metric of each task; tell runs apart; add the means over groups."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

from pretrain.rows.evaluation import EvaluationRow
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.metrics import PERCENT, is_share, main_metric
from pretrain.rows.step import TimedStep

PAPER_GROUPS = ("closed_book", "open_book", "math_word_problems")
"""The groups of the 15 tasks in tables 3 and 4 of arXiv 2502.17416."""


def latest(rows: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    """The rows of the latest step of each run, task and metric; a later row of the same step and loop count wins."""
    newest: dict[tuple[str | None, ...], dict[int, EvaluationRow]] = {}
    steps: dict[tuple[str | None, ...], int] = {}
    for row in rows:
        key = (row.run, row.run_id, row.task_group, row.task, row.metric)
        if row.step > steps.get(key, -1):
            steps[key], newest[key] = row.step, {}
        if row.step == steps[key]:
            newest[key][row.num_loops] = row
    return [row for by_loops in newest.values() for row in by_loops.values()]


def choose_metric(rows: Sequence[EvaluationRow], choices: Sequence[str] = ()) -> tuple[list[EvaluationRow], list[str]]:
    """Keep one metric of each task: the one that is chosen for its group, else the one that it is judged by.

    Args:
        rows: of any task groups.
        choices: a metric, for every group that has it, or "group=metric" for one task group.

    Returns:
        The rows, percentages as shares of 1, and a line for each task that is left out, as it lacks what is chosen.

    Raises:
        ValueError: no row has what is chosen, or nothing says which of several metrics of a task to take.
    """
    metrics: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    judged_by: dict[str, str] = {}
    for row in rows:
        metrics[row.task_group][row.task].add(row.metric)
        if row.is_main:
            judged_by[row.task] = row.metric
    of_group = {group: set().union(*tasks.values()) for group, tasks in metrics.items()}
    wanted = [choice.rpartition("=") for choice in choices]
    for group, is_named, metric in wanted:
        if is_named and group not in metrics:
            raise ValueError(f"no row is of task group {group!r}: there are {', '.join(sorted(metrics))}")
        there = of_group[group] if is_named else set().union(*of_group.values())
        if rows and metric not in there:
            what = f"row of task group {group!r}" if is_named else "row"
            raise ValueError(f"no {what} has metric {metric!r}: choose one of {', '.join(sorted(there))}")
    chosen: dict[str, str] = {}
    left_out: list[str] = []
    for group, tasks in metrics.items():
        mine = [metric for other, is_named, metric in wanted if is_named and other == group]
        anyone = [metric for _, is_named, metric in wanted if not is_named and metric in of_group[group]]
        choice = next(iter((*mine, *anyone)), None)
        for task, names in tasks.items():
            if choice is not None and choice not in names:
                left_out.append(f"task {task} of {group} has no {choice}, but {', '.join(sorted(names))}: left out")
                continue
            found = choice or judged_by.get(task) or main_metric(names)
            if found is None:
                several = ",".join(sorted(names))
                raise ValueError(f"task {task!r} has several metrics: choose one with --metric '{group}={{{several}}}'")
            chosen[task] = found
    return [_as_share(row) for row in rows if chosen.get(row.task) == row.metric], left_out


def _as_share(row: EvaluationRow) -> EvaluationRow:
    if (row.task, row.metric) not in PERCENT:
        return row
    return replace(row, value=row.value / 100, stderr=None if row.stderr is None else row.stderr / 100)


def with_means(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows, and again those of groups that are averaged together: the 15 tasks of the paper ("all_15"), and all
    tasks whose metric is a share of 1 ("all"); a mean of one group, or the same mean again, is left out."""
    shares = [row for row in rows if is_share(row.metric)]
    paper = [row for row in shares if row.task_group in PAPER_GROUPS]
    more: list[EvaluationRow] = []
    for name, members in (("all_15", paper), ("all", shares)):
        if len({row.task_group for row in members}) > 1 and not (name == "all" and len(members) == len(paper)):
            more += [in_group(row, name) for row in members]
    return [*rows, *more]


def with_step_times(rows: list[EvaluationRow], path: Path) -> list[EvaluationRow]:
    """The rows of a run's `eval/depth.jsonl`, with the median time of its steps where `metrics.jsonl` says it."""
    file = path.parent.parent / "metrics.jsonl"
    if path.parent.name != "eval" or not file.is_file() or all(row.step_time_s is not None for row in rows):
        return rows
    times: dict[str | None, list[float]] = defaultdict(list)
    for step in JsonLines(file).read(TimedStep):
        times[step.run_id].append(step.step_time_s)
    medians = {run_id: statistics.median(of_run) for run_id, of_run in times.items()}
    return [_with(row, step_time_s=medians.get(row.run_id, row.step_time_s)) for row in rows]


def in_group(row: EvaluationRow, task_group: str) -> EvaluationRow:
    """The row as one of another task group: what `replace` gives, at a tenth of its time, for a hundred thousand."""
    return _with(row, task_group=task_group)


def _with(row: EvaluationRow, **changes: object) -> EvaluationRow:
    moved = copy(row)
    for name, value in changes.items():
        object.__setattr__(moved, name, value)
    return moved


def tell_apart(files: Mapping[Path, Sequence[EvaluationRow]]) -> tuple[list[EvaluationRow], list[str]]:
    """The rows of all files, each once, and what to say about them.

    A run is its id. Rows from before runs had one are of a run by its name, and people give seeds of one configuration
    the same: where two files hold different numbers of one result of a name, they are of different runs. Of runs with
    one name each gets its file in its name. The same rows in two files, a copy, are one run.
    """
    results: dict[str, dict[tuple[object, ...], set[tuple[object, ...]]]] = defaultdict(lambda: defaultdict(set))
    ids: dict[str, set[str | None]] = defaultdict(set)
    holders: dict[str, dict[Path, None]] = defaultdict(dict)
    for path, rows in files.items():
        ours: dict[tuple[str, tuple[object, ...]], EvaluationRow] = {}
        for row in rows:  # a later row of one file is the one that counts
            ours[row.run, (row.step, row.task, row.metric, row.num_loops, row.num_examples, row.inputs)] = row
            holders[row.run][path] = None
            ids[row.run].add(row.run_id)
        for (run, key), row in ours.items():
            results[run][key].add((repr(row.value), row.tokens_seen, row.effective_depth, row.num_params))
    doubled = {run for run, found in results.items() if any(len(values) > 1 for values in found.values())}
    doubled = {run for run in doubled if None in ids[run]} | {run for run in ids if len(ids[run] - {None}) > 1}
    notes = [
        f"{len(holders[run])} files hold different runs of the name {run!r}: they are told apart by their files, "
        f"{', '.join(map(str, holders[run]))}"
        for run in sorted(doubled)
    ]
    kept: dict[tuple[object, ...], EvaluationRow] = {}
    for path, rows in files.items():
        for row in rows:
            named = replace(row, run=_own_name(row, path)) if row.run in doubled else row
            what = (row.step, row.task_group, row.task, row.metric, row.num_loops, row.num_examples, row.inputs)
            cost = (row.tokens_seen, row.train_flops, row.num_params, row.effective_depth, row.stderr)
            kept.setdefault((named.run, row.run_id, *what, *cost, repr(row.value)), named)
    return list(kept.values()), notes


def _own_name(row: EvaluationRow, path: Path) -> str:
    return f"{row.run} ({path})" if row.run_id is None else f"{row.run} ({row.run_id[:6]}, {path})"
