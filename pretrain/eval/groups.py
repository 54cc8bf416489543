"""Tasks to evaluate on: the groups of the looped-transformer paper, other tasks by name, and the source of each.

A task comes from a folder of the user's tasks in the harness's own format, from files of a data directory
(`pretrain.eval.tasks`), from the harness's own task of that name (which needs the network), or from our generators
(`pretrain.tasks`), unless the data directory has a file of its questions (`question_file`). `resolve` chooses the
source of every name, or says why there is none; `pretrain/eval/loading.py` makes the harness's objects. Groups: Saunshi
et al., arXiv 2502.17416, section 3.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from pretrain.config.saved_model import SavedModel
from pretrain.eval.managers import folder_tasks, network_tasks, offline_tasks
from pretrain.eval.tasks.files import find_file
from pretrain.schema.choice import did_you_mean
from pretrain.schema.plugin import is_plugin
from pretrain.storage import is_there
from pretrain.tasks.registry import TASKS as GENERATORS
from pretrain.tasks.registry import make_task, task_class


@dataclass(frozen=True, kw_only=True)
class KnownTask:
    """A task and its possible sources; one without any cannot be run."""

    harness: str | None = None
    """The harness's own task or group, over the network."""
    offline: str | None = None
    """Task of `pretrain.eval.tasks`, over local files."""
    generator: str | None = None
    """Task of `pretrain.tasks`, with its `parameters`."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    num_fewshot: int | None = None
    """Solved examples in the prompt; None leaves it to the task."""
    main: str | None = None
    """The metric it is judged by, where that is not the usual one (`pretrain/rows/metrics.py`)."""


def _in_files(
    *names: str, in_harness: bool, num_fewshot: int | None = None, main: str | None = None
) -> dict[str, KnownTask]:
    return {
        name: KnownTask(
            harness=name if in_harness else None, offline=f"{name}_offline", num_fewshot=num_fewshot, main=main
        )
        for name in names
    }


# The paper says five shots for word problems and primitives and "k-shot" for the rest. Five for closed book as well, so
# that the form of an answer is shown; none for open book, where five passages do not fit a context of 1,280 tokens.
# TyDiQA is taken in English.
TASKS: dict[str, KnownTask] = {
    **_in_files("triviaqa", "nq_open", "webqs", in_harness=True, num_fewshot=5),
    "tydiqa_no_context": KnownTask(num_fewshot=5),
    "tydiqa_goldp": KnownTask(harness="tydiqa_goldp_en", num_fewshot=0, main="f1"),
    **_in_files("squadv2", in_harness=True, num_fewshot=0, main="f1"),
    "drop": KnownTask(harness="drop", num_fewshot=0, main="f1"),
    "quac": KnownTask(num_fewshot=0, main="f1"),
    "coqa": KnownTask(harness="coqa", num_fewshot=0, main="f1"),
    "asdiv": KnownTask(harness="asdiv", num_fewshot=5),
    **_in_files(
        "svamp", "mawps_addsub", "mawps_multiarith", "mawps_singleeq", "mawps_singleop", in_harness=False, num_fewshot=5
    ),
    **{
        f"variable_assignment_{wording}_depth{depth}": KnownTask(
            generator="variable_assignment", parameters={"wording": wording, "depth": depth}, num_fewshot=5
        )
        for depth in (0, 1)
        for wording in ("code", "math")
    },
    **{f"addition_{n}": KnownTask(generator="addition", parameters={"num_operands": (n,)}) for n in (8, 16, 24, 32)},
    **_in_files("gsm8k", "lambada_openai", "piqa", "arc_easy", "boolq", "winogrande", "wikitext", in_harness=True),
    **_in_files("hellaswag", "arc_challenge", in_harness=True, main="acc_norm"),
}  # fmt: skip
"""Every task with more to know about it than its name."""

GROUPS: dict[str, tuple[str, ...]] = {
    "closed_book": ("triviaqa", "tydiqa_no_context", "nq_open", "webqs"),
    "open_book": ("tydiqa_goldp", "squadv2", "drop", "quac", "coqa"),
    "math_word_problems": ("asdiv", "svamp", "mawps_addsub", "mawps_multiarith", "mawps_singleeq", "mawps_singleop"),
    "primitives": tuple(name for name in TASKS if name.startswith("variable_assignment_")),
    "addition": tuple(name for name in TASKS if name.startswith("addition_")),
}
"""The tasks of each group of the paper."""
GROUPS["all_15"] = (*GROUPS["closed_book"], *GROUPS["open_book"], *GROUPS["math_word_problems"])
GROUPS["all"] = (*GROUPS["all_15"], *GROUPS["primitives"])
"""Its 15 tasks of tables 3 and 4, and these with the primitives; a task's own group is the narrower one."""


