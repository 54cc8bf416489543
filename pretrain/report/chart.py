"""Line charts over steps as inline SVG: drawn by the browser in the colours of the page, no script.

A long series is drawn by the means of equal parts of it, over a band from their smallest to their largest value, so
that a spike of one step is seen. An axis is logarithmic where values span much more than a decade.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.scaling.style import BLUE, GREEN, ORANGE, PINK, RED, SKY

MOST_POINTS = 300
"""Points of a series that are drawn."""
MOST_MARKED = 30
"""A series with no more points has a mark on each, which says its value."""
LOGARITHMIC_FROM = 30.0
"""Ratio of the largest to the smallest value."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 410, 220, 52, 12, 10, 24
"""Of a chart, and of the space around its axes, in pixels where it is drawn at its own size."""
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: (step, value) in the order of steps, all finite."""

    name: str
    points: Points


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    series: Sequence[Series]
    """In the order of their legend; none is empty."""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        return self.start + (self.end - self.start) * (self._of(value) - low) / (high - low)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def ticks(self, most: int) -> list[float]:
        if not self.is_log:
            return _round_numbers(self.low, self.high, most)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [digit * 10.0**decade for decade in decades for digit in digits]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) >= 3:
                break
        return found[:: math.ceil(len(found) / most)]


def draw(chart: Chart) -> str:
    """The chart as HTML: a figure with its title, the SVG, and a legend if there are several lines; the name of a line
    alone is in the title."""
    lines = [_thin(series.points) for series in chart.series]
    lows, highs = [low for line in lines for _, _, low, _ in line], [high for line in lines for *_, high in line]
    first, last = min(line[0][0] for line in lines), max(line[-1][0] for line in lines)
    across = _Scale(low=first, high=last if last > first else first + 1, start=LEFT, end=WIDTH - RIGHT)
    up = _value_scale(min(lows), max(highs))
    parts = [_grid(across, up)]
    colours = [_colour(number, len(lines)) for number in range(len(lines))]
    for series, line, colour in zip(chart.series, lines, colours, strict=True):
        parts.append(_line(series, line, colour, across, up))
    only = chart.series[0].name if len(chart.series) == 1 else chart.title
    title = html.escape(chart.title if only == chart.title else f"{chart.title}, {only}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    names = [
        f'<span><i style="background:{colour}"></i>{html.escape(series.name)}</span>'
        for series, colour in zip(chart.series, colours, strict=True)
    ]
    legend = f'<div class="legend">{"".join(names)}</div>' if len(names) > 1 else ""
    return f"<figure><figcaption>{title}</figcaption>{svg}{legend}</figure>"


def _thin(points: Points) -> list[tuple[float, float, float, float]]:
    """Step, mean, smallest and largest value of at most MOST_POINTS equal parts."""
    size = math.ceil(len(points) / MOST_POINTS)
    thinned = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part]
        thinned.append((part[-1][0], sum(values) / len(values), min(values), max(values)))
    return thinned


def _value_scale(low: float, high: float) -> _Scale:
    if low > 0 and high / low > LOGARITHMIC_FROM:
        return _Scale(low=low / 1.1, high=high * 1.1, start=HEIGHT - BOTTOM, end=TOP, is_log=True)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    least = 0.0 if 0 <= low < room else low - room  # the axis of a number that is never negative begins at 0
    return _Scale(low=least, high=high + room, start=HEIGHT - BOTTOM, end=TOP)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) <= most)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _grid(across: _Scale, up: _Scale) -> str:
    parts = []
    for tick in up.ticks(5):
        y = f"{up.place(tick):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{number(tick)}</text>')
    for tick in across.ticks(5):
        x = f"{across.place(tick):.1f}"
        parts.append(f'<text x="{x}" y="{HEIGHT - 7}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="0" y="{HEIGHT - 7}">step</text>')
    return "".join([*parts, f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'])


def _line(
    series: Series, line: Sequence[tuple[float, float, float, float]], colour: str, across: _Scale, up: _Scale
) -> str:
    def path(points: Points) -> str:
        return "L".join(f"{across.place(x):.1f} {up.place(y):.1f}" for x, y in points)

    parts = []
    if len(line) < len(series.points):
        around = [*((x, high) for x, _, _, high in line), *((x, low) for x, _, low, _ in reversed(line))]
        parts.append(f'<path class="band" fill="{colour}" d="M{path(around)}Z"/>')
    parts.append(f'<path class="line" stroke="{colour}" d="M{path([(x, mean) for x, mean, _, _ in line])}"/>')
    if len(line) <= MOST_MARKED:
        for x, y, _, _ in line:
            says = html.escape(f"{series.name}, step {x:g}: {y:.5g}")
            place = f'cx="{across.place(x):.1f}" cy="{up.place(y):.1f}"'
            parts.append(f'<circle {place} r="2.6" fill="{colour}"><title>{says}</title></circle>')
    return "".join(parts)


def _colour(number: int, count: int) -> str:
    """One of the palette, or of a ramp where there are more lines than it has."""
    return PALETTE[number] if count <= len(PALETTE) else f"hsl({230 - 200 * number / (count - 1):.0f} 65% 48%)"


def number(value: float) -> str:
    """A number in few letters: 0.05, 12, 2.5k, 3M, 1e-4."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{unit}"
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"
