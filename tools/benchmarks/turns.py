"""Measure contenders in separate processes, in turns.

Each contender is built once in a new process, so that its allocator and thread settings do not affect the others, and
does one turn per round while the others wait. Disturbances of the machine affect whole rounds, so ratios are computed
within rounds, and their median is the result.
"""

import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from benchmarks.measure import Turns, timed

from pretrain.run.progress import Progress

Turn = Callable[[], float]
Contender = Callable[[], Turn]
"""Called in the contender's process, so it must be picklable; returns a function that does a turn and measures it."""


def take_turns(
    title: str, contenders: Mapping[str, Contender], rounds: Turns, *, threads: int | None, num_warm_up: int = 2
) -> dict[str, list[float]]:
    """Measure all contenders, by name, after `num_warm_up` rounds that do not count.

    Args:
        title: label of the progress bar.
        contenders: what to measure.
        rounds: those that count.
        threads: CPU threads of every contender. None: torch's default.
        num_warm_up: rounds before these.

    Returns:
        The figures of each contender, one per round, without contenders that failed; these are reported on stderr.
    """
    context = multiprocessing.get_context("spawn")
    progress = Progress(num_warm_up + rounds.count)
    connections: dict[str, Connection] = {}
    processes = []
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        for name, contender in contenders.items():
            connections[name], theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, contender, threads), daemon=True))
            processes[-1].start()
            theirs.close()
        for number in rounds.numbers(num_warm_up):
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


def training_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Turn:
    """A turn that takes a step of AdamW, in seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    is_cuda = next(model.parameters()).is_cuda

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_cuda:
            torch.cuda.synchronize()

    return lambda: timed(step)


def make_memory(make_step: Contender) -> Turn:
    """Contender: bytes of peak growth of this process's resident set over the built model."""
    step = make_step()
    built = _resident("VmRSS")

    def turn() -> float:
        step()
        return _resident("VmHWM") - built

    return turn


def _resident(entry: str) -> int:
    """Bytes of this process's resident set: current (VmRSS) or peak (VmHWM). Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{entry}:\s+(\d+) kB", status)[0]) * 1024


def _ask(connection: Connection) -> float | str:
    """The figure of one turn, or the reason of a failure."""
    try:
        connection.send(None)
        return connection.recv()
    except (EOFError, OSError):
        return "its process ended"


def _serve(connection: Connection, contender: Contender, threads: int | None) -> None:
    turn = None
    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        try:
            connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            turn = turn or contender()
            connection.send(turn())
        except BrokenPipeError:  # the parent was interrupted
            return
        except Exception as error:  # any error is reported to the parent, which leaves this contender out
            connection.send(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}")
            return
        except KeyboardInterrupt:
            return
