"""All pairs: a short list of cases in which every two values of different factors meet.

Most faults of a configuration need one value or the meeting of two (Kuhn, Wallace and Gallo 2004). Greedy: while a pair
is open, take of some cases that contain it the one that closes most open pairs. Seeded, so the list is always the same.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

NUM_CANDIDATES = 40


def pairwise(factors: Mapping[str, Sequence[Any]], allowed: Callable[..., bool]) -> list[dict[str, Any]]:
    """Cases that contain every pair of values that some allowed case contains.

    Args:
        factors: the values of each factor.
        allowed: called with a case as keyword arguments; False for one that makes no sense.
    """
    names = list(factors)
    values = [list(factor) for factor in factors.values()]
    cases = [
        numbers
        for numbers in product(*(range(len(factor)) for factor in values))
        if allowed(**_named(names, values, numbers))
    ]
    open_pairs = {pair for numbers in cases for pair in _pairs(numbers)}
    chooser = random.Random(0)
    chosen = []
    while open_pairs:
        (i, a), (j, b) = min(open_pairs)
        holding = [numbers for numbers in cases if numbers[i] == a and numbers[j] == b]
        candidates = chooser.sample(holding, min(NUM_CANDIDATES, len(holding)))
        best = max(candidates, key=lambda numbers: len(open_pairs.intersection(_pairs(numbers))))
        open_pairs.difference_update(_pairs(best))
        chosen.append(_named(names, values, best))
    return chosen


def _named(names: Sequence[str], values: Sequence[Sequence[Any]], numbers: Sequence[int]) -> dict[str, Any]:
    return {name: factor[number] for name, factor, number in zip(names, values, numbers, strict=True)}


def _pairs(numbers: Sequence[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    return combinations(enumerate(numbers), 2)
