"""The timetable of the ring against the one by which Megatron runs."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

from pretrain.plan.pipeline import Visit, group_size, idle_share, peak_in_flight, stage_order
from tools.draw_ring import simulate


@given(st.integers(1, 64), st.integers(1, 16))
def test_group_size_is_the_smallest_that_the_schedule_accepts(num_micro_batches: int, num_stages: int) -> None:
    if num_micro_batches < num_stages:
        with pytest.raises(
            ValueError, match=rf"^{num_micro_batches} micro-batches are fewer than the {num_stages} pipeline stages$"
        ):
            group_size(num_micro_batches, num_stages)
        return
    fits = [
        n
        for n in range(num_stages, num_micro_batches + 1)
        if num_micro_batches % n == 0 or num_micro_batches % n >= num_stages
    ]
    assert group_size(num_micro_batches, num_stages) == min(fits)


def megatrons_order(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> list[Visit]:
    """Megatron's order of work on a stage, from its own table and number of warm-up passes."""
    group = group_size(num_micro_batches, num_stages)
    table = get_schedule_table(num_micro_batches, num_chunks, group)
    place = SimpleNamespace(
        pp_group=SimpleNamespace(size=lambda: num_stages, rank=lambda: stage),
        virtual_pipeline_model_parallel_size=num_chunks if num_chunks > 1 else None,
    )
    _, _, warm_up, _ = get_pp_rank_microbatches(num_micro_batches, num_chunks, group, p2p_communicator=place)  # type: ignore[arg-type]
    forward = [Visit(True, *work) for work in table]
    backward = [Visit(False, micro_batch, num_chunks - 1 - chunk) for micro_batch, chunk in table]
    order = forward[:warm_up]
    for number in range(warm_up, len(table)):
        order += [forward[number], backward[number - warm_up]]
    return order + backward[len(table) - warm_up :]


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 9), st.data())
@settings(deadline=None, max_examples=100)
def test_order_and_what_is_in_flight_are_megatrons(
    num_chunks: int, num_stages: int, extra: int, data: st.DataObject
) -> None:
    num_micro_batches, stage = num_stages + extra, data.draw(st.integers(0, num_stages - 1))
    order = megatrons_order(stage, num_stages, num_chunks, num_micro_batches)
    assert stage_order(stage, num_stages, num_chunks, num_micro_batches) == order
    sizes = [1 + chunk / 8 for chunk in range(num_chunks)]
    held = [
        sum(sizes[visit.chunk] * (1 if visit.is_forward else -1) for visit in order[:end])
        for end in range(1, len(order) + 1)
    ]
    assert held[-1] == 0
    assert peak_in_flight(sizes, stage, num_stages, num_micro_batches) == max(held)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_idle_share_is_that_of_the_schedule(num_loops: int, num_stages: int, num_groups: int) -> None:
    num_micro_batches = num_groups * num_stages
    passes = simulate(num_stages, num_loops, num_micro_batches, forward_time=1)
    time = max(item.start + item.duration for item in passes)
    work = sum(item.duration for item in passes) / num_stages
    assert work == 3 * num_loops * num_micro_batches
    assert idle_share(num_loops, num_micro_batches, num_stages) == pytest.approx(1 - work / time)
