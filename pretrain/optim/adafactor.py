"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) as T5 was trained with it.

For a matrix W [n, m] with gradient G, at its t-th update and at the learning rate of the schedule:

1. With b = 1 - t^-0.8 and S = G² + 1e-30: row means R = b R + (1 - b) mean_m(S), column means C = b C + (1 - b)
   mean_n(S).
2. U = G / sqrt(R C / mean(R)). Of a vector: V = b V + (1 - b) S and U = G / sqrt(V).
3. U = U / max(1, RMS(U)): clipping at 1.
4. W = (1 - lr weight_decay) W - lr max(1e-3, RMS(W)) U, with RMS(W) from before.

torch.optim.Adafactor is not this one: it applies min(lr, 1 / sqrt(t)), and its smallest variance of 1.2e-7 squared is
above the squared gradients of a large model, which then are not normalised; with 1e-30 instead, it divides 0 by 0 where
a row has had no gradient. The names of the state are torch's, so that its checkpoints go on.

A matrix costs n + m numbers of state and two temporaries of its size. No number is read back from the device.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pretrain.optim.optimizers import factored

SMALLEST_SQUARE = 1e-30
"""Added to squared gradients (epsilon 1 of the paper)."""
SMALLEST_RMS = 1e-3
"""RMS that a weight is taken to have at least (epsilon 2)."""
DECAY_EXPONENT = 0.8
LARGEST_RMS = 1.0
"""RMS to which an update is clipped (d)."""


class ScheduledAdafactor(torch.optim.Optimizer):
    """Adafactor at the learning rate that it is given; groups have `lr` and `weight_decay`."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["weight_decay"])

    def _update(self, weight: Tensor, lr: float, weight_decay: float) -> None:
        grad, state = weight.grad, self.state[weight]
        assert grad is not None
        if not state:
            state |= {name: grad.new_zeros(shape) for name, shape in factored(tuple(grad.shape)).items()}
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        share = state["step"].item() ** -DECAY_EXPONENT
        size = _rms(weight).clamp_(min=SMALLEST_RMS)
        if weight_decay:
            weight.mul_(1 - lr * weight_decay)
        if grad.dim() > 1:
            rows, columns = state["row_var"], state["col_var"]
            rows.lerp_(_mean_square(grad, dim=-1), share)
            columns.lerp_(_mean_square(grad, dim=-2), share)
            # two roots, since the product of two small variances is below the smallest fp32 number
            update = grad * (rows / rows.mean(dim=-2, keepdim=True)).rsqrt_() * columns.rsqrt()
        else:
            state["variance"].lerp_(grad.square().add_(SMALLEST_SQUARE), share)
            update = grad * state["variance"].rsqrt()
        weight.sub_(update.mul_(lr * size / (_rms(update) / LARGEST_RMS).clamp_(min=1.0)))


def _rms(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5


def _mean_square(gradient: Tensor, dim: int) -> Tensor:
    """Mean of the squares along a dimension, which is kept, without a tensor of squares."""
    norm = torch.linalg.vector_norm(gradient, dim=dim, keepdim=True)
    return norm.square_().div_(gradient.shape[dim]).add_(SMALLEST_SQUARE)
