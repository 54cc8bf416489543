"""Numbers by name, and the first in which two ways to compute them differ."""

from collections.abc import Mapping
from dataclasses import dataclass

Numbers = dict[str, float]
"""What was computed, by name, in the order in which it came about."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two ways to compute the same numbers."""

    largest: float
    """Largest difference, relative to the larger of 1e-3 and the number."""
    first: str
    """The first number beyond the tolerance, with both values; empty where all agree."""


def compare(
    wanted: Mapping[str, float], found: Mapping[str, float], tolerance: float, ways: tuple[str, str]
) -> Comparison:
    """Compare what two ways gave; `found` may lack some of the numbers.

    Args:
        wanted: of the reference.
        found: of the other way; has no number that the reference lacks.
        tolerance: largest relative difference.
        ways: what the reference is called, and the other way.
    """
    largest, first = 0.0, ""
    for name, value in found.items():
        difference = abs(value - wanted[name]) / max(abs(wanted[name]), 1e-3)
        if not difference <= tolerance and not first:
            first = f"{name} is {value:.12g} on {ways[1]}, {wanted[name]:.12g} on {ways[0]}"
        largest = max(largest, difference)
    return Comparison(largest=largest, first=first)
