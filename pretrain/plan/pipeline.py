"""The timetable of the ring: which stage runs which chunk of which micro-batch, in what order. No torch.

A stage works L·M visits: L chunks (loops) for each of M micro-batches, forward and backward. The first visit reaches
the last stage after P-1 others, so a step takes L·M + P-1 visits, of which P-1 are idle, if all take equally long;
prelude, coda and head make them unequal, see `Plan.balance`.

The order is that of megatron-core's 1F1B schedule (Narayanan et al. 2021, arXiv 2104.04473, section 2.2), which runs
the ring (`pretrain/parallel/ring.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

TOGETHER = 4
"""Batches that an evaluation has under way for each of several stages: the waits at start and end are at most a fifth
of the time at one loop."""


class Visit(NamedTuple):
    """A forward or backward pass of one micro-batch through one chunk of a stage."""

    is_forward: bool
    micro_batch: int
    chunk: int


def group_size(num_micro_batches: int, num_stages: int) -> int:
    """Micro-batches that run through one chunk before the next chunk starts: the smallest N >= P with M mod N = 0 or M
    mod N >= P.

    Raises:
        ValueError: fewer micro-batches than stages.
    """
    if num_micro_batches < num_stages:
        raise ValueError(f"{num_micro_batches} micro-batches are fewer than the {num_stages} pipeline stages")
    return next(
        n
        for n in range(num_stages, num_micro_batches + 1)
        if num_micro_batches % n == 0 or num_micro_batches % n >= num_stages
    )


def idle_share(num_passes: int, num_micro_batches: int, num_stages: int) -> float:
    """Share of a step in which a stage waits: (P-1)/(L·M + P-1)."""
    return (num_stages - 1) / (num_passes * num_micro_batches + num_stages - 1)


def stage_order(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int) -> list[Visit]:
    """The visits of a stage in a step: forward ones to warm up, then one forward and one backward in turn, the rest.

    Interleaved over several chunks, groups of N micro-batches (`group_size`) go through chunk after chunk, backward
    passes through the chunks in reverse; a stage warms up with 2·(P-1-stage) + (L-1)·N visits. With one chunk this is
    plain 1F1B, P-1-stage visits.
    """
    return _in_groups(stage, num_stages, num_chunks, num_micro_batches, group_size(num_micro_batches, num_stages))


def _in_groups(stage: int, num_stages: int, num_chunks: int, num_micro_batches: int, group: int) -> list[Visit]:
    behind = num_stages - 1 - stage
    forward = [
        Visit(True, micro_batch, chunk)
        for start in range(0, num_micro_batches, group)
        for chunk in range(num_chunks)
        for micro_batch in range(start, min(start + group, num_micro_batches))
    ]
    backward = [Visit(False, visit.micro_batch, num_chunks - 1 - visit.chunk) for visit in forward]
    warm_up = min(behind if num_chunks == 1 else 2 * behind + (num_chunks - 1) * group, len(forward))
    steady = [visit for pair in zip(forward[warm_up:], backward, strict=False) for visit in pair]
    return forward[:warm_up] + steady + backward[len(forward) - warm_up :]


def peak_in_flight(sizes: Sequence[float], stage: int, num_stages: int, num_micro_batches: int) -> float:
    """The most that a stage holds at one time, if chunk i holds `sizes[i]` of a micro-batch from its forward to its
    backward pass.

    A stage warms up within two groups, and then one group is as the other but for the last: four and that one are
    enough.
    """
    held = peak = 0.0
    group = group_size(num_micro_batches, num_stages)
    enough = min(num_micro_batches, 4 * group + num_micro_batches % group)
    for visit in _in_groups(stage, num_stages, len(sizes), enough, group):
        held += sizes[visit.chunk] if visit.is_forward else -sizes[visit.chunk]
        peak = max(peak, held)
    return peak
