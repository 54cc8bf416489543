"""A loss of every loop, not of the last one alone: the states after a loop go through coda, norm and head as if it were
the last.

    every       Σ_loops w nll                                       deep supervision (Lee et al. 2015, arXiv 1409.5185)
    expected    Σ_tokens (Σ_loops p nll + β KL(p ‖ prior))          p: where the gate lets each token stop
                                                                    (`pretrain/model/exits.py`)
    consistent  nll of the last + w nll of a short run              LoopFormer (Jeddi et al. 2026, arXiv 2602.11451),
                + c mean (x_short - x_last)²                        with w = c = 0.1; x: final states, that of the last
                                                                    counts as given

The loss of an earlier loop is computed and differentiated at once, where its states are made: the gradients of coda and
head are added to those of the step, that of the states waits until the backward pass comes by. So of an earlier loop no
more is kept than a gradient [t, d], never its logits, and on a pipeline the last stage does it chunk by chunk, without
a message. p of a loop follows from the gate so far, so it is there when the loss of the loop is weighted by it; what
all losses tell the gate is there with that of the last, before any loop's backward pass. Cost: coda and head, forward
and backward, once a loop.

LoopFormer runs its short trajectory apart, with steps of another size. Here the short run is the first loops of the
same pass, as in the variant without step sizes of its published code (armenjeddi/loopformer, `train.py`), so it costs
coda and head once more, and no loop. What draws its final state to that of the last is known with the latter, so norm
and coda of the short run wait for that before they run backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.model.exits import expected_loss, log_exit_probabilities
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import Context
from pretrain.model.loss import loss_sums


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """The first loops of a step, as a run of their own."""

    last_loop: int
    """From 0."""
    weight: float
    """Of its loss."""
    consistency_weight: float
    """Of the mean square of the difference of its final states from those of the last loop."""


@dataclass(frozen=True, kw_only=True)
class LoopObjective:
    """What a step minimises: the same for all of its micro-batches."""

    weights: Sequence[float]
    """Of the loss of each loop of the step."""
    num_supervised: Tensor
    """Supervised tokens of the global batch; sums are divided by it."""
    z_loss_weight: float
    """As of `loss_sums`, in every loop; the gate does not see it."""
    is_expected: bool = False
    """Whether the gate of the model weighs the loops instead."""
    log_prior: Sequence[float] = ()
    """Log-probability of each loop, to which the gate is drawn."""
    prior_weight: float = 0.0
    """β."""
    short: ShortRun | None = None
    """A short run beside the last loop; then no other loop has a loss."""


class LoopLosses:
    """The losses of the loops of one micro-batch, on the last stage: `after_loop` for each but the last, then `last`.

    Args:
        model: the model, or its last stage.
        objective: of the step.
        labels: [b, s] next tokens; -100 is not supervised.
    """

    def __init__(self, model: LoopedGPT, objective: LoopObjective, labels: Tensor) -> None:
        self.model, self.objective, self.labels = model, objective, labels
        self._log_odds: list[Tensor] = []  # of the gate after each loop so far, [t]
        self._losses: list[Tensor] = []  # of the tokens after each, [t]
        self._states: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._waiting: _Waiting | None = None
        self.value: Tensor | float = 0.0
        """Sum over supervised tokens of what is minimised, without the z-loss, so far."""

    def after_loop(self, states: Tensor, context: Context, loop: int) -> Tensor:
        """The same states [t, d], whose gradient will hold that of the loss of this loop."""
        if not self.model.stage.is_last:
            return states
        if self.objective.short is not None:
            return self._after_short(states, context) if loop == self.objective.short.last_loop else states
        inner = states.detach().requires_grad_()
        if self.objective.is_expected:
            odds = self.model.exit_log_odds(states.detach()).detach()
            self._log_odds.append(self.model.ops.to_split(odds[:, None])[:, 0])
            self._states.append(states.detach())
        with torch.enable_grad():
            total, _ = self._loss(self.model.finish(inner, context, loop + 1), loop)
            (total / self.objective.num_supervised).backward()
        assert inner.grad is not None
        if self.objective.is_expected:
            self._gradients.append(inner.grad)
        return _AddGradient.apply(states, inner.grad)  # type: ignore[no-any-return]

    def last(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """Of the last loop, from the states [t, d] after the final norm: the sum to differentiate, and its negative
        log-likelihood without a weight, both over supervised tokens."""
        total, nll = self._loss(final, len(self.objective.weights) - 1)
        if self.objective.is_expected:
            self._teach_gate()
        if self._waiting is not None:
            self._draw_together(final.detach())
        return total, nll

    def _after_short(self, states: Tensor, context: Context) -> Tensor:
        """The same states [t, d], whose gradient will hold what the short run adds."""
        short = self.objective.short
        assert short is not None
        inner = states.detach().requires_grad_()
        with torch.enable_grad():
            final = self.model.finish(inner, context, short.last_loop + 1)
            leaf = final.detach().requires_grad_()
            total, nll = loss_sums(self.model, leaf, self.labels, self.objective.z_loss_weight)
            (short.weight * total / self.objective.num_supervised).backward()
        assert leaf.grad is not None
        self.value = self.value + short.weight * nll
        self._waiting = _Waiting(inner, final, leaf.grad, torch.empty_like(inner))
        return _AddGradient.apply(states, self._waiting.gradient)  # type: ignore[no-any-return]

    def _draw_together(self, last: Tensor) -> None:
        """The backward pass of the short run down to its states, once the last final states [t, d] are there."""
        objective, ops = self.objective, self.model.ops
        assert self._waiting is not None and objective.short is not None
        inner, final, slope, gradient = self._waiting
        weight, self._waiting = objective.short.consistency_weight, None
        supervised = ops.scatter((self.labels.flatten() >= 0).to(last.dtype)[:, None])
        difference = supervised * (final.detach() - last)
        slope = slope + 2 * weight / last.shape[-1] / objective.num_supervised * difference
        final.backward(slope.to(final.dtype))
        assert inner.grad is not None
        gradient.copy_(inner.grad)
        wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
        self.value = self.value + weight * ops.to_split(wide.square().mean(-1, keepdim=True)).sum()

    def _loss(self, final: Tensor, loop: int) -> tuple[Tensor, Tensor]:
        if self.objective.is_expected:
            return self._expected_loss(final, loop)
        weight = self.objective.weights[loop]
        total, nll = loss_sums(self.model, final, self.labels, self.objective.z_loss_weight)
        self.value = self.value + weight * nll
        return weight * total, nll

    def _expected_loss(self, final: Tensor, loop: int) -> tuple[Tensor, Tensor]:
        """Of one loop, each token weighted by its probability to stop there; keeps the losses for the gate."""
        is_last = loop == len(self.objective.weights) - 1
        wide = torch.promote_types(final.dtype, torch.float32)
        of_tokens = torch.zeros(self.labels.shape, dtype=wide, device=final.device)
        weights = torch.ones(self.labels.numel(), dtype=wide, device=final.device)
        if self._log_odds:
            weights = log_exit_probabilities(torch.stack(self._log_odds))[loop if not is_last else -1].exp()
        sums = loss_sums(self.model, final, self.labels, self.objective.z_loss_weight, of_tokens, weights)
        self._losses.append(of_tokens.flatten())
        return sums

    def _teach_gate(self) -> None:
        """The gradients of the gate, and through it of the states that it looked at."""
        objective, supervised = self.objective, self.labels.flatten() >= 0
        losses = torch.stack(self._losses)
        if not self._log_odds:
            self.value = losses.sum()
            return
        with torch.enable_grad():
            log_odds = torch.stack(self._log_odds).requires_grad_()
            of_tokens = expected_loss(log_odds, losses, objective.log_prior, objective.prior_weight)
            value = torch.where(supervised, of_tokens, 0.0).sum()
            (gradients,) = torch.autograd.grad(value / objective.num_supervised, log_odds)
            for states, gradient, of_states in zip(self._states, gradients, self._gradients, strict=True):
                inner = states.requires_grad_()
                self.model.exit_log_odds(inner).backward(self.model.ops.scatter(gradient[:, None])[:, 0])
                assert inner.grad is not None
                of_states += inner.grad
        self.value = value.detach()
        for kept in (self._log_odds, self._losses, self._states, self._gradients):
            kept.clear()


class _Waiting(NamedTuple):
    """A short run whose norm and coda have not run backward."""

    states: Tensor
    """[t, d] with which they began."""
    final: Tensor
    """[t, d] what they made of them."""
    slope: Tensor
    """[t, d] gradient of its own loss in the latter."""
    gradient: Tensor
    """[t, d] to be filled: of all that the short run adds, in the former."""


class _AddGradient(torch.autograd.Function):
    """Identity; backward adds a gradient that is there already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient  # not saved as others are: the gate adds to it later
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradients[0] + ctx.gradient, None
