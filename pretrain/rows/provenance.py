"""What a figure stands on, as the line below it says: which runs, with which seeds, and how much each was asked."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

MAX_LETTERS = 160
"""Of the names of models, which are left out where they are longer together."""


class NamedRun(Protocol):
    """A row of results, of which no more is needed."""

    @property
    def run(self) -> str: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def seed(self) -> int | None: ...


class RunName(NamedTuple):
    """A run without rows."""

    run: str
    run_id: str | None = None
    seed: int | None = None


def told_runs(rows: Iterable[NamedRun]) -> str:
    """The runs of rows and their seeds, such as "6 runs: 1x4 and 4x1, seeds 0, 1, 2 of each"."""
    seeds: dict[str, set[int]] = {}
    runs = set()
    for row in rows:
        seeds.setdefault(without_seed(row.run), set()).update(_seed_of(row))
        runs.add(row.run_id or row.run)
    numbers = [len(found) for found in seeds.values()]
    everywhere = sorted(set().union(*seeds.values()))
    said = f"seed{'s' * (len(everywhere) != 1)} {', '.join(map(str, everywhere)) or 'not known'}"
    if len(set(map(frozenset, seeds.values()))) > 1:
        said += f", {min(numbers)} to {max(numbers)} of each"
    elif len(seeds) > 1 and len(everywhere) > 1:
        said += " of each"
    names = _and(list(seeds))
    models = f": {names}" if len(names) <= MAX_LETTERS else ""
    return f"run {names}, {said}" if len(runs) == 1 else f"{len(runs)} runs{models}, {said}"


def without_seed(run: str) -> str:
    """The name of a run without the seed at its end, which seeds of one model share."""
    return re.sub(r"-seed\d+$", "", run)


def counted(numbers: Iterable[int], noun: str) -> str:
    """How many examples each number is of, such as "500 to 2,000 questions"."""
    found = set(numbers)
    least, most = min(found), max(found)
    return f"{least:,} {noun}" if least == most else f"{least:,} to {most:,} {noun}"


def _seed_of(row: NamedRun) -> set[int]:
    """The row's seed, which older rows have in the name alone."""
    named = re.search(r"-seed(\d+)$", row.run)
    if row.seed is None:
        return {int(named[1])} if named else set()
    return {row.seed}


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
