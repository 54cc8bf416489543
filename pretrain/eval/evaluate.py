"""Evaluating a run on tasks: every task at every loop count, row by row, continued where an earlier call stopped.

The rows of a task are given together when all its loop counts are done, and the next call leaves out a task that has
them on as many examples, of the same run, configuration and data, and from the same inputs: examples, shots, tokenizer,
checkpoint, harness, bos. Rows of which one of these differs, or is not known, do not count, and that is said. If a
crash cut their writing short, a loop count lacks rows: the task is run again, and gives those that are not there.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any

from lm_eval import evaluator
from lm_eval.api.task import Task

from pretrain.eval.groups import ResolvedTask
from pretrain.eval.harness import LoopedLM
from pretrain.rows.evaluation import EvaluationRow, FoundResult, ResultKey, ScoredModel
from pretrain.rows.identity import differing_inputs
from pretrain.rows.jsonl import JsonLines
from pretrain.rows.metrics import main_metric
from pretrain.tasks.shortcuts import NO_FLOOR, floor_of

BOOTSTRAP_SAMPLES = 1000
"""Resamplings for the standard error of a metric that is not a mean."""
FEWSHOT_SEED = 1234
"""Seed of the solved examples in a prompt, the same at every loop count and step; the harness's own default."""
_COUNTS = ("alias", "name", "sample_len", "sample_count")


def prepare_harness() -> None:
    """Let the harness report only errors, and resample in this process: one with a world of ranks must not fork."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"


def evaluate(
    lm: LoopedLM,
    subject: ScoredModel,
    tasks: Sequence[ResolvedTask],
    loader: Callable[[ResolvedTask], list[Task]],
    *,
    num_examples: int | None,
    file: JsonLines,
) -> Iterator[tuple[ResolvedTask, list[EvaluationRow]]]:
    """Run tasks one after the other, each at every loop count of `lm`; gives the rows that the file lacks.

    Args:
        lm: the model.
        subject: what it is.
        tasks: what to run.
        loader: returns the harness's objects of a task: `load_tasks`.
        num_examples: first examples of each task that are run; None runs them whole.
        file: rows of earlier calls, read before the first task; a task that is done there is not run. Its `problems`
            also say which rows of a task were passed over, and why, and how many texts did not fit the model.

    Raises:
        ValueError: a file of a task is malformed.
        Stopped: the ranks voted to stop.
    """
    found = file.read(FoundResult)
    for task in tasks:
        rows: list[EvaluationRow] = []
        lm.forget()
        parts = loader(task)
        inputs = _inputs(lm, subject, parts, num_examples)
        there, passed_over = _made_alike(found, subject, task, inputs)
        if passed_over:
            file.problems.append(f"{file.path}: {task.name}: {passed_over}")
        sizes = {min(len(part.eval_docs), num_examples or len(part.eval_docs)) for part in parts}
        if not _is_done(there, subject, task, lm.loops, sizes):
            for part in parts:
                for num_loops in lm.loops:
                    with lm.at(num_loops), _named(task):
                        rows += _rows(lm, subject, task, part, num_loops, num_examples, inputs)
        if lm.about_cut:
            file.problems.append(f"{task.name}: {lm.about_cut}")
        lm.forget()
        rows.sort(key=lambda row: lm.loops.index(row.num_loops))  # a write that is cut short leaves a loop count out
        missing = []
        for row in rows:
            if there[ResultKey.of(row)]:
                there[ResultKey.of(row)] -= 1
            else:
                missing.append(row)
        yield task, missing


@contextlib.contextmanager
def _named(task: ResolvedTask) -> Iterator[None]:
    """Bad input says which task it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"task {task.name}: {error}") from None


def rows_of(
    lm: LoopedLM, subject: ScoredModel, task: ResolvedTask, parts: Sequence[Task], num_examples: int | None
) -> list[EvaluationRow]:
    """Run one task at the loop counts of `lm`, whatever has been done before; arguments as of `evaluate`, `parts` what
    its loader returns."""
    inputs, rows = _inputs(lm, subject, parts, num_examples), []
    for part in parts:
        for num_loops in lm.loops:
            with lm.at(num_loops):
                rows += _rows(lm, subject, task, part, num_loops, num_examples, inputs)
    return rows


