"""Variants of the loop from a user's file (`pretrain/EXTENDING.md`). No torch at import. Does not travel with an
exported model."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pretrain.model.loop.variant import Exit, FinalNorm, Injection, PerLoop, Residual, Start, Variant
from pretrain.schema.choice import did_you_mean
from pretrain.schema.plugin import EXAMPLE, load_plugin
from pretrain.schema.section import Section, first_problem

BASES: dict[str, type[Variant]] = {
    "injection": Injection, "start": Start, "per_loop": PerLoop, "residual": Residual,
    "exit": Exit, "final_norm": FinalNorm,
}  # fmt: skip


def plugin_variant(kind: str, name: str) -> type[Variant]:
    """The class that `module:Class` names, as a variant of this kind.

    Raises:
        ValueError: there is none, or it is none.
    """
    key, base = f"model.loop.{kind}", BASES[kind]
    found = load_plugin(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{key}={name}: is no subclass of pretrain.model.loop.variant.{base.__name__}, {EXAMPLE}")
    if issubclass(found, Exit) and not found.has_gate:
        raise ValueError(f"{key}={name}: has_gate is False, so it would never stop a token")
    if found.Section is not None and not (isinstance(found.Section, type) and issubclass(found.Section, Section)):
        raise ValueError(f"{key}={name}: Section is no subclass of pretrain.schema.section.Section")
    return found


def plugin_settings(kind: str, variant: type[Variant], own: Mapping[str, Any]) -> Any:
    """Its settings, from `model.loop.own`; None if it has none.

    Raises:
        ValueError: one is unknown (the nearest is suggested), or a value is invalid.
    """
    given, key = own.get(kind, {}), f"model.loop.own.{kind}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{key}: needs keys and values, got {given!r}")
    fields = {} if variant.Section is None else variant.Section.model_fields
    for name in given:
        if name not in fields:
            raise ValueError(f"{key}.{name}: {variant.__name__} has no such setting{did_you_mean(name, fields)}")
    if variant.Section is None:
        return None
    try:
        return variant.Section.model_validate(given)
    except ValidationError as error:
        raise ValueError(f"{key}: {first_problem(error)}") from None
