"""The pool itself: a failure or a hang on one rank ends in an error that says where, and the next case runs."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.pool import RankError, RankPool


@pytest.fixture(scope="module")
def small_pool() -> Iterator[RankPool]:
    ranks = RankPool(2, modules=("tests.distributed.cases",))
    yield ranks
    ranks.close()


def add_ranks() -> int:
    number = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(number)
    return int(number)


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError(f"no luck on {rank}")
    dist.barrier()


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        threading.Event().wait()


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(3)


def has_left_before_the_other_answers(folder: str) -> bool:
    """Rank 0 answers at once and marks when it leaves; rank 1 gives it time to, then looks."""
    mark, leave = Path(folder, "left"), dist.destroy_process_group

    def marked() -> None:
        dist.destroy_process_group = leave
        mark.touch()
        leave()

    if dist.get_rank() == 0:
        dist.destroy_process_group = marked
    else:
        threading.Event().wait(0.2)
    return mark.exists()


def test_a_rank_that_has_answered_stays_until_all_have(small_pool: RankPool, tmp_path: Path) -> None:
    assert small_pool.run(has_left_before_the_other_answers, str(tmp_path), world_size=2) == [False, False]
    assert small_pool.run(add_ranks, world_size=2) == [3, 3]
    assert Path(tmp_path, "left").exists()


def test_failures_and_hangs_name_rank_and_place(small_pool: RankPool) -> None:
    assert small_pool.run(add_ranks, world_size=1) == [1]
    with pytest.raises(
        RankError, match=r"fail_on\(1,\) on 2 ranks failed\nrank 1: Traceback(.|\n)*ValueError: no luck on 1"
    ):
        small_pool.run(fail_on, 1, world_size=2)
    with pytest.raises(
        RankError, match=r"hang_on\(0,\) on 2 ranks: no answer in 0.5 s from ranks \[0\](.|\n)*in hang_on"
    ):
        small_pool.run(hang_on, 0, world_size=2, timeout_s=0.5)
    with pytest.raises(RankError, match=r"rank 0: the process died"):
        small_pool.run(die_on, 0, world_size=1)
    assert small_pool.run(add_ranks, world_size=2) == [3, 3]
