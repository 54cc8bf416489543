"""Measure contenders in separate processes, in turns.

Each contender is built once in a new process, so that its allocator and thread settings do not affect the others, and
does one turn per round while the others wait. Disturbances of the machine affect whole rounds, so ratios are computed
within rounds, and their median is the result.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median

from pretrain.run.progress import Progress

Turn = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to measure."""

    make: Callable[..., Turn]
    """Module-level function, called in the contender's process; returns a function that does a turn and measures it."""
    arguments: tuple[object, ...] = ()
    """Arguments of `make`; picklable."""


def take_turns(
    title: str, contenders: Mapping[str, Contender], num_rounds: int, num_warm_up: int = 2
) -> dict[str, list[float]]:
    """Measure all contenders, by name, after `num_warm_up` rounds that do not count; `title` labels the progress bar.

    Returns:
        The figures of each contender, one per round, without contenders that failed; these are reported on stderr.
    """
    context = multiprocessing.get_context("spawn")
    progress = Progress(num_warm_up + num_rounds)
    connections: dict[str, Connection] = {}
    processes = []
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for name, contender in contenders.items():
            connections[name], theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, contender), daemon=True))
            processes[-1].start()
            theirs.close()
        for number in range(num_warm_up + num_rounds):
            for name in list(figures):
                figure = _ask(connections[name])
                if isinstance(figure, str):
                    progress.message(f"{title}: {name} left out: {figure}")
                    del figures[name]
                elif number >= num_warm_up:
                    figures[name].append(figure)
            progress.update(number + 1, title)
    finally:
        progress.close()
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(10)
            process.kill()
    return figures


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of above / below."""
    return median(a / b for a, b in zip(above, below, strict=True))


def _ask(connection: Connection) -> float | str:
    """The figure of one turn, or the reason of a failure."""
    try:
        connection.send(None)
        return connection.recv()
    except (EOFError, OSError):
        return "its process ended"


def _serve(connection: Connection, contender: Contender) -> None:
    turn = None
    while True:
        try:
            connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            turn = turn or contender.make(*contender.arguments)
            connection.send(turn())
        except Exception as error:  # any error is reported to the parent, which leaves this contender out
            connection.send(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
            return
        except KeyboardInterrupt:
            return
