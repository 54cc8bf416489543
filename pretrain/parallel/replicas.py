"""Whether what data-parallel ranks hold alike is still alike: by a sum of bits each, which one wrong bit changes.

A card or a memory that errs changes no file and raises nothing; every other rank goes on from right weights, and the
mean of all gradients hides the wrong ones.
"""

from collections import Counter
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.groups import Groups, gather_lists
from pretrain.parallel.stop_vote import sum_over_ranks

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NAMED_TENSORS = 3


class ReplicaError(OSError):
    """A machine has changed weights by itself: the run may be right on others, from its newest checkpoint."""


@torch.no_grad()
def require_equal_replicas(named: Iterable[tuple[str, Tensor]], groups: Groups) -> None:
    """Compare tensors, by their names, over the data-parallel ranks. Collective, over all ranks of the world.

    Raises:
        ReplicaError: on every rank; names ranks and tensors.
    """
    if groups.data.size() == 1:
        return
    names, tensors = zip(*named, strict=True)
    sums = torch.stack([bit_sum(tensor) for tensor in tensors])
    rows = [torch.empty_like(sums) for _ in range(groups.data.size())]
    dist.all_gather(rows, sums, group=groups.data)
    problems = []
    if not all(torch.equal(row, sums) for row in rows):
        ranks = dist.get_process_group_ranks(groups.data)
        problems = describe_differences(names, [row.tolist() for row in rows], ranks)
    (count,) = sum_over_ranks(torch.tensor([float(len(problems))], dtype=torch.float64, device=groups.device))
    if count:
        raise ReplicaError("; ".join(dict.fromkeys(gather_lists(problems))))


def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of the elements' bits as whole numbers, int64 scalar; no copy of the tensor is made."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def describe_differences(names: Iterable[str], rows: list[list[int]], ranks: list[int]) -> list[str]:
    """A line for each set of ranks that do not have what most have, or where there is no majority, for all of them.

    Args:
        names: of the tensors.
        rows: [ranks][tensors] sums.
        ranks: their numbers in the world.
    """
    odd: dict[tuple[int, ...], list[str]] = {}
    for place, name in enumerate(names):
        column = [row[place] for row in rows]
        (most, votes), *others = Counter(column).most_common()
        if others:
            has_majority = 2 * votes > len(ranks)
            who = tuple(rank for rank, value in zip(ranks, column, strict=True) if not has_majority or value != most)
            odd.setdefault(who, []).append(name)
    lines = []
    for who, what in odd.items():
        more = f" and {len(what) - NAMED_TENSORS} more" if len(what) > NAMED_TENSORS else ""
        tensors = f"{', '.join(what[:NAMED_TENSORS])}{more}"
        whose = "differs from the other replicas in" if len(who) == 1 else "differ in"
        lines.append(f"rank{'s' * (len(who) > 1)} {', '.join(map(str, who))} {whose} {tensors}")
    return lines
