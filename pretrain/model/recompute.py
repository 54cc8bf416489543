"""A part of the forward pass of which only what enters is kept: its backward pass runs it again first.

Unlike `torch.utils.checkpoint`, which computes a layer or a loop again within the backward pass of one graph, this one
has a backward pass of its own, so the part may hold others that are computed again, and parts that add gradients of
shared weights to fp32 buffers one by one (`pretrain/parallel/apart.py`). Source: Chen et al. 2016 (arXiv 1604.06174),
section 4: of n steps, what enters every √n-th, then what enters each of √n.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pretrain.model.kept_keys import KeptKeys

RunPasses = Callable[[Tensor, Tensor | None], Tensor]
"""Some passes over the block: states [t, d], and what is carried into each -> states [t, d]."""


def recomputed(run: RunPasses, kept: KeptKeys | None, states: Tensor, carried: Tensor | None) -> Tensor:
    """`run(states, carried)`, of which no more is kept than these; and, in `kept`, keys and values that other passes
    attend to."""
    return _Recomputed.apply(run, kept, states, carried)  # type: ignore[no-any-return]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: RunPasses, kept: KeptKeys | None, states: Tensor, carried: Tensor | None) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(states, carried)
        with nullcontext() if kept is None else kept.to_come_again():
            return run(states.detach(), None if carried is None else carried.detach()).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:  # type: ignore[override]
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        inputs = [each if each is None else each.detach().requires_grad_(is_wanted) for each, is_wanted in wanted]
        with torch.enable_grad():
            output = ctx.run(*inputs)
        torch.autograd.backward(output, gradient)
        of_states, of_carried = (each if each is None else each.grad for each in inputs)
        return None, None, of_states, of_carried
