"""One entry of a table by its name, or an error that names the nearest."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")
MOST_LISTED = 40
"""An error lists all names up to this number."""


def choose(table: Mapping[str, T], name: str, key: str) -> T:
    """The entry `name` of a table; `key` is the configuration key that names it.

    Raises:
        ValueError: the table does not have it.
    """
    if name not in table:
        raise ValueError(f"{key}={name} is not known{did_you_mean(name, table)}")
    return table[name]


def did_you_mean(name: str, known: Iterable[str], within: str = "") -> str:
    """The end of an error on an unknown name: the nearest known one, else all of them, if they are not too many.

    Args:
        name: the unknown one.
        known: the others.
        within: what stands before each of them when it is named in full, such as "train.".
    """
    names = list(known)
    if near := get_close_matches(name, names, n=1):
        return f", did you mean {within}{near[0]}?"
    return f"; there are {', '.join(sorted(names)) or 'none'}" if len(names) <= MOST_LISTED else ""
