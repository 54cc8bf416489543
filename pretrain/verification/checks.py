"""The rows of the table in the order in which they are made: what is quick, and most often wrong, first."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pretrain.command.console import describe_error
from pretrain.verification.answers import check_answers
from pretrain.verification.data import check_data
from pretrain.verification.data_order import check_order
from pretrain.verification.interruption import check_compilation, check_export, check_interruption
from pretrain.verification.job import PlannedJob, Tick
from pretrain.verification.layouts import check_layouts
from pretrain.verification.ranks import RanksFailed
from pretrain.verification.room import check_room


class Check(NamedTuple):
    """What makes some rows."""

    name: str
    """Of a row that says why the others could not be made."""
    rows: Callable[[PlannedJob], Iterator[Tick]]


CHECKS = (
    Check("data", check_data),
    Check("room", check_room),
    Check("order", check_order),
    Check("layout", check_layouts),
    Check("cache", check_answers),
    Check("resume", check_interruption),
    Check("compile", check_compilation),
    Check("export", check_export),
)


def run_checks(job: PlannedJob) -> Iterator[tuple[Tick, float]]:
    """Every row as soon as it is known, with the seconds that it took."""
    for check in CHECKS:
        rows, started = check.rows(job), time.monotonic()
        while (tick := _next(check.name, rows)) is not None:
            yield tick, time.monotonic() - started
            started = time.monotonic()


def _next(name: str, rows: Iterator[Tick]) -> Tick | None:
    """The next row; one that does not hold where making it failed; None after the last."""
    try:
        return next(rows, None)
    except (ValueError, OSError, RanksFailed) as error:
        return Tick(name, False, describe_error(error).splitlines()[0])
