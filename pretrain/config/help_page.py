"""The page of `--help`, made from a configuration itself: every key with its type, range, default and meaning."""

import textwrap
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from pretrain.schema.plugin import PluginName
from pretrain.schema.section import Section


def config_help(
    title: str, usage: str, options: Mapping[str, str], launch: str, schema: type[Section], columns: int
) -> str:
    """All options and all keys with type, default and meaning, for a terminal of `columns` columns."""
    width = max(60, min(columns, 120)) - 1
    lines = [title, "", *_wrapped(usage, width, 2), ""]
    for name, meaning in options.items():
        lines += textwrap.wrap(meaning, width, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18)
    lines += ["", *textwrap.wrap(f"{launch} Every KEY with its default:", width)]
    heading = ""
    for key, info in config_keys(schema):
        section, in_list = section_in(info.annotation)
        if key.partition(".")[0] != heading:
            heading = key.partition(".")[0]
            lines += ["", f"{heading} {'─' * (width - len(heading) - 1)}"]
        if section and not in_list:
            if "." in key:
                lines += _wrapped(f"{key}: {info.description}", width, 2)
            continue
        lines += _key_help(key, info, width)
    return "\n".join(lines) + "\n"


def _key_help(key: str, info: FieldInfo, width: int) -> list[str]:
    value = " (required)" if info.is_required() else f"={inline(info.get_default(call_default_factory=True))}"
    setting, kind = f"  {key}{value}", _kind(info)
    gap = width - len(setting) - len(kind)
    if gap >= 2:
        lines = [f"{setting}{' ' * gap}{kind}"]
    else:
        lines = textwrap.wrap(setting, width, subsequent_indent=" " * 6, drop_whitespace=False)
        lines += [f"{part:>{width}}" for part in textwrap.wrap(kind, width - 6)]
    return lines + _wrapped(info.description or "", width, 6)


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """A paragraph whose lines after the first stand at column 6."""
    return textwrap.wrap(text, width, initial_indent=" " * indent, subsequent_indent=" " * 6)


def config_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below a section with its field, headings included; `[]` stands for the position in a list."""
    for name, info in section.model_fields.items():
        yield prefix + name, info
        inner, in_list = section_in(info.annotation)
        if inner:
            yield from config_keys(inner, f"{prefix}{name}[]." if in_list else f"{prefix}{name}.")


def _kind(info: FieldInfo) -> str:
    """The type of a field in words, with its range."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    kind, null, _ = _type_words(info.annotation).partition(" or null")
    for rule in info.metadata:
        kind += "".join(f" {sign} {getattr(rule, name)}" for name, sign in signs.items() if hasattr(rule, name))
    return kind + null


def _type_words(annotation: Any) -> str:
    names = {int: "integer", float: "number", bool: "true | false", str: "text"}
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    if get_origin(annotation) is dict:
        return "keys and values"
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        if isinstance(item, type) and issubclass(item, Section):
            return "list of {" + ", ".join(item.model_fields) + "}"
        return "list of " + ("integers" if item is int else _type_words(item))
    if annotation is PluginName:
        return "module:name"
    if get_origin(annotation) is Annotated:
        return _type_words(get_args(annotation)[0])
    if get_args(annotation):  # a union, with null last
        parts = sorted(get_args(annotation), key=lambda part: part is NoneType)
        return " or ".join("null" if part is NoneType else _type_words(part) for part in parts)
    return names[annotation]


def section_in(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if any, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    sections = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, Section)]
    return (sections[0] if sections else None), True


def inline(value: object) -> str:
    """A value as YAML on one line. Text that is not printable is escaped: PyYAML does not read back some line breaks of
    Unicode."""
    style: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": float("inf")}
    text = yaml.safe_dump(value, allow_unicode="\\" not in repr(value), **style)
    return text.removesuffix("\n").removesuffix("\n...")
