"""All tasks by name; those of users are named `module:Class`."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from pretrain.schema.choice import did_you_mean
from pretrain.schema.plugin import EXAMPLE, is_plugin, load_plugin
from pretrain.schema.section import Section
from pretrain.tasks.addition import Addition
from pretrain.tasks.group_composition import GroupComposition, GroupProduct
from pretrain.tasks.i_gsm import IGSM
from pretrain.tasks.induction_copying import InductionCopying
from pretrain.tasks.multiplication import Multiplication
from pretrain.tasks.p_hop import PHop
from pretrain.tasks.prosqa.prontoqa import ProntoQA
from pretrain.tasks.prosqa.prosqa import ProsQA
from pretrain.tasks.prosqa.prosqa_roots import ProsQARoots
from pretrain.tasks.prosqa.prosqa_symbolic import ProsQASymbolic
from pretrain.tasks.task import Task
from pretrain.tasks.variable_assignment import VariableAssignment

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task
    for task in (
        Addition, PHop, IGSM, VariableAssignment, InductionCopying, GroupComposition, GroupProduct, Multiplication,
        ProsQA, ProsQASymbolic, ProsQARoots, ProntoQA,
    )
}  # fmt: skip
"""Every task by its name in configurations."""


@cache
def task_class(name: str) -> type[Task[Any]]:
    """The class of a task of `TASKS`, or of a user's (`pretrain/EXTENDING.md`).

    Raises:
        ValueError: there is none, or it lacks something that a task has.
    """
    if not is_plugin(name):
        if name not in TASKS:
            raise ValueError(f"task {name}: no such task{did_you_mean(name, TASKS)}")
        return TASKS[name]
    found = load_plugin(name, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"task={name}: is no subclass of pretrain.tasks.task.Task, {EXAMPLE}")
    missing = sorted(found.__abstractmethods__)
    missing += [key for key in ("name", "parameters_type") if not hasattr(found, key)]
    if missing:
        raise ValueError(f"task={name}: lacks {', '.join(missing)}")
    if not issubclass(found.parameters_type, Section):
        raise ValueError(f"task={name}: parameters_type is no subclass of pretrain.schema.section.Section")
    return found


def make_task(name: str, parameters: Mapping[str, object]) -> Task[Any]:
    """Make a task with some fields of its `parameters_type` set; the others keep their defaults.

    Raises:
        ValueError: the task or a parameter is unknown (the nearest name is suggested), or a value is invalid.
    """
    task = task_class(name)
    fields = task.parameters_type.model_fields
    for key in parameters:
        if key not in fields:
            raise ValueError(f"task {name}: no parameter {key}{did_you_mean(key, fields)}")
    try:
        return task(task.parameters_type.model_validate(dict(parameters)))
    except ValidationError as error:
        first = error.errors()[0]
        # An error without a location comes from a check across parameters, whose message names them.
        where = "".join(f"{part}: " for part in first["loc"][:1])
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"task {name}: {where}{reason}, got {first['input']!r}") from None
