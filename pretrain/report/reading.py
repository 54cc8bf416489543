"""What a report shows, read from the files of a run directory, whatever is there; damaged lines are
passed over, and said."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.report.chart import Chart, Series
from pretrain.rows.diagnostics import DIAGNOSTICS
from pretrain.rows.identity import parse_inputs
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.metrics import METRIC_NAMES
from pretrain.run.logger import LOG

Row = Mapping[str, Any]

STEP_CHARTS = {
    "loss": "training loss (nats per token)",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "tokens_per_s": "tokens per second",
    "mfu_pct": "model FLOPs utilisation (%)",
    "memory_gib": "peak memory of rank 0 (GiB)",
    "num_loops": "loops of a step",
    "reward": "reward: share of right answers",
    "entropy": "entropy of text as it was drawn (nats per token)",
    "latent_share": "thoughts, of thoughts and tokens",
    "mixed_groups": "questions with right and wrong answers (share)",
    "stage": "curriculum stage",
}
"""Numbers of rows of metrics.jsonl that have a chart, with its title; beyond the first, what never changes has none."""
ALWAYS = 4
"""How many of them are drawn all the same."""
LOGGED = re.compile(r"(warning|error): .*")
OF_NOTE = re.compile(r"^\S+ (warning: |error: |step \d+ of \d+: (resumed|stopped))")
"""Of the run's own log."""
MOST_LINES = 200
"""Of a log."""


def read_rows(path: Path, problems: list[str] | None = None) -> list[Row]:
    """The rows of a file, none if it is not there; a line for each that is damaged is added to `problems`.

    Raises:
        OSError: it cannot be read.
    """
    file = JsonLines(path)
    rows = file.read(dict[str, Any])
    if problems is not None:
        problems += [f"{problem}: passed over" for problem in file.problems]
    return [row for row in rows if isinstance(row.get("step"), int)]


def step_charts(run: Path) -> list[Chart]:
    """Of what training logged."""
    rows, charts = read_rows(run / "metrics.jsonl"), []
    for place, (key, title) in enumerate(STEP_CHARTS.items()):
        points = _points(rows, key)
        if points and (place < ALWAYS or len({value for _, value in points}) > 1):
            charts.append(Chart(title=title, series=[Series(name=title, points=points)]))
    return charts


def evaluation_charts(run: Path) -> list[Chart]:
    """Of tasks and validation losses scored at several steps: a line a loop count, or a number of thoughts."""
    depth = _grouped(
        read_rows(run / "eval" / "depth.jsonl"),
        lambda row: f"{row.get('task')}: {METRIC_NAMES.get(str(row.get('metric')), row.get('metric'))}",
        lambda row: _counted(row.get("num_loops"), "loop"), "value",
    )  # fmt: skip
    thoughts = _grouped(
        read_rows(run / "eval" / "coconut.jsonl"), lambda row: f"{row.get('split')}: accuracy",
        lambda row: _counted(row.get("num_thoughts"), "thought"), "accuracy",
    )  # fmt: skip
    charts = [*depth, *thoughts]
    return [chart for chart in charts if any(len(series.points) > 1 for series in chart.series)]


def diagnostic_charts(run: Path) -> list[Chart]:
    """Of what hooks measured: a chart a family, a line a member: state_norm.loop3 is of the family state_norm."""
    families: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(run / DIAGNOSTICS):
        for name, value in row.items():
            if name != "step" and _is_number(value):
                family, _, member = name.partition(".")
                families[family][member or family.replace("_", " ")].append((row["step"], value))
    return [_chart(family.replace("_", " "), members) for family, members in families.items()]


RESULT_HEADER = ("task", "metric", "at", "value", "step", "examples", "chance", "best shortcut")


def results(run: Path) -> list[tuple[str, ...]]:
    """Cells of a table: the newest result of each task, metric and loop count or number of thoughts, on each set of
    examples."""
    newest: dict[tuple[str, ...], tuple[str, ...]] = {}

    def keep(row: Row, key: tuple[str, str, str], value: str) -> None:
        asked = str(row.get("num_examples", ""))
        floors = (f"{row[name]:.3g}" if _is_number(row.get(name)) else "" for name in ("chance", "shortcut"))
        examples = parse_inputs(str(row.get("inputs") or "")).get("examples", "")
        newest[(*key, asked, examples)] = (*key, _measured(row, value), str(row["step"]), asked, *floors)

    for row in read_rows(run / "eval" / "depth.jsonl"):
        loops = _counted(row.get("num_loops"), "loop")
        keep(row, (str(row.get("task")), str(row.get("metric")), loops), "value")
    for row in read_rows(run / "eval" / "coconut.jsonl"):
        loops, thoughts = _counted(row.get("num_loops"), "loop"), _counted(row.get("num_thoughts"), "thought")
        keep(row, (str(row.get("split")), "accuracy", f"{thoughts}, {loops}"), "accuracy")
    return list(newest.values())


def troubles(run: Path) -> list[str]:
    """Restarts, warnings and errors of the logs of the run and its jobs, damaged rows, skipped steps, and where ranks
    stood."""
    lines = [f"requeued: {line}" for line in _lines(run / "requeues.txt")]
    lines += [line for line in _lines(run / LOG) if OF_NOTE.search(line)]
    for log in sorted((run / "jobs").glob("*/step.log")):
        found = filter(None, map(LOGGED.search, _lines(log)))
        lines += [f"job {log.parent.name}: {match[0]}" for match in found]
    for name in ("depth.jsonl", "coconut.jsonl"):
        read_rows(run / "eval" / name, lines)
    skipped = 0
    for row in read_rows(run / "metrics.jsonl", lines):
        if isinstance(row.get("skipped"), int) and row["skipped"] != skipped:
            if row["skipped"] > skipped:
                lines.append(
                    f"step {row['step']}: {row['skipped'] - skipped} skipped, not finite, since the row before"
                )
            skipped = row["skipped"]
    lines += [
        f"a rank lost contact; where it stood: {path.relative_to(run)}" for path in sorted(run.glob("logs/*.txt"))
    ]
    distinct = list(dict.fromkeys(lines))
    more = [f"... and {len(distinct) - MOST_LINES} more"] if len(distinct) > MOST_LINES else []
    return [*distinct[:MOST_LINES], *more]


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Keys and values of a configuration, as on the command line."""
    rows = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append((f"{prefix}{key}", text))
    return rows


def _grouped(
    rows: Iterable[Row], title: Callable[[Row], str], name: Callable[[Row], str], value: str
) -> Sequence[Chart]:
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if _is_number(row.get(value)):
            found[title(row)][name(row)].append((row["step"], row[value]))
    return [_chart(each, series) for each, series in found.items()]


def _chart(title: str, series: Mapping[str, Iterable[tuple[float, float]]]) -> Chart:
    """Lines in the order of the numbers in their names, each with one value a step, the last."""
    names = sorted(series, key=lambda name: [int(part) if part.isdecimal() else 0 for part in re.split(r"(\d+)", name)])
    return Chart(title=title, series=[Series(name=name, points=sorted(dict(series[name]).items())) for name in names])


def _points(rows: Iterable[Row], key: str) -> list[tuple[float, float]]:
    return sorted({row["step"]: row[key] for row in rows if _is_number(row.get(key))}.items())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counted(count: object, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _measured(row: Row, key: str) -> str:
    if not _is_number(row.get(key)):
        return "not finite"
    return f"{row[key]:.4f}" + (f" ± {row['stderr']:.4f}" if _is_number(row.get("stderr")) else "")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
