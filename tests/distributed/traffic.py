"""Counts what a step sends: every operation of torch's distributed library, its process group and its bytes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.run import RunConfig
from pretrain.parallel.groups import Groups
from tests.distributed.cases import make_engine, make_rows, own_rows


@dataclass(frozen=True, kw_only=True)
class Message:
    """An operation, as this rank took part in it."""

    operation: str
    group: str
    """tensor, data, pipeline, ends or world."""
    num_bytes: int
    """Of all tensors in and out."""


class Traffic(TorchDispatchMode):
    """While open, notes every operation that torch's distributed library dispatches, those of megatron-core and of
    backward included."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.messages: Counter[Message] = Counter()
        named = {
            "tensor": groups.tensor,
            "data": groups.data,
            "pipeline": groups.pipeline,
            "ends": groups.ends,
            "world": dist.group.WORLD,
        }
        self._names = {group.group_name: name for name, group in named.items() if group is not None}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            operation = func._schema.name.removeprefix("c10d::").strip("_")
            self.messages[Message(operation=operation, group=self._group(args), num_bytes=_num_bytes(args))] += 1
        return func(*args, **(kwargs or {}))

    def _group(self, args: tuple[Any, ...]) -> str:
        position = next(place for place, arg in enumerate(args) if isinstance(arg, torch.ScriptObject))
        return self._names[dist.ProcessGroup.unbox(args[position]).group_name]


def _num_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_num_bytes(part) for part in value) if isinstance(value, list | tuple) else 0


def count_traffic(config: RunConfig, num_rows: int, loop_counts: list[int]) -> list[Counter[Message]]:
    """The messages of one step at each loop count, the engine and its first step not counted."""
    engine, groups = make_engine(config)
    rows = own_rows(make_rows(num_rows), groups)
    engine.train_step(rows, 1, 0.0)
    counted = []
    for num_loops in loop_counts:
        with Traffic(groups) as traffic:
            engine.train_step(rows, num_loops, 0.0)
        counted.append(traffic.messages)
    return counted
