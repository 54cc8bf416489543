"""Select of evaluation rows the latest step and one metric per task group."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

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


def choose_metric(rows: Sequence[EvaluationRow], metric: str | None = None) -> list[EvaluationRow]:
    """Keep one metric of each task group: its only one, or `metric` if it has several.

    Raises:
        ValueError: no row has `metric`, or a task group has several metrics and `metric` is not one of them.
    """
    metrics: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        metrics[row.task_group].add(row.metric)
    all_metrics = sorted(set().union(*metrics.values()))
    if rows and metric is not None and metric not in all_metrics:
        raise ValueError(f"no row has metric {metric!r}: choose one of {', '.join(all_metrics)}")
    for group, names in metrics.items():
        if len(names) > 1 and metric not in names:
            raise ValueError(
                f"task group {group!r} has several metrics: choose one with --metric {{{','.join(sorted(names))}}}"
            )
    return [row for row in rows if len(metrics[row.task_group]) == 1 or row.metric == metric]
