"""What ranks of this machine take to send each other something, measured by threads of this process that are connected
as the ranks of a run on CPUs are, by gloo.

gloo copies and adds on the cores of the ranks, so sending is work that hides behind nothing. The least of many times is
taken, by the clock or by the processor's time of a rank, whichever is less: others that use the machine add to the one,
and gloo's way to wait, which is to look again and again, to the other.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.plan.machine import Sending

MOST_BYTES = 512 << 10
"""Of what is measured; more takes as many times longer. Short enough for others not to come in between."""
MEASURE_S, LEAST_TIMES = 0.5, 24
"""How long each way to send is measured, and how often at least."""
TIMES = 4
"""That something is sent between two looks at the clock."""
CACHES = 64 << 20
"""Bytes of what is sent in turn, so that it comes from memory, as in a step."""
TIMEOUT = timedelta(minutes=1)
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
"""By the bytes of a number."""


def seconds_to_send(way: Sending, size: float, number: int, num_ranks: int) -> float:
    """Seconds for `size` bytes, in numbers of `number` bytes: of those that a rank holds before a sum or a scattering,
    after a gathering, or sends as a message."""
    measured = min(size, MOST_BYTES)
    numel = max(1, round(measured / number / num_ranks)) * num_ranks
    with _connected(num_ranks) as ranks:
        turns = [_turn(way, numel, DTYPES[number], rank) for rank in ranks]
        return _least(turns) * size / measured


@contextmanager
def _connected(num_ranks: int) -> Iterator[list[Any]]:
    """The ranks of one group."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(num_ranks) as threads:
        yield list(threads.map(lambda rank: dist.ProcessGroupGloo(store, rank, num_ranks, TIMEOUT), range(num_ranks)))


def _least(turns: list[Callable[[], None]]) -> float:
    """Seconds of what is sent once, when each rank takes its turn in a thread of its own."""
    times, began = list[float](), time.perf_counter()
    with ThreadPoolExecutor(len(turns)) as threads:
        while len(times) < LEAST_TIMES or time.perf_counter() - began < MEASURE_S:
            started, worked = time.perf_counter(), time.process_time()
            for done in [threads.submit(turn) for turn in turns]:
                done.result()
            times += [time.perf_counter() - started, (time.process_time() - worked) / len(turns)]
    return min(times) / TIMES


def _turn(way: Sending, numel: int, dtype: torch.dtype, rank: Any) -> Callable[[], None]:
    """What a rank does to send `TIMES` times; messages go to and fro between the first two."""
    sent = itertools.cycle([torch.zeros(numel, dtype=dtype) for _ in range(max(1, CACHES // (numel * dtype.itemsize)))])
    part = torch.zeros(numel // rank.size(), dtype=dtype)

    def once(number: int, whole: Tensor) -> None:
        if way == "sum":
            rank.allreduce([whole]).wait()
        elif way == "scatter":
            rank._reduce_scatter_base(part, whole, dist.ReduceScatterOptions()).wait()
        elif way == "gather":
            rank._allgather_base(whole, part).wait()
        elif number % 2 == rank.rank():
            rank.send([whole], 1 - rank.rank(), 0).wait()
        elif rank.rank() < 2:
            rank.recv([whole], 1 - rank.rank(), 0).wait()

    def turn() -> None:
        for number, whole in enumerate(itertools.islice(sent, TIMES)):
            once(number, whole)

    return turn
