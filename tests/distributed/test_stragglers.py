"""A rank that is slow at its own work is named, and how slow it is stands in the rows; a rank that waits is not."""

import json
import socket
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch.distributed as dist

from pretrain.config.layout import Layout
from pretrain.config.ranks import RanksSection
from pretrain.config.run import RunConfig
from pretrain.parallel.ring import Ring
from pretrain.run.stragglers import WINDOW, Stragglers
from tests.distributed.pool import RankPool
from tests.distributed.training import train_aloud, training_config, write_corpus

SLOW_S = 0.05


def train_slowly(config: RunConfig, rank: int) -> str:
    """Train; the forward and backward pass of one rank takes three times as long."""
    run = Ring.run

    def slow(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = run(*args, **kwargs)
        if dist.get_rank() == rank:
            time.sleep(max(SLOW_S, 2 * (time.perf_counter() - began)))
        return result

    Ring.run = slow  # type: ignore[method-assign]
    try:
        return train_aloud(config)
    finally:
        Ring.run = run  # type: ignore[method-assign]


def test_a_slow_rank_is_named(pool: RankPool, tmp_path: Path) -> None:
    root = write_corpus(tmp_path)
    sections: dict[str, Any] = {"train": {"steps": WINDOW + 2}, "validation": {"every": 0}, "checkpoint": {"every": 0}}
    config = training_config(root, "slow", ranks={"slow_factor": 1.3}, **sections)
    first, _ = pool.run(train_slowly, config, 1, world_size=2)
    who = f"rank 1 on {socket.gethostname()}"
    (line,) = [line for line in first.splitlines() if " works " in line]
    assert line.startswith(f"warning: {who} works ") and line.endswith(": all others wait for it")
    rows = [json.loads(line) for line in (root / "runs" / "slow" / "metrics.jsonl").read_text().splitlines()]
    assert Counter(row["slowest"] for row in rows).most_common()[0][0] == who
    assert all(row["work_worst_s"] >= SLOW_S and row["work_s"] <= row["work_worst_s"] for row in rows)
    # A step is timed by rank 0 and its work by each rank itself: of one step alone the clocks need not agree.
    assert median(row["work_worst_s"] for row in rows) <= median(row["step_time_s"] for row in rows)


def stragglers(replicas: int, tensor: int = 1, pipeline: int = 1) -> Stragglers:
    ranks = replicas * tensor * pipeline
    layout = Layout(world_size=ranks, data_parallel=replicas, micro_batches=1)
    return Stragglers(RanksSection(), [f"node{rank // 4}" for rank in range(ranks)], tensor, layout)


def test_who_is_slow_is_said_once_and_that_it_is_over() -> None:
    watched, said = stragglers(8), list[str]()
    for step in range(4 * WINDOW):
        slow = 1.5 if step < 2 * WINDOW else 1.0
        times, line = watched.on_step([1.0, 1.01, 1.0, 1.0, 1.0, slow, 1.0, 1.0])
        assert times is not None and times.median_s == 1.0
        said += [line] if line else []
    assert said == [
        f"warning: rank 5 on node1 works 1.50 times as long as the median in a step, over the last {WINDOW} steps: all "
        "others wait for it",
        "rank 5 on node1 is as fast as the others again",
    ]


def test_one_slow_step_is_nobody_s() -> None:
    watched = stragglers(4)
    lines = [watched.on_step([1.0, 1.0, 1.0, 3.0 if step == 30 else 1.0])[1] for step in range(100)]
    assert set(lines) == {None}


@pytest.mark.parametrize("seconds", [[0.0] * 8, [1.0] * 7 + [float("nan")]])
def test_what_is_not_known_is_not_compared(seconds: list[float]) -> None:
    assert stragglers(8).on_step(seconds) == (None, None)


def test_the_ranks_of_a_slow_replica_are_named() -> None:
    watched = stragglers(2, tensor=2, pipeline=2)  # replica 1: ranks 2, 3 of the first stage and 6, 7 of the second
    times, _ = watched.on_step([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0])
    assert times is not None and times.slowest == "ranks 2, 3, 6, 7 on node0, node1" and times.worst_s == 2.0
    assert stragglers(1, tensor=2, pipeline=2).on_step([1.0, 1.0, 1.0, 9.0]) == (None, None)
