"""Horizontal axes (effective depth and the kinds of "equal cost" of looped models) and the limit on points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pretrain.scaling.curves import Curve, Point
from pretrain.schema.choice import choose

T = TypeVar("T")

MAX_DRAWN = 200
"""Most points of one family in one panel: more are unreadable, and slow in a browser."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A logarithmic horizontal axis. Points above each other are equal in what it measures."""

    name: str
    label: str
    base: int
    """Ticks are at powers of this base."""
    of: Callable[[Point], float | None]

    def placed(self, points: Sequence[Point]) -> list[tuple[float, Point]]:
        """Places and points, without those that have no place: it is unknown, or 0 as of an untrained model, and the
        axes are logarithmic."""
        return [(place, point) for point in points if (place := self.of(point))]


DEPTH = Axis(name="effective depth", label="effective depth D (layers)", base=2, of=lambda point: point.depth)
PARAMETERS = Axis(
    name="parameters", label="parameters (each shared one once)", base=10, of=lambda point: point.row.num_params
)
TRAINING = Axis(name="training FLOPs", label="training FLOPs", base=10, of=lambda point: point.row.train_flops)
INFERENCE = Axis(
    name="inference FLOPs", label="inference FLOPs per token", base=10, of=lambda point: point.row.eval_flops_per_token
)
CACHE = Axis(
    name="cache bytes", label="cache (bytes per token)", base=10, of=lambda point: point.row.cache_bytes_per_token
)
STEP_TIME = Axis(
    name="step time", label="training step (seconds, median)", base=10, of=lambda point: point.row.step_time_s
)
AXES = (DEPTH, PARAMETERS, TRAINING, INFERENCE, CACHE, STEP_TIME)


def chosen_axes(names: Sequence[str], curves: Sequence[Curve]) -> list[Axis]:
    """The axes of these names.

    Raises:
        ValueError: there is none of a name, or no point has a place on it.
    """
    axes = [choose({axis.name: axis for axis in AXES}, name, "--axis") for name in names]
    possible = possible_axes(curves)
    for axis in axes:
        if axis not in possible:
            raise ValueError(
                f"--axis {axis.name}: no row says it; there are {', '.join(each.name for each in possible)}"
            )
    return axes


def possible_axes(curves: Sequence[Curve]) -> list[Axis]:
    """The axes on which any point has a place."""
    return [axis for axis in AXES if any(axis.placed(curve.all_points) for curve in curves)]


def informative_axes(curves: Sequence[Curve]) -> list[Axis]:
    """The axes worth a panel of the figure: depth and parameters, each where it has several values; FLOPs are a choice
    of the page."""
    points = [point for curve in curves for point in curve.all_points]
    values = {DEPTH: {point.depth for point in points}, PARAMETERS: {point.row.num_params for point in points}}
    return [axis for axis, found in values.items() if len(found) > 1]


def subsample(points: Sequence[T], limit: int = MAX_DRAWN) -> Sequence[T]:
    """All points, or `limit` evenly spaced ones if there are more."""
    if len(points) <= limit:
        return points
    return [points[index * (len(points) - 1) // (limit - 1)] for index in range(limit)]
