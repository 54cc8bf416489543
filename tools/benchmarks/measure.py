"""What the benchmarks share: rows of figures, turns within a time, and the time of a piece of work."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pretrain.command.options import positive

Row = dict[str, object]
RANKS_TIMEOUT_S = 300
LARGEST_SHARE = 1.05
"""A step that is faster than the peak by more has shown that the peak was measured wrongly."""


def row(name: str, value: float, unit: str, target: str = "", against: str = "") -> Row:
    """A line of the table: a figure, its target, and what it is compared with."""
    return {"name": name, "value": value, "unit": unit, "target": target, "against": against}


class Turns:
    """How often a benchmark measures. Turns for which the time is not enough are left out, and it says so.

    Args:
        text: their number, as of an option.
    """

    deadline: ClassVar[float] = math.inf
    """By `time.monotonic`, for all turns of this process."""

    def __init__(self, text: str) -> None:
        self.count = positive(text)

    def numbers(self, warm_up: int = 0) -> Iterator[int]:
        """0, 1, ...: `warm_up` numbers, and then one for each turn, the first whatever the time."""
        for number in range(warm_up + self.count):
            if number > warm_up and time.monotonic() > self.deadline:
                left = warm_up + self.count - number
                print(f"left out: {left} of {self.count} turns, as the time is over (--minutes)", file=sys.stderr)
                return
            yield number


def require_possible(rows: list[Row]) -> None:
    """Raise a ValueError if a figure is a share of the peak that nothing can reach."""
    for name, share in ((row["name"], row["value"]) for row in rows if row["unit"] == "of peak"):
        if isinstance(share, float) and share > LARGEST_SHARE:
            raise ValueError(f"{name}: {share:.2f} of the peak, which was measured too low; not written: run it again")


def add_rounds(parser: argparse.ArgumentParser, benchmark: str, default: int, what: str = "turns") -> None:
    """--<benchmark>-rounds."""
    text = f"{what}, of which the median is taken (default: {default})"
    parser.add_argument(f"--{benchmark}-rounds", type=Turns, default=str(default), help=text)


def add_threads(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """--<benchmark>-threads."""
    text = "CPU threads of every contender (default: 2)"
    parser.add_argument(f"--{benchmark}-threads", type=positive, default=2, help=text)


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def answer_of_ranks(num_ranks: int, module: str, *words: str) -> Any:
    """What a module that runs as so many ranks, with one thread each, prints as its last line, in JSON.

    Raises:
        OSError: they failed, or gave no answer in `RANKS_TIMEOUT_S`.
    """
    command = [sys.executable, "-m", "pretrain.launch", "--ranks", str(num_ranks), "-m", module, *words]
    path = os.pathsep.join(sys.path)  # the ranks find what this process finds
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=RANKS_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{num_ranks} ranks of {module} gave no answer in {RANKS_TIMEOUT_S} s") from error
    if ended.returncode:
        raise OSError(f"{num_ranks} ranks of {module} failed: {ended.stderr.strip().splitlines()[-1:]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])
