"""Where the points of a curve stand in a panel: seeds as one spot with their scatter, and curves side by side."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pretrain.config.saved_model import Family
from pretrain.scaling.axes import Axis
from pretrain.scaling.curves import Curve, Point

STEP = 0.022
"""Distance of curves at one place, as a share of the panel's width."""


class Model(NamedTuple):
    """What the runs of a spot agree in, beside their curve: seeds of one model."""

    family: Family
    num_params: int
    trained_loops: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Spot:
    """The runs of a model at one depth."""

    model: Model

    place: float
    value: float
    """Mean over the runs."""
    error: float
    """Standard deviation over runs; of one run, the standard error over examples; 0 if unknown."""
    label: str
    seeds: tuple[float, ...]
    """The value of each run."""
    is_trained: bool
    is_own: bool
    """Whether it is no baseline that the looped curve begins with, which its own curve draws."""


def spots_of(curve: Curve, axis: Axis) -> list[Spot]:
    """The spots of a curve on an axis, from left to right; points without a place are left out."""
    groups: dict[tuple[Model, int], list[tuple[float, Point]]] = defaultdict(list)
    for place, point in axis.placed(curve.all_points):
        row = point.row
        groups[Model(row.family, row.num_params, row.trained_loops), point.depth].append((place, point))
    found = sorted(groups.items(), key=lambda item: item[1][0][0])
    return [_spot(curve, model, points) for (model, _), points in found]


def _spot(curve: Curve, model: Model, points: Sequence[tuple[float, Point]]) -> Spot:
    values = [point.value for _, point in points]
    first = points[0][1]
    return Spot(
        model=model,
        place=math.exp(statistics.fmean(math.log(place) for place, _ in points)),
        value=statistics.fmean(values),
        error=statistics.stdev(values) if len(values) > 1 else first.stderr,
        label=first.label,
        seeds=tuple(values),
        is_trained=first.row.is_trained_depth,
        is_own=first.row.family == curve.family,
    )


def meaning_of_bars(spots: Sequence[Spot]) -> str:
    """What the bars of a panel are, for its legend; "" if it has none."""
    several = any(len(spot.seeds) > 1 for spot in spots)
    alone = any(len(spot.seeds) == 1 and spot.error for spot in spots)
    of_one = "standard error over examples"
    if not several:
        return f"± {of_one}" if alone else ""
    return "± sd over seeds (dots)" + (f", of one seed ± {of_one}" if alone else "")


def dodge(drawn: Sequence[tuple[Curve, list[Spot]]]) -> list[tuple[Curve, list[Spot]]]:
    """Move spots of several curves at one place apart, so that none hides another; the axis is logarithmic."""
    places = [spot.place for _, spots in drawn for spot in spots]
    if not places or min(places) == max(places):
        span = 1.0
    else:
        span = math.log(max(places) / min(places))
    at: dict[int, list[int]] = defaultdict(list)
    for number, (_, spots) in enumerate(drawn):
        for spot in spots:
            cell = round(math.log(spot.place) / span / STEP)
            if spot.is_own and number not in at[cell]:
                at[cell].append(number)

    def moved(number: int, spot: Spot) -> Spot:
        mine = at[round(math.log(spot.place) / span / STEP)]
        if number not in mine:
            return spot
        shift = (mine.index(number) - (len(mine) - 1) / 2) * STEP * span
        return replace(spot, place=spot.place * math.exp(shift))

    return [(curve, [moved(number, spot) for spot in spots]) for number, (curve, spots) in enumerate(drawn)]
