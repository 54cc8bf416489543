"""Read and check evaluation rows, and select the latest step and one metric per task group."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Family = Literal["looped", "baseline", "regularised"]


class Row(BaseModel):
    """One line of `eval/depth.jsonl`; `pretrain/run/rows.py` documents the fields. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    run: str
    step: int = Field(ge=0)
    tokens_seen: int | None = Field(ge=0)
    train_flops: float | None = Field(ge=0)
    num_params: int = Field(ge=1)
    num_loop_params: int | None = Field(default=None, ge=0)
    task: str
    task_group: str
    metric: str
    value: float
    stderr: float | None = Field(ge=0)
    num_examples: int = Field(ge=1)
    num_loops: int = Field(ge=1)
    effective_depth: int = Field(ge=1)
    eval_flops_per_token: float = Field(ge=0)
    family: Family


def read_rows(files: Iterable[Path]) -> Iterator[Row]:
    """Read the rows of JSON lines files such as `<run>/eval/depth.jsonl`.

    Raises:
        ValueError: a row is malformed; names the file, line and field of the first.
        OSError: a file cannot be read.
    """
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield Row.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    field = ".".join(map(str, first["loc"]))
                    raise ValueError(f"{file}:{number}: {field + ': ' if field else ''}{first['msg']}") from None


def latest(rows: Iterable[Row]) -> list[Row]:
    """The rows of the latest step of each run, task and metric; a later row of the same step and loop count wins."""
    newest: dict[tuple[str, ...], dict[int, Row]] = {}
    steps: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = (row.run, row.task_group, row.task, row.metric)
        if row.step > steps.get(key, -1):
            steps[key], newest[key] = row.step, {}
        if row.step == steps[key]:
            newest[key][row.num_loops] = row
    return [row for by_loops in newest.values() for row in by_loops.values()]


def choose_metric(rows: Sequence[Row], metric: str | None = None) -> list[Row]:
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
