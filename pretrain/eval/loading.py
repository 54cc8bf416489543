"""Tasks made ready: the harness's objects with their documents and shots, all of them before the first is scored."""

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval.api.task import Task

from pretrain.eval.groups import ResolvedTask, SkippedTask, Supervise
from pretrain.eval.managers import folder_tasks, network_tasks, offline_tasks
from pretrain.eval.own_tasks import harness_task
from pretrain.tasks.example_file import read_examples
from pretrain.tasks.registry import make_task

NUM_GENERATED = 1000
"""Questions of a generated task."""
REACH_S = 5.0
"""Time for the network to answer."""
FORMS: dict[Supervise, dict[str, Any]] = {
    "answer": {"match": "generation"},
    "steps": {"match": "generation", "with_steps": True},
    "prefixes": {"match": "likelihood"},  # the answer is one symbol
}
"""How the answers of a generator's task are asked for (arguments of `harness_task`), by what was supervised."""


def load_all(
    tasks: Sequence[ResolvedTask], data_dir: Path | None, *, num_examples: int | None, say: Callable[[str], None]
) -> tuple[dict[str, list[Task]], list[SkippedTask]]:
    """The objects of every task by its name, and the tasks whose documents could not be had.

    Args:
        tasks: from `resolve`.
        data_dir: as given to `resolve`.
        num_examples: as of `load_tasks`.
        say: told of each task before it is loaded.

    Raises:
        ValueError: a row of a file is malformed.
    """
    loaded: dict[str, list[Task]] = {}
    skipped: list[SkippedTask] = []
    if any(task.source == "network" for task in tasks):
        _try_network()
    for number, task in enumerate(tasks, start=1):
        say(f"loading {task.name} ({number}/{len(tasks)})")
        try:
            loaded[task.name] = load_tasks(task, data_dir, num_examples=num_examples)
        except Exception as error:
            if task.source not in ("network", "folder"):  # ours say what is wrong
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            hint = "; without the network its files are read from --data-dir" if task.source == "network" else ""
            skipped.append(SkippedTask(name=task.name, group=task.group, reason=f"{reason[:300]}{hint}"))
    return loaded, skipped


def _try_network() -> None:
    """Where the hub does not answer, have its client look into its cache alone, instead of trying for minutes."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname or "", address.port or 443), REACH_S).close()
    except OSError:
        from datasets import config
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True


def load_tasks(
    task: ResolvedTask, data_dir: Path | None, *, num_examples: int | None = None, seed: int = 0
) -> list[Task]:
    """The harness's objects of a task, with its shots set: one, or several if the harness knows the name as a group.

    Args:
        task: from `resolve`.
        data_dir: as given to `resolve`.
        num_examples: questions of a generated task, by default NUM_GENERATED; what is read has a number of its own.
        seed: of the questions of a generated task.

    Raises:
        ValueError: a row of a file is malformed; names file and line.
    """
    if task.generator is not None:
        made = make_task(task.generator, task.parameters)
        count = NUM_GENERATED if num_examples is None else num_examples
        read = None if task.file is None else read_examples(task.file)
        if read == []:
            raise ValueError(f"{task.file}: holds no examples")
        ask = partial(
            harness_task, made, name=task.name, num_examples=count, num_fewshot=task.num_fewshot or 0, questions=read
        )
        try:
            return [ask(seed=seed, **FORMS[task.supervise])]
        except ValueError as error:
            raise ValueError(f"{task.file}: {error}" if task.file else str(error)) from None
    if task.folder is not None:
        manager = folder_tasks(task.folder, data_dir)
    else:
        manager = offline_tasks(data_dir) if task.source == "files" else network_tasks()
    loaded = list(manager.load([task.harness_name])["tasks"].values())
    if task.num_fewshot is not None:
        for one in loaded:
            one.set_config("num_fewshot", task.num_fewshot)
    return loaded
