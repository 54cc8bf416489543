"""A loss of every loop, not of the last one alone: the states after a loop go through coda, norm and head as if it were
the last (deep supervision, Lee et al. 2015, arXiv 1409.5185).

The loss of an earlier loop is computed and differentiated at once, where its states are made: the gradients of coda and
head are added to those of the step, that of the states waits until the backward pass comes by. So of an earlier loop no
more is kept than a gradient [t, d], never its logits, and on a pipeline the last stage does it chunk by chunk, without
a message. Cost: coda and head, forward and backward, once a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Context
from pretrain.model.loss import loss_sums


@dataclass(frozen=True, kw_only=True)
class LoopObjective:
    """What a step minimises: the same for all of its micro-batches."""

    weights: Sequence[float]
    """Of the loss of each loop of the step."""
    num_supervised: Tensor
    """Supervised tokens of the global batch; sums are divided by it."""
    z_loss_weight: float
    """As of `loss_sums`, in every loop."""


class LoopLosses:
    """The losses of the loops of one micro-batch, on the last stage: `after_loop` for each but the last, then `last`.

    Args:
        model: the model, or its last stage.
        objective: of the step.
        labels: [b, s] next tokens; -100 is not supervised.
    """

    def __init__(self, model: LoopedGPT, objective: LoopObjective, labels: Tensor) -> None:
        self.model, self.objective, self.labels = model, objective, labels
        self.value: Tensor | float = 0.0
        """Sum over supervised tokens of what is minimised, without the z-loss, so far."""

    def after_loop(self, states: Tensor, context: Context, loop: int) -> Tensor:
        """The same states [t, d], whose gradient will hold that of the loss of this loop."""
        if not self.model.stage.is_last:
            return states
        inner = states.detach().requires_grad_()
        with torch.enable_grad():
            total, _ = self._loss(self.model.finish(inner, context, loop + 1), loop)
            (total / self.objective.num_supervised).backward()
        assert inner.grad is not None
        return _AddGradient.apply(states, inner.grad)  # type: ignore[no-any-return]

    def last(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """Of the last loop, from the states [t, d] after the final norm: the sum to differentiate, and its negative
        log-likelihood without a weight, both over supervised tokens."""
        return self._loss(final, len(self.objective.weights) - 1)

    def _loss(self, final: Tensor, loop: int) -> tuple[Tensor, Tensor]:
        weight = self.objective.weights[loop]
        total, nll = loss_sums(self.model, final, self.labels, self.objective.z_loss_weight)
        self.value = self.value + weight * nll
        return weight * total, nll


class _AddGradient(torch.autograd.Function):
    """Identity; backward adds a gradient that is there already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (own,) = ctx.saved_tensors
        return gradients[0] + own, None
