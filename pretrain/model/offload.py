"""What backward passes need waits in the memory of the host.

Both copies are ordered with the work of the device's stream, and pinned blocks are not reused before they are through,
so nobody waits for the device. On a CPU, whose memory is the host's, tensors stay where they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, pinned."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """What was copied, on its device again."""
    return host.to(device, non_blocking=True)


@contextmanager
def on_host() -> Iterator[None]:
    """What autograd saves within waits on the host."""
    with saved_tensors_hooks(lambda tensor: (to_host(tensor), tensor.device), lambda saved: to_device(*saved)):
        yield
