"""The colour and marker of each curve: its own, or that of a value of any configuration key."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from pretrain.rows.evaluation import EvaluationRow
from pretrain.scaling.curves import Curve
from pretrain.scaling.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY

PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, "#6a3d9a", "#8c564b", "#b8a200", "#17a2a2")
MARKERS = {"looped": "o", "baseline": "s", "regularised": "^"}
"""Of each family."""


class Look(NamedTuple):
    colour: str
    marker: str


def looks(curves: Sequence[Curve], key: str | None = None) -> dict[tuple[str, str], Look]:
    """The look of each curve, by (family, name): curves of one name look alike in every task group.

    Args:
        curves: all that are drawn.
        key: a key of the configuration, such as optimizer.lr, or "seed": curves of one value have one colour.
    """
    values = {(curve.family, curve.name): _value(curve, key) for curve in curves}
    order = list(dict.fromkeys(values.values()))
    colours = {value: PALETTE[number % len(PALETTE)] if value else GREY for number, value in enumerate(order)}
    return {which: Look(colours[value], MARKERS[which[0]]) for which, value in values.items()}


def value_of(row: EvaluationRow, key: str) -> str:
    """The value of a configuration key of the run of a row, as text; empty if it is unknown."""
    if key in ("seed", "run.seed"):
        return "" if row.seed is None else str(row.seed)
    if row.settings is None:
        return ""
    value = row.settings.get(key, "default")
    return value if isinstance(value, str) else json.dumps(value)


def _value(curve: Curve, key: str | None) -> str:
    if key is None:
        return f"{curve.family} {curve.name}"
    found = {value_of(point.row, key) for point in curve.all_points}
    return found.pop() if len(found) == 1 else ""
