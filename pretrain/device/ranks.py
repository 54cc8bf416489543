"""Rank and world size of this process, from the environment that its launcher sets: RANK, WORLD_SIZE and LOCAL_RANK
under torchrun, deepspeed and slurm/rank.sh, SLURM_* under srun. No torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

_FIRST_SPECIAL_STEP = 0xFFFFFFFA
"""Slurm numbers the steps of srun from 0; interactive and batch steps have numbers from here on (slurm.h)."""

MOST_RANKS = 10_000_000
"""Numbers beyond this are no ranks."""

LISTENER = "MASTER_LISTENER"
"""Variable that hands rank 0 a socket that is bound to MASTER_PORT already: the number of its file descriptor."""


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
        is_rank = names[0] == "RANK" or "MASTER_ADDR" in environment or _is_srun_task(environment)
        if names[0] in environment and is_rank:
            rank, size = _number(environment, names[0], 0), _number(environment, names[1], 1)
            if size > 1 and "MASTER_ADDR" not in environment:
                raise ValueError(
                    f"environment: {names[1]}={size} without MASTER_ADDR, so the ranks cannot find each other: "
                    "export MASTER_ADDR=<host of rank 0> MASTER_PORT=<a free port>, or start one process alone"
                )
            if size > 1:
                _number(environment, "MASTER_PORT", 1, 65535)
            if rank >= size:
                raise ValueError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
            return World(rank, size, _number(environment, names[2], 0) if names[2] in environment else 0)
    return World(0, 1, 0)


def rank_environment(world: World, host: str, port: int) -> dict[str, str]:
    """What a launcher sets for a rank, which finds rank 0 at `host:port`: `world_from_environment` reads it."""
    return {
        "RANK": str(world.rank), "WORLD_SIZE": str(world.size), "LOCAL_RANK": str(world.local_rank),
        "MASTER_ADDR": host, "MASTER_PORT": str(port),
    }  # fmt: skip


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


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and the shell of salloc have Slurm's numbers of tasks too."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def _number(environment: Mapping[str, str], name: str, minimum: int, maximum: int = MOST_RANKS) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or len(text) > len(str(maximum)) or not minimum <= int(text) <= maximum:
        span = f"from {minimum} to {maximum}" if maximum != MOST_RANKS else f"of at least {minimum}"
        raise ValueError(f"environment: {name}={text[:40]} is not a whole number {span}; unset it or mend it")
    return int(text)