_WITH_SETTINGS = re.compile(r"(?P<name>.+?)(?P<settings>(?::\w+=[^:]*)+)")
"""A task and parameters; the name itself may hold a colon, as that of a user's task does."""

_WRITTEN = "parameters are written p_hop:num_hops=4:length=48"

Supervise = Literal["answer", "steps", "prefixes"]
"""As `data.sources.supervise` of the run."""


@dataclass(frozen=True, kw_only=True)
class ResolvedTask:
    """A task that can be run."""

    name: str
    """The name in rows."""
    group: str
    """The group of the paper it belongs to, or its own name."""
    source: Literal["files", "network", "generator", "folder"]
    """Where its documents come from."""
    harness_name: str
    """Name of its object, and of its results, in the harness."""
    num_fewshot: int | None
    """Solved examples in the prompt; None leaves it to the task."""
    main: str | None = None
    """As of `KnownTask`."""
    generator: str | None = None
    """Task of `pretrain.tasks`, if that is the source."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Of the generator."""
    supervise: Supervise = "answer"
    """What a model of a generator's task was trained to write: see `FORMS` of `loading.py`."""
    file: Path | None = None
    """Questions of a generator's task that are read, not made."""
    folder: Path | None = None
    """Of the user's tasks, if that is the source."""


@dataclass(frozen=True, kw_only=True)
class SkippedTask:
    """A task that cannot be run here, for the report."""

    name: str
    group: str
    reason: str
    """One line, for example which file is missing."""


def resolve(
    names: Sequence[str], data_dir: Path | None, *, allow_network: bool = True, include_path: Path | None = None
) -> list[ResolvedTask | SkippedTask]:
    """The source of each task, each task once, in the order of the names.

    Args:
        names: groups of GROUPS, tasks of TASKS, generators, or any name the harness knows.
        data_dir: folder of the evaluation data; None leaves the harness's own tasks.
        allow_network: whether the harness's own tasks may be used where there is no offline one.
        include_path: folder of tasks in the harness's format, YAML with Python beside it; they come before others of
            their name. Only name a folder whose Python you would run.

    Raises:
        ValueError: a name is unknown; the nearest is named. A file of the folder is malformed.
    """
    wanted: dict[str, str] = {}
    for name in names:
        for task in GROUPS.get(name, (name,)):
            wanted.setdefault(task, next((group for group, tasks in GROUPS.items() if task in tasks), task))
    return [_resolve_task(name, group, data_dir, allow_network, include_path) for name, group in wanted.items()]


def tasks_of(
    saved: SavedModel, names: Sequence[str], data_dir: Path | None, *, allow_network: bool = True,
    include_path: Path | None = None,
) -> list[ResolvedTask | SkippedTask]:  # fmt: skip
    """What to evaluate a run on; arguments as of `resolve`.

    The name of a task that the run was trained on means the task at the run's difficulty; no names mean all of these.
    Parameters behind the name of a generated task make it another one: p_hop:num_hops=4:length=48.

    Raises:
        ValueError: a name or a parameter is unknown, or there is no name and the run was trained on no task.
    """
    trained = {task.name: task for task in trained_tasks(saved, data_dir)}
    if not names and not trained:
        raise ValueError(f"run {saved.run} is trained on no task: name some to evaluate it on")
    if not names:
        return list(trained.values())
    found: dict[str, ResolvedTask | SkippedTask] = {}
    for whole in names:
        name, settings = _split_settings(whole)
        is_trained = name in trained and name not in GROUPS  # a group of the paper keeps its name
        others = partial(resolve, [name], data_dir, allow_network=allow_network, include_path=include_path)
        for task in [trained[name]] if is_trained else others():
            asked = _at_settings(task, whole, settings) if settings else task
            found.setdefault(asked.name, asked)
    return list(found.values())


def _split_settings(name: str) -> tuple[str, dict[str, object]]:
    """A name and the parameters behind it: `p_hop:num_hops=4` is p_hop, {num_hops: 4}."""
    match = _WITH_SETTINGS.fullmatch(name)
    if match is None:
        if ":" in name and name.partition(":")[0] in GENERATORS:
            raise ValueError(f"task {name}: {_WRITTEN}")
        return name, {}
    pairs = [setting.split("=", 1) for setting in match["settings"].removeprefix(":").split(":")]
    try:
        return match["name"], {key: yaml.safe_load(value) for key, value in pairs}
    except yaml.YAMLError:
        raise ValueError(f"task {name}: a value is no YAML; {_WRITTEN}") from None


