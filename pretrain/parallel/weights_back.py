"""Weights that come back from the data-parallel ranks that updated them, while the next step begins (with
`parallel.overlap`, of a sharded optimizer; megatron-core's overlap_param_gather).

All buckets are sent for when the update is done, in the order in which a forward pass uses them, and the model asks
before it uses a part (`LoopedGPT.await_weights`): the first loop of the first micro-batch waits layer by layer, the
later ones find everything there, so the number of collectives does not depend on L. On a GPU nobody waits on the host:
the stream does.
"""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


class WeightsBack:
    """The weights of a stage, some of them on their way.

    Args:
        buckets: what is gathered together: the flat weights, and the parameters that are views of them. In the order in
            which a forward pass uses them.
        group: the data-parallel ranks, each with an equal run of every bucket.
    """

    def __init__(self, buckets: Sequence[tuple[Tensor, Sequence[nn.Parameter]]], group: dist.ProcessGroup) -> None:
        self._flat, self._group = [flat for flat, _ in buckets], group
        self._bucket_of = {parameter: number for number, (_, held) in enumerate(buckets) for parameter in held}
        self._works: dict[int, Any] = {}
        self._used: dict[nn.Module, list[int]] = {}
        """Buckets of a part of the model."""

    def send(self) -> None:
        """Send for all. Collective."""
        self.wait()
        for number, flat in enumerate(self._flat):
            own = flat.chunk(self._group.size())[self._group.rank()]
            self._works[number] = dist.all_gather_into_tensor(flat, own, group=self._group, async_op=True)

    def wait(self, *parts: nn.Module | None) -> None:
        """Until the weights of these parts of the model are there; of all of it by default."""
        if not self._works:
            return
        for number in sorted({number for part in parts for number in self._of(part)}) if parts else list(self._works):
            if (work := self._works.pop(number, None)) is not None:
                work.wait()

    def _of(self, part: nn.Module | None) -> list[int]:
        if part is None:
            return []
        if part not in self._used:
            self._used[part] = sorted({self._bucket_of[parameter] for parameter in part.parameters()})
        return self._used[part]
