"""All hooks by name; those of users are named `module:Class`."""

from typing import Any

from pydantic import ValidationError

from pretrain.config.hooks import HookSection
from pretrain.schema.choice import did_you_mean
from pretrain.schema.plugin import EXAMPLE, is_plugin, load_plugin
from pretrain.schema.section import Section, first_problem
from pretrain.watch.hook import Hook, WatchedRun
from pretrain.watch.loop_diagnostics import LoopDiagnostics

HOOKS: dict[str, type[Hook[Any]]] = {"loop_diagnostics": LoopDiagnostics}
"""Every hook by its name in configurations."""


def hook_class(name: str) -> type[Hook[Any]]:
    """The class of a hook of `HOOKS`, or of a user's (`pretrain/EXTENDING.md`).

    Raises:
        ValueError: a user's file has none of that name, or it is none.
    """
    if not is_plugin(name):
        return HOOKS[name]
    found = load_plugin(name, "train.hooks")
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise ValueError(f"train.hooks={name}: is no subclass of pretrain.watch.hook.Hook, {EXAMPLE}")
    if found.on_step is Hook.on_step and found.on_validation is Hook.on_validation:
        raise ValueError(f"train.hooks={name}: has neither on_step nor on_validation, so it would never do anything")
    if not (isinstance(found.parameters_type, type) and issubclass(found.parameters_type, Section)):
        raise ValueError(f"train.hooks={name}: parameters_type is no subclass of pretrain.schema.section.Section")
    return found


def make_hook(section: HookSection, run: WatchedRun) -> Hook[Any]:
    """Make a hook with its parameters.

    Raises:
        ValueError: it is unknown or does not fit the run, a parameter is unknown (the nearest name is suggested), or a
            value is invalid.
    """
    kind = hook_class(section.name)
    fields = kind.parameters_type.model_fields
    for key in section.parameters:
        if key not in fields:
            raise ValueError(f"train.hooks: {section.name} has no parameter {key}{did_you_mean(key, fields)}")
    try:
        parameters = kind.parameters_type.model_validate(section.parameters)
    except ValidationError as error:
        raise ValueError(f"train.hooks: {section.name}: {first_problem(error)}") from None
    return kind(parameters, run)
