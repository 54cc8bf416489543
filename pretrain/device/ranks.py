"""Which of how many ranks this process is, as its launcher says in the environment: torchrun and deepspeed set RANK,
WORLD_SIZE and LOCAL_RANK (slurm/rank.sh too), srun its own names. Without torch, so that a dry run can ask."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class World(NamedTuple):
    rank: int
    """This process among all, from 0."""
    size: int
    """Ranks in all."""
    local_rank: int
    """This process among those of its machine, from 0."""


def world_from_environment(environment: Mapping[str, str] = os.environ) -> World:
    """The place of this process: what a launcher set, else that of a lone process.

    Raises:
        ValueError: a variable holds no number, or a rank beyond the number of ranks.
    """
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        # A batch script that is not under srun has Slurm's variables too; it has no rendezvous.
        if names[0] in environment and "MASTER_ADDR" in environment:
            rank, size = _number(environment, names[0], 0), _number(environment, names[1], 1)
            if rank >= size:
                raise ValueError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
            return World(rank, size, _number(environment, names[2], 0) if names[2] in environment else 0)
    return World(0, 1, 0)


def planned_world_size(smallest: int, environment: Mapping[str, str] = os.environ) -> int:
    """Ranks that a dry run plans for if none are given: what the launcher or the job says, else `smallest`.

    Raises:
        ValueError: the variable holds no number of ranks.
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
