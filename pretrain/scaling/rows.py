"""Select of evaluation rows the latest step and one metric per task group; tell runs of one name apart."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

from pretrain.rows.evaluation import EvaluationRow


def latest(rows: Iterable[EvaluationRow]) -> list[EvaluationRow]:
    """The rows of the latest step of each run, task and metric; a later row of the same step and loop count wins."""
    newest: dict[tuple[str, ...], dict[int, EvaluationRow]] = {}
    steps: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = (row.run, row.task_group, row.task, row.metric)
        if row.step > steps.get(key, -1):
            steps[key], newest[key] = row.step, {}
        if row.step == steps[key]:
            newest[key][row.num_loops] = row
    return [row for by_loops in newest.values() for row in by_loops.values()]


PREFERRED = (
    "acc", "exact_match", "exact_match (strict-match)", "f1", "nll", "bits_per_byte", "word_perplexity", "perplexity",
)  # fmt: skip
"""Which of several metrics of a task group is plotted where none is chosen, the first that it has."""


def choose_metric(rows: Sequence[EvaluationRow], choices: Sequence[str] = ()) -> list[EvaluationRow]:
    """Keep one metric of each task group: its only one, or the first of the choices that it has, or of PREFERRED.

    Args:
        rows: of any task groups.
        choices: a metric, or "group=metric" for one task group.

    Raises:
        ValueError: no row has what is chosen, or nothing says which of several metrics to take.
    """
    metrics: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        metrics[row.task_group].add(row.metric)
    wanted = [choice.rpartition("=") for choice in choices]
    for group, is_named, metric in wanted:
        if is_named and group not in metrics:
            raise ValueError(f"no row is of task group {group!r}: there are {', '.join(sorted(metrics))}")
        there = metrics[group] if is_named else set().union(*metrics.values())
        if rows and metric not in there:
            what = f"row of task group {group!r}" if is_named else "row"
            raise ValueError(f"no {what} has metric {metric!r}: choose one of {', '.join(sorted(there))}")
    chosen: dict[str, str] = {}
    for group, names in metrics.items():
        mine = [metric for other, is_named, metric in wanted if is_named and other == group]
        anyone = [metric for _, is_named, metric in wanted if not is_named]
        found = next((name for name in (*mine, *anyone, *PREFERRED) if name in names), None)
        if found is None and len(names) > 1:
            raise ValueError(
                f"task group {group!r} has several metrics: choose one with --metric "
                f"'{group}={{{','.join(sorted(names))}}}'"
            )
        chosen[group] = found or next(iter(names))
    return [row for row in rows if row.metric == chosen[row.task_group]]


def tell_apart(files: Mapping[Path, Sequence[EvaluationRow]]) -> tuple[list[EvaluationRow], list[str]]:
    """The rows of all files, each once, and what to say about them.

    A run is its name, and people give seeds of one configuration the same. Where two files hold different numbers of
    one result of a run, they are of different runs: each gets its file in its name. The same rows in two files, a copy,
    are one run.
    """
    results: dict[str, dict[tuple[object, ...], set[tuple[object, ...]]]] = defaultdict(lambda: defaultdict(set))
    holders: dict[str, dict[Path, None]] = defaultdict(dict)
    for path, rows in files.items():
        ours: dict[tuple[str, tuple[object, ...]], EvaluationRow] = {}
        for row in rows:  # a later row of one file is the one that counts
            ours[row.run, (row.step, row.task, row.metric, row.num_loops, row.num_examples)] = row
            holders[row.run][path] = None
        for (run, key), row in ours.items():
            results[run][key].add((repr(row.value), row.tokens_seen, row.effective_depth, row.num_params))
    doubled = {run for run, found in results.items() if any(len(values) > 1 for values in found.values())}
    notes = [
        f"{len(holders[run])} files hold different runs of the name {run!r}: they are told apart by their files, "
        f"{', '.join(map(str, holders[run]))}"
        for run in sorted(doubled)
    ]
    kept: dict[tuple[object, ...], EvaluationRow] = {}
    for path, rows in files.items():
        for row in rows:
            named = replace(row, run=f"{row.run} ({path})") if row.run in doubled else row
            kept.setdefault((repr(named.value), *astuple(replace(named, value=0.0))), named)
    return list(kept.values()), notes
