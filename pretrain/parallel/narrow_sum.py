"""The sum of gradients over data-parallel ranks, sent in bf16 and added in fp32 (`parallel.reduce_precision=bf16`).

Each rank rounds its fp32 sums over micro-batches and loops once, sends every other rank the part that it updates, and
adds what it gets in fp32, always in one order: two bytes a gradient on the wire where a reduce-scatter in fp32
has four, and each gradient rounded once, not at every hop of a ring. That is what megatron-core calls
reduce_scatter_with_fp32_accumulation; its buffers would have to be bf16 for it, in which L loops of M micro-batches add
up badly. It costs two bf16 copies of a bucket while that is on its way.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class NarrowSum:
    """A bucket on its way. Collective, as is `finish`.

    Args:
        gradients: fp32 [n · ranks] of the bucket; afterwards those of this rank's part are the sums.
        group: the data-parallel ranks.
        is_awaited: whether what is sent is waited for at once.
    """

    def __init__(self, gradients: Tensor, group: dist.ProcessGroup, *, is_awaited: bool) -> None:
        self._own, self._num_ranks = gradients.chunk(group.size())[group.rank()], group.size()
        self._sent = gradients.to(torch.bfloat16)
        self._received = torch.empty_like(self._sent)
        self._work: Any = dist.all_to_all_single(self._received, self._sent, group=group, async_op=not is_awaited)

    def finish(self) -> None:
        """Wait for the others' parts and add them."""
        if self._work is not None:
            self._work.wait()
        torch.sum(self._received.view(self._num_ranks, -1), dim=0, dtype=torch.float32, out=self._own)
