"""What backward passes compute again, chosen by what there is room for (`train.recompute=auto`).

Of the ways to recompute (`Recompute`) whose fullest rank has room, by the plan, the one with the fewest FLOPs, and of
these with the least on the host, which has room for it; if none has, the one that holds least. A CPU has no host to
move anything to.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.device.gpus import gpu_bytes
from pretrain.device.host_memory import installed_memory
from pretrain.model.config import Recompute
from pretrain.plan.machine import USABLE
from pretrain.plan.plan import Plan, make_plan
from pretrain.plan.text import GIB, plural


class Room(NamedTuple):
    """Memory that a rank can plan with."""

    bytes: float
    """Infinite where nobody knows."""
    where: str
    """Whose it is, for people."""
    host: float = math.inf
    """Bytes that a rank may have on the host beside; 0 where its memory is the host's."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A plan with one of the ways to recompute, and why it has that one."""

    plan: Plan
    text: str
    """Empty where the configuration says it."""


def candidates(config: RunConfig) -> list[RunConfig]:
    """The configuration with each way to recompute that it leaves open."""
    if config.train.recompute != "auto":
        return [config]
    trains = [config.train.model_copy(update={"recompute": each}) for each in get_args(Recompute)]
    return [config.model_copy(update={"train": train}) for train in trains]


def choose_recompute(config: RunConfig, world_size: int, teacher: SavedModel | None, room: Room) -> Choice:
    """The plan of a run on `world_size` ranks, as of `make_plan`.

    Args:
        config: of the run.
        world_size: its ranks.
        teacher: the model of train.teacher, if the run has one.
        room: of each rank.
    """
    plans = [make_plan(each, world_size, teacher) for each in candidates(config)]
    if len(plans) == 1:
        return Choice(plan=plans[0], text="")
    plans = [plan for plan in plans if plan.config.train.recompute != "offload" or 0 < _on_host(plan) <= room.host]
    fitting = [plan for plan in plans if _size(plan) <= room.bytes]
    best = min(fitting, key=lambda plan: (plan.recomputed, _on_host(plan))) if fitting else min(plans, key=_size)
    each = ", ".join(f"{plan.config.train.recompute} {_size(plan) / GIB:.2f} GiB" for plan in plans)
    has = "memory that is not known" if math.isinf(room.bytes) else f"{room.bytes / GIB:.2f} GiB ({room.where})"
    text = f"{best.config.train.recompute}, the cheapest that fits into {has}: {each}"
    if not fitting:
        more = (_size(best) - room.bytes) / GIB
        text = f"none fits into {has}: {best.config.train.recompute}, the smallest, needs {more:.2f} GiB more: {each}"
    return Choice(plan=best, text=text)


def _size(plan: Plan) -> float:
    return plan.worst_stage.total


def _on_host(plan: Plan) -> float:
    return max(stage.host for stage in plan.stages)


def given_room(config: RunConfig) -> Room | None:
    """What the configuration says of it."""
    gib = config.train.memory_gib
    return None if gib is None else Room(gib * GIB, "train.memory_gib")


def expected_room(config: RunConfig, world_size: int) -> Room:
    """What ranks would have on this machine, where the configuration does not say it: before there are any."""
    if (given := given_room(config)) is not None:
        return given
    if gpus := gpu_bytes():
        return Room(USABLE * min(gpus), "a GPU here")
    return share_of_machine(installed_memory(), world_size)


def share_of_machine(memory: int | None, num_ranks: int) -> Room:
    """What each of the ranks on a machine without GPUs has."""
    if memory is None:
        return Room(math.inf, "", host=0)
    return Room(USABLE * memory / num_ranks, f"this machine, for {plural(num_ranks, 'rank')}", host=0)