def _inputs(lm: LoopedLM, subject: ScoredModel, parts: Sequence[Task], num_examples: int | None) -> str:
    """What the rows of a task are made from; see `ResultRow.inputs`."""
    examples, shots = hashlib.sha256(), hashlib.sha256()
    for part in parts:
        for document in islice(part.eval_docs, num_examples):
            prompt = part.doc_to_text(document)  # a change of the task's form changes it too
            examples.update(json.dumps([document, prompt], sort_keys=True, default=str).encode())
        if num_fewshot := part.config.num_fewshot:
            shots.update(str(num_fewshot).encode())
            for document in part.fewshot_docs():
                shots.update(json.dumps(document, sort_keys=True, default=str).encode())
    found = {
        "examples": examples.hexdigest(), "shots": shots.hexdigest(), "tokenizer": lm.text.sha256,
        "checkpoint": subject.checkpoint,
    }  # fmt: skip
    hashes = [f"{name}={value[:12]}" for name, value in found.items() if value is not None]
    is_scored = any(part.OUTPUT_TYPE == "loglikelihood_rolling" for part in parts)  # as a token of the text
    bos = "no" if not lm.add_bos else "scored" if is_scored else "yes"
    return " ".join([*hashes, f"harness={version('lm_eval')}", f"bos={bos}"])


def _made_alike(
    found: Sequence[FoundResult], subject: ScoredModel, task: ResolvedTask, inputs: str
) -> tuple[Counter[ResultKey], str]:
    """The rows of a task that count as those that are asked for, and what to say of the others.

    They are those after the last row of other inputs, which is what a plot takes: an older one is as good as not there.
    """
    there: Counter[ResultKey] = Counter()
    others: dict[str, int] = {}
    for row in found:
        if (row.run, row.step, row.task) != (subject.saved.run, subject.counters.step, task.name):
            continue
        key, names = ResultKey.of(row), differing_inputs(row, row.inputs, subject.identity, inputs)
        if names:
            others[", ".join(names)] = others.get(", ".join(names), 0) + 1
            same = (key.run, key.step, key.task, key.num_examples)
            for old in [each for each in there if (each.run, each.step, each.task, each.num_examples) == same]:
                del there[old]
        else:
            there[key] += 1
    said = [f"{count} rows of this step differ in {names}" for names, count in others.items()]
    return there, f"{'; '.join(said)}: they do not count" if said else ""


def _is_done(
    there: Counter[ResultKey], subject: ScoredModel, task: ResolvedTask, loops: Sequence[int], sizes: set[int]
) -> bool:
    """Whether the file has rows of a task on these numbers of examples, with the same metrics at every loop count."""
    found: dict[int, set[tuple[str, int]]] = {num_loops: set() for num_loops in loops}
    for key in there:
        is_ours = (key.run, key.step, key.task) == (subject.saved.run, subject.counters.step, task.name)
        if is_ours and key.num_loops in found and key.num_examples in sizes:
            found[key.num_loops].add((key.metric, key.num_examples))
    first = found[loops[0]]
    return {size for _, size in first} == sizes and all(results == first for results in found.values())


def _rows(
    lm: LoopedLM, subject: ScoredModel, task: ResolvedTask, loaded: Task, num_loops: int, num_examples: int | None,
    inputs: str,
) -> list[EvaluationRow]:  # fmt: skip
    name = loaded.task_name
    task_dict: Any = {"tasks": {name: loaded}, "groups": {}, "group_map": {}}
    loaded.set_fewshot_seed(FEWSHOT_SEED)  # for each loop count, or each would see other prompts
    silent = io.StringIO()  # the harness has bars and prints that no argument of it turns off
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        found: Any = evaluator.evaluate(
            lm, task_dict, limit=num_examples, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False
        )
    size = found["n-samples"][name]["effective"]
    results: dict[str, Any] = found["results"][name]
    values: dict[str, tuple[float, float | None]] = {}
    for key, value in results.items():
        metric, _, way = key.partition(",")
        if key in _COUNTS or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = results.get(f"{metric}_stderr,{way}")
        shown = metric if way in ("", "none") else f"{metric} ({way})"
        values[shown] = float(value), float(error) if isinstance(error, (int, float)) else None
    main = main_metric(values, task.main)
    floor = NO_FLOOR if task.file else floor_of(task.generator, task.parameters)  # that of the file is not known
    of = partial(subject.row, task.name, task.group, num_loops=num_loops, num_examples=size, inputs=inputs)
    return [
        of(metric, value, stderr=stderr, is_main=metric == main, **(floor if metric == main else NO_FLOOR)._asdict())
        for metric, (value, stderr) in values.items()
    ]
