"""Evaluating a run on tasks: every task at every loop count, row by row, continued where an earlier call stopped.

The rows of a task are written together when all its loop counts are done, so a task is in the file whole or not at all,
and the next call leaves out what is there on as many examples.
"""

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.task import Task

from pretrain.eval.groups import ResolvedTask, load_tasks
from pretrain.eval.harness import LoopedLM
from pretrain.run.rows import EvaluationRow
from pretrain.run.scored_model import ScoredModel

BOOTSTRAP_SAMPLES = 1000
"""Resamplings for the standard error of a metric that is no mean."""
FEWSHOT_SEED = 1234
"""Of the choice of solved examples in a prompt, the same at every loop count and step; the harness's own default."""
_COUNTS = ("alias", "name", "sample_len", "sample_count")


def prepare_harness() -> None:
    """Let the harness report errors alone, and resample in this process: one with a world of ranks must not fork."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"


def load(task: ResolvedTask, data_dir: Path | None, num_examples: int | None) -> list[Task]:
    """The harness's objects of a task; arguments as of `evaluate`.

    Raises:
        ValueError: a file of the task is malformed.
    """
    return load_tasks(task, data_dir) if num_examples is None else load_tasks(task, data_dir, num_examples=num_examples)


def evaluate(
    lm: LoopedLM,
    subject: ScoredModel,
    tasks: Sequence[ResolvedTask],
    loader: Callable[[ResolvedTask], list[Task]],
    *,
    num_examples: int | None,
    file: Path,
) -> Iterator[tuple[ResolvedTask, list[EvaluationRow]]]:
    """Run tasks one after the other, each at every loop count of `lm`.

    Args:
        lm: the model.
        subject: what it is.
        tasks: what to run.
        loader: gives the harness's objects of a task: `load`.
        num_examples: first examples of each task that are run; None runs them whole.
        file: rows of earlier calls; a task that is done there is not run, and has no rows here.

    Raises:
        ValueError: a file of a task is malformed.
        Stopped: a rank wished to stop.
    """
    done = scored_examples(file, subject)
    for task in tasks:
        rows: list[EvaluationRow] = []
        lm.forget()
        parts = loader(task)
        sizes = {min(len(part.eval_docs), num_examples or len(part.eval_docs)) for part in parts}
        if not all(done.get((task.name, num_loops), set()) >= sizes for num_loops in lm.loops):
            for part in parts:
                for num_loops in lm.loops:
                    with lm.at(num_loops):
                        rows += _rows(lm, subject, task, part, num_loops, num_examples)
        lm.forget()
        yield task, rows


def _rows(
    lm: LoopedLM, subject: ScoredModel, task: ResolvedTask, loaded: Task, num_loops: int, num_examples: int | None
) -> list[EvaluationRow]:
    name = loaded.task_name
    task_dict: Any = {"tasks": {name: loaded}, "groups": {}, "group_map": {}}
    loaded.set_fewshot_seed(FEWSHOT_SEED)  # anew for each loop count, or each would see other prompts
    silent = io.StringIO()  # the harness has bars and prints that no argument of it turns off
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        found: Any = evaluator.evaluate(
            lm, task_dict, limit=num_examples, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False
        )
    size = found["n-samples"][name]["effective"]
    results: dict[str, Any] = found["results"][name]
    rows = []
    for key, value in results.items():
        metric, _, way = key.partition(",")
        if key in _COUNTS or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = results.get(f"{metric}_stderr,{way}")
        shown = metric if way in ("", "none") else f"{metric} ({way})"
        rows.append(
            subject.row(
                task.name,
                task.group,
                shown,
                float(value),
                num_loops=num_loops,
                num_examples=size,
                stderr=float(error) if isinstance(error, (int, float)) else None,
            )
        )
    return rows


def scored_examples(file: Path, subject: ScoredModel) -> dict[tuple[str, int], set[int]]:
    """How many examples the rows of a file were scored on, for each task and loop count of this run at this step."""
    found: dict[tuple[str, int], set[int]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
            if row["run"] == subject.saved.run and row["step"] == subject.counters.step:
                found.setdefault((row["task"], row["num_loops"]), set()).add(row["num_examples"])
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a crash: whoever reads the file for good says so
    return found


def append_rows(file: Path, rows: Sequence[EvaluationRow]) -> None:
    """Add rows to a file, all in one write.

    Raises:
        OSError: the disk is full, say.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
