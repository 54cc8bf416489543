"""What ranks tell each other on the host, point to point over the world's gloo group.

Where there are GPUs, that is the only group with gloo: a group of n ranks has a connection between any two of them, and
memory and descriptors for each, so one for every axis would be thousands on each node. NCCL, which the other groups
have, does not move what is on the host. DeepSpeed makes groups of its own as the world is made, when it fine-tunes.

Messages go down a tree in which each rank has two below it, so they take 2·log2(n) hops, where a ring of gloo takes 2n;
and a message to one rank is never taken for a collective that others are in, as two collectives are for each other.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

HOST = torch.device("cpu")
_AGREEMENT = 1
"""Tag of messages of `any_rank`: nothing else of a run has it."""


def hand_on(tensor: Tensor, ranks: Sequence[int]) -> None:
    """Fill a tensor on the host with that of the first of these ranks of the world. Collective over them."""
    above, below = _neighbours(ranks)
    if above is not None:
        dist.recv(tensor, src=above)
    for work in [dist.isend(tensor, dst=rank) for rank in below]:
        assert work is not None
        work.wait()


def hand_on_objects(objects: list[Any], ranks: Sequence[int]) -> None:
    """Fill a list with the objects in that of the first of these ranks, as many. Collective over them."""
    above, below = _neighbours(ranks)
    if above is not None:
        dist.recv_object_list(objects, src=above, device=HOST)
    for rank in below:
        dist.send_object_list(objects, dst=rank, device=HOST)


def share_list(lines: list[str]) -> list[str]:
    """Rank 0's list, on all ranks of the world. Collective."""
    box = [lines]
    hand_on_objects(box, range(dist.get_world_size()))
    return box[0]


def any_rank(own: bool) -> bool:
    """Whether it is so on any rank of the world. Collective."""
    above, below = _neighbours(range(dist.get_world_size()))
    found, answer = torch.tensor(int(own)), torch.tensor(0)
    for rank in below:
        dist.recv(answer, src=rank, tag=_AGREEMENT)
        found |= answer
    if above is not None:
        dist.send(found, dst=above, tag=_AGREEMENT)
        dist.recv(found, src=above, tag=_AGREEMENT)
    for rank in below:
        dist.send(found, dst=rank, tag=_AGREEMENT)
    return bool(found)


def _neighbours(ranks: Sequence[int]) -> tuple[int | None, list[int]]:
    """Who is above this rank in the tree of these ranks, and who is below it."""
    place = ranks.index(dist.get_rank())
    return ranks[(place - 1) // 2] if place else None, list(ranks[2 * place + 1 : 2 * place + 3])