def _at_settings(task: ResolvedTask | SkippedTask, name: str, settings: Mapping[str, object]) -> ResolvedTask:
    """A generated task with some of its parameters set, under a name of its own, which is its group: difficulties that
    are asked one by one are no one number.

    Raises:
        ValueError: it is not generated, or has no such parameter.
    """
    if isinstance(task, SkippedTask) or task.generator is None:
        raise ValueError(f"task {name}: only a generated task has parameters ({', '.join(GENERATORS)})")
    parameters = {**task.parameters, **settings}
    make_task(task.generator, parameters)
    own = {"name": name, "group": name, "harness_name": name}
    return replace(task, **own, source="generator", file=None, parameters=parameters)


def trained_tasks(saved: SavedModel, data_dir: Path | None) -> list[ResolvedTask]:
    """The tasks that a run was trained on, at its difficulties or from files of their names; the second difficulty of a
    task is named <task>_2."""
    found: list[ResolvedTask] = []
    for source in saved.tasks:
        assert source.task is not None, "a task, no folder of shards"
        earlier = sum(task.generator == source.task for task in found)
        name = f"{source.task}_{earlier + 1}" if earlier else source.task
        found.append(
            ResolvedTask(
                name=name, group=source.task, **_made_or_read(name, data_dir), harness_name=name,
                generator=source.task, num_fewshot=0, parameters=source.parameters, supervise=source.supervise,
            )
        )  # fmt: skip
    return found


def _resolve_task(
    name: str, group: str, data_dir: Path | None, allow_network: bool, include_path: Path | None
) -> ResolvedTask | SkippedTask:
    if include_path is not None and name in folder_tasks(include_path, data_dir).all_tasks:
        return ResolvedTask(
            name=name, group=group, source="folder", harness_name=name, num_fewshot=None, folder=include_path
        )
    known = _known(name, allow_network, include_path)
    resolved = partial(ResolvedTask, name=name, group=group, num_fewshot=known.num_fewshot, main=known.main)
    if known.generator is not None:
        return resolved(
            **_made_or_read(name, data_dir), harness_name=name, generator=known.generator,
            parameters=known.parameters, num_fewshot=known.num_fewshot or 0,
        )  # fmt: skip
    if known.offline is not None and data_dir is not None:
        missing = _missing_files(known.offline, data_dir)
        if missing:
            return SkippedTask(name=name, group=group, reason=missing)
        return resolved(source="files", harness_name=known.offline)
    if known.harness is not None and allow_network:
        return resolved(source="network", harness_name=known.harness)
    if known.offline is not None:
        reason = "its files are read from a data directory, and none was given"
    elif known.harness is not None:
        reason = "it needs the network, which was not allowed, and has no offline form"
    else:
        reason = "the evaluation harness has no such task, and it has no offline form"
    return SkippedTask(name=name, group=group, reason=reason)


def _made_or_read(name: str, data_dir: Path | None) -> dict[str, Any]:
    """The source of a generator's task, and its file if there is one."""
    file = None if data_dir is None else question_file(name, data_dir)
    return {"source": "generator" if file is None else "files", "file": file}


def question_file(name: str, data_dir: Path) -> Path | None:
    """The file of a data directory with questions of a generator's task, as examples of {question, steps, answer}
    (`pretrain/tasks/example_file.py`): <task>_test, in a folder <task> or not, or <task>, as .json or .jsonl, or these
    with .gz.

    Raises:
        OSError: one cannot be looked at.
    """
    stems = (f"{name}/{name}_test", f"{name}_test", name)
    endings = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
    return next((path for stem in stems for end in endings if is_there(path := data_dir / f"{stem}{end}")), None)


def _known(name: str, allow_network: bool, include_path: Path | None) -> KnownTask:
    """A task of TASKS, a generator at its default difficulty, or whatever the harness calls so."""
    if name in TASKS:
        return TASKS[name]
    if name in GENERATORS or is_plugin(name):
        task_class(name)
        return KnownTask(generator=name)
    # Without the network the harness's names are of no use, and listing them takes seconds.
    if allow_network and name in network_tasks().all_tasks:
        return KnownTask(harness=name)
    candidates = [*GROUPS, *TASKS, *GENERATORS]
    if include_path is not None:
        candidates += folder_tasks(include_path, None).all_tasks
    raise ValueError(f"task {name}: no such task or group{did_you_mean(name, candidates)}")


def _missing_files(offline: str, data_dir: Path) -> str:
    """The error about the files that an offline task lacks; empty if it lacks none."""
    entry = offline_tasks(None).task_index[offline]
    assert entry.cfg is not None
    problems = []
    for names in entry.cfg["dataset_kwargs"]["files"].values():
        try:
            find_file(data_dir, names)
        except FileNotFoundError as error:
            problems.append(str(error))
    return "; ".join(problems)
