"""Process groups: which rank holds which part of the model, and whom it talks to.

Ranks are numbered with the tensor axis fastest, then data, then pipeline, as in Megatron: tensor-parallel neighbours,
which talk most, share a node. Groups are made once and handed on; nothing fetches them from a global.

A rank makes the groups that it is in and no others, with the one backend of its device: on GPUs NCCL, so that the
world's group is the only one with gloo (`pretrain/parallel/host.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from pretrain.config.run import ParallelSection
from pretrain.device.ranks import world_from_environment
from pretrain.parallel.meeting import meet
from pretrain.parallel.phase import Phase


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The process groups of this rank and its place in each."""

    tensor: ProcessGroup
    data: ProcessGroup
    pipeline: ProcessGroup
    alone: ProcessGroup
    """This rank only; stands for the axes that are not used (context parallelism)."""
    ends: ProcessGroup | None
    """First and last pipeline stage of this rank's column, in this order, if this is one of the two and there are
    several stages."""
    device: torch.device
    phase: Phase
    """Where this rank stands in its run."""

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline.rank() == self.pipeline.size() - 1

    def describe(self) -> str:
        """How the ranks split the work, for people."""
        return f"tensor {self.tensor.size()} x pipeline {self.pipeline.size()} x data {self.data.size()}"


def start_world(timeout_minutes: float = 30.0) -> torch.device:
    """Join the default process group (NCCL on GPUs, gloo on CPUs; a lone process is a world) and choose the device.

    Raises:
        ConnectionError: another rank did not come (`pretrain/parallel/meeting.py`).
    """
    rank, size, local = world_from_environment()
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local % torch.cuda.device_count()), "cuda:nccl,cpu:gloo"
        torch.cuda.set_device(device)
    store = dist.HashStore() if size == 1 else meet(rank, size)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(minutes=timeout_minutes))
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=timedelta(minutes=timeout_minutes)
    )
    return device


def make_groups(parallel: ParallelSection, device: torch.device) -> Groups:
    """Cut the world into tensor, data and pipeline groups. Collective: every rank calls it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    shape = (parallel.pipeline, world // (parallel.pipeline * parallel.tensor), parallel.tensor)
    numbers = torch.arange(world).view(shape)
    stage, replica, part = (int(place) for place in torch.unravel_index(torch.tensor(rank), shape))
    backend = dict(pair.split(":") for pair in dist.get_backend_config().split(","))[device.type]

    def group(ranks: Tensor | Sequence[int]) -> ProcessGroup:
        made = dist.new_group([int(each) for each in ranks], backend=backend, use_local_synchronization=True)
        assert isinstance(made, ProcessGroup)
        return made

    # All ranks make as many, in one order: torch names a group by its ranks and by how many there were before.
    tensor = group(numbers[stage, replica])
    data = group(numbers[stage, :, part])
    pipeline = group(numbers[:, replica, part])
    alone, is_end = group([rank]), parallel.pipeline > 1 and stage in (0, parallel.pipeline - 1)
    ends = group(numbers[[0, -1], replica, part] if is_end else [rank])
    return Groups(
        tensor=tensor,
        data=data,
        pipeline=pipeline,
        alone=alone,
        ends=ends if is_end else None,
        device=device,
        phase=Phase(device),
    )


def gather_lists(lines: Sequence[str]) -> list[str]:
    """All ranks' lists, one after the other, on every rank. Collective."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(lines))
    return [line for part in parts for line in part]
