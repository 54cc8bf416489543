"""The feed-forward half of a layer, and its activations.

Legend as in `layers.py`: t tokens, d hidden width, f feed-forward width held; states are [t, d].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.model.config import ModelSection
from pretrain.model.loop.per_loop.this import InThisLoop
from pretrain.model.parallel_ops import ParallelOps
from pretrain.model.weight_kinds import Weights, under


def swiglu(up: Tensor, gate: Tensor | None) -> Tensor:
    """Shazeer 2020 (arXiv 2002.05202)."""
    assert gate is not None
    return F.silu(gate) * up


def gelu(up: Tensor, _gate: Tensor | None) -> Tensor:
    """In its tanh form (Hendrycks and Gimpel 2016), without a gate."""
    return F.gelu(up, approximate="tanh")


ACTIVATIONS = {"swiglu": swiglu, "gelu": gelu}


class FeedForward(nn.Module):
    """down(activation(up, gate)); the gate is there if the activation has one. With `is_selective` the activation is
    computed again in the backward pass, from what the products gave: half of what the layer would keep here."""

    def __init__(self, config: ModelSection, ops: ParallelOps, weights: Weights, is_selective: bool = False) -> None:
        super().__init__()
        self.is_selective = is_selective
        self.to_split, self.activation = ops.to_split, ACTIVATIONS[config.activation]
        gate = under(weights, "gate")
        self.gate = ops.linear(gate) if gate else None
        self.up, self.down = (ops.linear(under(weights, name)) for name in ("up", "down"))

    def forward(self, states: Tensor, this: InThisLoop) -> Tensor:
        states = self.to_split(states)
        gate = None if self.gate is None else this.linear("ffn.gate", states, self.gate(states))
        up = this.linear("ffn.up", states, self.up(states))

        def end(up: Tensor, gate: Tensor | None) -> Tensor:
            inner = self.activation(up, gate)
            return this.linear("ffn.down", inner, self.down(inner))

        if self.is_selective and torch.is_grad_enabled():  # again up to what the last product reads, without it
            return checkpoint(end, up, gate, use_reentrant=False, preserve_rng_state=False)
        return end(up, gate)
