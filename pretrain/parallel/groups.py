"""Process groups: which rank holds which part of the model, and whom it talks to.

Ranks are numbered with the tensor axis fastest, then data, then pipeline, as in Megatron: tensor-parallel neighbours,
which talk most, share a node. Groups are made once and handed on; nothing fetches them from a global.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

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
    world = dist.get_world_size()
    shape = (parallel.pipeline, world // (parallel.pipeline * parallel.tensor), parallel.tensor)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pipeline", "data", "tensor"))
    alone = _own_group([[rank] for rank in range(world)])
    assert alone is not None
    ends = None
    if parallel.pipeline > 1:
        ranks = mesh.mesh.reshape(parallel.pipeline, -1)
        ends = _own_group([[int(first), int(last)] for first, last in zip(ranks[0], ranks[-1], strict=True)])
    return Groups(
        tensor=mesh.get_group("tensor"),
        data=mesh.get_group("data"),
        pipeline=mesh.get_group("pipeline"),
        alone=alone,
        ends=ends,
        device=device,
        phase=Phase(device),
    )


def gather_lists(lines: Sequence[str]) -> list[str]:
    """All ranks' lists, one after the other, on every rank. Collective."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(lines))
    return [line for part in parts for line in part]


def _own_group(members: list[list[int]]) -> ProcessGroup | None:
    """Make a group of each list of ranks; the one that this rank is in, if any. Collective."""
    own = None
    for ranks in members:
        group = dist.new_group(ranks)
        if isinstance(group, ProcessGroup) and dist.get_rank() in ranks:
            own = group
    return own
