"""What is wrong with a configuration, as lines for people: key, place, and the nearest key that exists."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from pretrain.config.help_page import config_keys, inline
from pretrain.schema.choice import did_you_mean
from pretrain.schema.section import Section

KeyPath = tuple[str | int, ...]


def explain(details: Sequence[Any], origins: dict[KeyPath, str], whole: str) -> list[str]:
    """What pydantic found, as lines of the same form as ours, one for each key: of a value that fits no branch of a
    union it finds something for each."""
    by_key: dict[KeyPath, list[Any]] = {}
    for detail in details:
        by_key.setdefault(tuple(part for part in detail["loc"] if not _is_branch(part)), []).append(detail)
    lines = []
    for path, found in by_key.items():
        kind, origin = found[0]["type"], origin_of(path, origins, whole)
        if kind == "value_error":  # our own checks, which name keys and values themselves
            lines.append(f"{whole}: {found[0]['ctx']['error']}")
        elif kind == "missing":
            lines.append(f"{origin}: {dotted(path)}: is missing")
        else:
            what = ", or ".join(map(_what_is_wrong, found)).replace(", or needs ", ", or ")
            lines.append(f"{origin}: {dotted(path)}: {what}, got {short(found[0]['input'])}")
    return lines


def _what_is_wrong(detail: Any) -> str:
    """A finding of pydantic in our words."""
    kind, context = detail["type"], detail.get("ctx", {})
    words = {
        "int": "needs a whole number",
        "float": "needs a number",
        "bool": "needs true or false",
        "string_type": "needs text",
        "string_pattern": "needs letters, digits and ._+- only, the first a letter or digit",
        "tuple": "needs a list, such as [1, 2]",
        "literal": f"needs one of {context.get('expected')}".replace("'", ""),
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be larger than {context.get('gt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "less_than": f"must be smaller than {context.get('lt')}",
    }
    return next((text for start, text in words.items() if kind.startswith(start)), detail["msg"])


def origin_of(path: KeyPath, origins: dict[KeyPath, str], whole: str) -> str:
    """Where a key, or the part of the file around it, was set."""
    return next((origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), whole)


def _is_branch(part: str | int) -> bool:
    """Whether pydantic names a branch of a union here, and no key."""
    return isinstance(part, str) and not part.isidentifier()


def dotted(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def short(value: object) -> str:
    text = value if isinstance(value, str) else inline(value)
    if isinstance(value, list):
        text = f"[{', '.join(map(short, value))}]"
    return textwrap.shorten(text, 60, placeholder=" ...") or "''"


def nearest_keys(path: KeyPath, schema: type[Section]) -> str:
    """The nearest existing keys: the same name elsewhere, else a similar name in the section, else all of the
    section."""
    wanted = re.sub(r"\[\d+\]", "[]", dotted(path))
    parent, _, name = wanted.rpartition(".")
    keys = [key for key, _ in config_keys(schema)]
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    if elsewhere:
        return f", did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(name, siblings, f"{parent}." if parent else "")
