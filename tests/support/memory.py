"""Memory that torch allocates on a CPU, by its profiler."""

import itertools
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.config.run import RunConfig
from pretrain.device.hardware import DTYPES
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.recurrence import Stage
from pretrain.model.loss import loss_sums
from pretrain.parallel.depths import Batch, DepthRing
from pretrain.parallel.groups import Groups


def allocations(trace: profile) -> list[tuple[int, int]]:
    """(time in ns, bytes) of each allocation, and below zero of what was freed, in their order."""
    assert trace.profiler is not None and trace.profiler.kineto_results is not None
    events: list[Any] = trace.profiler.kineto_results.events()
    return sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")


def measured_evaluation(run: RunConfig, num_batches: int, groups: Groups) -> int:
    """The most bytes that this rank has allocated while all loop counts of batches are scored."""
    stage = Stage(index=groups.pipeline.rank(), count=groups.pipeline.size())
    built = LoopedGPT(run.model, run.train.seq_len, stage=stage)
    built.to(DTYPES[run.train.precision])
    tokens = torch.zeros(run.train.micro_batch, run.train.seq_len, dtype=torch.long)
    score, ring = partial(loss_sums, built, labels=tokens), DepthRing(built, groups)
    loops = range(1, run.model.num_loops + 1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        ring.run([Batch(tokens=tokens)] * num_batches, loops, lambda _number, _loops, states: score(states))
    return max(itertools.accumulate(size for _, size in allocations(trace)))
