"""Weights of linear layers in the order in which oneDNN's kernels read them.

Generation multiplies few rows by large matrices. The ordinary product brings the matrix into the kernel's order anew
each time, which on a CPU takes longer than the product itself; packed once, it is read as it lies. A packed copy takes
the memory of the matrix again, and is a copy: weights must not change while it is there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pretrain.model.gpt import LoopedGPT
from pretrain.model.parallel_ops import Linear

WORTH_PACKING = 64
"""New tokens from which on packing is repaid."""


@contextmanager
def packed_weights(model: LoopedGPT, num_new: int = WORTH_PACKING) -> Iterator[None]:
    """While open, the linear layers of a model on a CPU compute with packed weights, if as many new tokens as are
    generated meanwhile repay it. The first to open it packs."""
    modules = model.modules() if num_new >= WORTH_PACKING else ()
    layers = [layer for layer in modules if isinstance(layer, Linear) and _can_pack(layer)]
    with torch.no_grad():
        for layer in layers:
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
    try:
        yield
    finally:
        for layer in layers:
            layer.packed = None


def _can_pack(layer: Linear) -> bool:
    weight = layer.weight
    if layer.packed is not None or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bf16)
