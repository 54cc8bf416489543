"""What start, resume, saving and retention cost in calls to the storage: a rank as many on any number of ranks, rank 0
so many for each rank besides.

Counted are the calls of a whole run, of each rank apart, and those of single steps on a checkpoint of 1,024 ranks.
Entries of listed folders are not counted (the system hands them out by the thousand), and neither is what is asked
again and again until another rank has done something: how often, `next_pause` says.
"""

import re
from collections.abc import Sequence

import pytest

from pretrain.checkpoint.commit import next_pause
from tests.faults.bench import Bench
from tests.faults.kinds import RUN

A_RANK = {"start": 27, "resume": 48}
"""Calls of a rank that does not read data, in a run of one step and one save."""
ONE_FOR_EACH = 8
"""Calls of rank 0 for each rank besides, in the same."""
MANY = {"write": 12, "commit": 6, "keep": 1, "resume": 0, "remove": 1}
"""Calls for each rank of a checkpoint: to write its part, all of them on that rank; the others on rank 0 alone, or on
each rank where there are none for each."""
_NOT_COUNTED = re.compile(rf"list-next .*|\S+ runs/{RUN}/(owner|checkpoints(/step-\d+\.(tmp|failed)-[^/]+)?)")


def counted(calls: Sequence[str]) -> list[str]:
    return [call for call in calls if not _NOT_COUNTED.fullmatch(call)]


def test_a_rank_calls_the_storage_as_often_on_any_number_of_ranks(bench: Bench) -> None:
    layouts = {2: ("parallel.pipeline=2",), 4: ("parallel.pipeline=2", "parallel.tensor=2")}
    found = {
        ranks: [[counted(calls) for calls in run] for run in bench.train_apart(ranks, *layout)]
        for ranks, layout in layouts.items()
    }
    for place, (name, most) in enumerate(A_RANK.items()):
        (one, *others), (one_of_four, *others_of_four) = found[2][place], found[4][place]
        for calls in (*others, *others_of_four):
            assert len(calls) <= most, (name, calls)
            foreign = re.compile(r"\S+ (shards/.*|runs/.*/checkpoint\.json)")
            assert not list(filter(foreign.fullmatch, calls)), "one rank of a replica reads data, rank 0 the index"
        assert len(one_of_four) - len(one) <= 2 * ONE_FOR_EACH, name


def test_what_1024_ranks_cost(bench: Bench) -> None:
    few, many = bench.many_ranks(8), bench.many_ranks(1024)
    for name, most in MANY.items():
        each = (len(counted(many[name])) - len(counted(few[name]))) / (1024 - 8)
        assert each <= most, name


@pytest.mark.parametrize(("minutes", "looks"), [(1, 50), (5, 65), (30, 80)])
def test_a_long_wait_for_another_rank_is_few_looks(minutes: int, looks: int) -> None:
    waited_s, pause_s, count = 0.0, 0.002, 0
    while waited_s < 60 * minutes:
        waited_s, count = waited_s + pause_s, count + 1
        pause_s = next_pause(pause_s, waited_s)
        assert pause_s <= max(0.2, waited_s / 8)
    assert count <= looks
