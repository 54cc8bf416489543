"""Keys and values that later loops attend to (`pretrain/model/loop/keys.py`), within one micro-batch, where there is no
cache. Each pipeline stage keeps those of its own part of the block: nothing is sent.

Where all loops are one graph, later loops use the very tensors. Where each loop has a backward pass of its own, the
later loops' first (the chunks of the ring, the parts of `Apart`, segments that `recompute.py` runs again), they use
detached copies: gradients collect there and join those of the original when the loop that computed it runs backward,
which also lets the copies go. A layer that is computed again for its backward pass finds what it kept the first time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class KeysValues(NamedTuple):
    """Of one application of a layer, [b, g, s, e] each."""

    keys: Tensor
    values: Tensor


class KeptKeys:
    """Args:
    block_size: layers of a pass through the whole block.
    is_apart: each loop has a backward pass of its own.
    """

    def __init__(self, block_size: int, *, is_apart: bool = False) -> None:
        self._block_size, self._is_apart = block_size, is_apart
        self._kept: dict[int, KeysValues] = {}
        self._comes_again = False

    @contextmanager
    def to_come_again(self) -> Iterator[None]:
        """Loops that run within, without gradient, will run again with it: what they keep is for then."""
        self._comes_again = True
        try:
            yield
        finally:
            self._comes_again = False

    def keep(self, number: int, computed: KeysValues) -> KeysValues:
        """Keep what application `number` of a layer has computed; returns it as that application itself uses it."""
        computed = KeysValues(*(each.contiguous() for each in computed))  # else a kernel copies them in each loop
        if not (torch.is_grad_enabled() or self._comes_again):  # nobody comes back to the loops before
            for earlier in [other for other in self._kept if (number - other) % self._block_size == 0]:
                del self._kept[earlier]
        if not (self._is_apart and (computed.keys.requires_grad or self._comes_again)):
            self._kept.setdefault(number, computed)
            return computed
        if number not in self._kept:
            self._kept[number] = KeysValues(*(each.detach().requires_grad_() for each in computed))
        if not torch.is_grad_enabled():
            return computed
        return KeysValues(*_JoinGradients.apply(*computed, self._kept, number))  # type: ignore[misc]

    def read(self, number: int, num_rows: int) -> KeysValues:
        """What application `number` has kept, of the first rows."""
        kept = self._kept[number]
        return kept if len(kept.keys) == num_rows else KeysValues(kept.keys[:num_rows], kept.values[:num_rows])


@cache
def leave_out_of_graphs() -> None:
    """Where layers are compiled: what keeps and reads keys stays as it is, else a layer is compiled for each number of
    an application. Loads the compiler."""
    for name in ("keep", "read"):
        setattr(KeptKeys, name, torch.compiler.disable(getattr(KeptKeys, name)))


class _JoinGradients(torch.autograd.Function):
    """Identity of keys and values; backward adds the gradients that their copies have collected, and lets them go."""

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, values: Tensor, kept: dict[int, KeysValues], number: int
    ) -> tuple[Tensor, Tensor]:
        ctx.kept, ctx.number = kept, number
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        copies = ctx.kept.pop(ctx.number)
        keys, values = (
            ours if copy.grad is None else ours + copy.grad for ours, copy in zip(gradients, copies, strict=True)
        )
        return keys, values, None, None
