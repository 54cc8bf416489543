"""Rank and world size of this process, from the environment that its launcher sets: RANK, WORLD_SIZE and LOCAL_RANK
under torchrun, deepspeed and slurm/rank.sh, SLURM_* under srun. Imports no torch, so that a dry run stays fast."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class World(NamedTuple):
    rank: int
    """Index of this process among all ranks, from 0."""
    size: int
    """Number of ranks."""
    local_rank: int
    """Index of this process among the ranks of its machine, from 0."""


def world_from_environment(environment: Mapping[str, str] = os.environ) -> World:
    """The world that the launcher set, or a world of one process without a launcher.

    Raises:
        ValueError: a variable is not a number, or the rank is not below the number of ranks.
    """
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        # a batch script outside srun has Slurm's variables too, but no MASTER_ADDR
        if names[0] in environment and "MASTER_ADDR" in environment:
            rank, size = _number(environment, names[0], 0), _number(environment, names[1], 1)
            if rank >= size:
                raise ValueError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
            return World(rank, size, _number(environment, names[2], 0) if names[2] in environment else 0)
    return World(0, 1, 0)


def planned_world_size(smallest: int, environment: Mapping[str, str] = os.environ) -> int:
    """Number of ranks for a dry run without --world-size: that of the launcher or Slurm job, else `smallest`.

    Raises:
        ValueError: the launcher's or Slurm's variable is not a number of ranks.
    """
    names = [name for name in ("WORLD_SIZE", "SLURM_NTASKS") if environment.get(name)]
    return _number(environment, names[0], 1) if names else smallest


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in environment


def _number(environment: Mapping[str, str], name: str, minimum: int) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or int(text) < minimum:
        raise ValueError(f"environment: {name}={text} is not a whole number of at least {minimum}; unset it or mend it")
    return int(text)
