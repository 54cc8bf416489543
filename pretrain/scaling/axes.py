"""What is drawn: against effective depth or one of the three kinds of "equal cost" of looped models, and how many
points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pretrain.scaling.curves import Curve, Point

T = TypeVar("T")

MAX_DRAWN = 200
"""Points of one family in one panel that an eye, a browser and an SVG can still take."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A logarithmic horizontal axis. Points above each other are equal in what it measures."""

    name: str
    label: str
    base: int
    """Of its ticks."""
    of: Callable[[Point], float]


DEPTH = Axis(name="effective depth", label="effective depth D (layers)", base=2, of=lambda point: point.depth)
PARAMETERS = Axis(
    name="parameters", label="parameters (each shared one once)", base=10, of=lambda point: point.num_params
)
TRAINING = Axis(name="training FLOPs", label="training FLOPs", base=10, of=lambda point: point.train_flops)
INFERENCE = Axis(
    name="inference FLOPs", label="inference FLOPs per token", base=10, of=lambda point: point.eval_flops_per_token
)
AXES = (DEPTH, PARAMETERS, TRAINING, INFERENCE)


def possible_axes(curves: Sequence[Curve]) -> list[Axis]:
    """The axes on which every point has a place: FLOPs of 0, of an untrained model, have none on a logarithmic one."""
    return [axis for axis in AXES if all(axis.of(point) > 0 for curve in curves for point in curve.points)]


def telling_axes(curves: Sequence[Curve]) -> list[Axis]:
    """The axes worth a panel: depth alone if all points are of one model, whose parameters and training they share."""
    if (
        len({point.num_params for curve in curves for point in curve.points}) == 1
        and len({curve.family for curve in curves}) == 1
    ):
        return [DEPTH]
    return possible_axes(curves)


def thin(points: Sequence[T], limit: int = MAX_DRAWN) -> Sequence[T]:
    """All of the points, or `limit` evenly spaced ones."""
    if len(points) <= limit:
        return points
    return [points[index * (len(points) - 1) // (limit - 1)] for index in range(limit)]
