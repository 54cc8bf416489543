"""Contenders in processes of their own, measured in turns.

Each contender is built once in a fresh process (so that allocator and thread settings of one do not help or hurt
another), and then does one turn in every round while the others wait. What disturbs the machine disturbs a whole round:
ratios are taken within rounds, and their median is the result.
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
    """Function of a module, called in the contender's process: returns what does one turn and gives its figure."""
    arguments: tuple[object, ...] = ()
    """Of `make`; picklable."""


def take_turns(
    title: str, contenders: Mapping[str, Contender], num_rounds: int, num_warm_up: int = 2
) -> dict[str, list[float]]:
    """Measure all contenders.

    Args:
        title: what is measured, for the progress bar.
        contenders: by name.
        num_rounds: rounds that count.
        num_warm_up: rounds before them that do not.

    Returns:
        The figures of each contender, one a round. One that failed is left out, and named on standard error.
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
    """The figure of one turn, or why there is none."""
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
        except Exception as error:  # of any kind: the report goes to the parent, which leaves this contender out
            connection.send(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
            return
        except KeyboardInterrupt:
            return
