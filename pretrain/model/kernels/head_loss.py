"""Output head and cross-entropy in one, in blocks of tokens: no more than a block of the logits exists at a time.

For each block: logits, softmax, losses; then at once, in the same memory, the gradient of its logits,
softmax - onehot (and that of the z-loss), and from it the gradients of states and head. The backward pass only scales
those two. Cost: the matrix products of head and loss apart, less memory traffic, and `LOSS_BLOCK_TOKENS` · v logits
instead of several copies of [t, v]. For a head that one device holds whole; the tensor-parallel path is
`ParallelOps.token_losses`.
The idea is that of Hsu et al. 2024 (Liger kernel, arXiv 2410.10989, section 3.2).
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pretrain.model.count import LOSS_BLOCK_TOKENS


def head_loss(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss_weight: float,
    of_tokens: Tensor | None = None,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of the final states, summed over supervised tokens.

    Args:
        states: [t, d], after the final norm.
        weight: [v, d], the head.
        labels: [t] next tokens; a negative one is not supervised.
        z_loss_weight: weight of logsumexp(logits)².
        of_tokens: [t], filled with the negative log-likelihood of each token.
        token_weights: [t], of the tokens in the sum to differentiate; all 1 by default.

    Returns:
        The sum to differentiate (once) and the negative log-likelihood, unweighted and without the z-loss, scalars in
        fp32 or wider.
    """
    return _HeadLoss.apply(states, weight, labels, z_loss_weight, torch.is_grad_enabled(), of_tokens, token_weights)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        states: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss_weight: float,
        with_gradients: bool,
        of_tokens: Tensor | None,
        token_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(states.dtype, torch.float32)
        total, nll = states.new_zeros((), dtype=wide), states.new_zeros((), dtype=wide)
        gradients = None
        if with_gradients:
            # sums over blocks are kept in fp32 or wider
            gradients = (torch.empty_like(states), torch.zeros_like(weight, dtype=wide))
            ctx.save_for_backward(*gradients)
        for first in range(0, states.shape[0], LOSS_BLOCK_TOKENS):
            rows = slice(first, first + LOSS_BLOCK_TOKENS)
            block = states[rows]
            weights = None if token_weights is None else token_weights[rows]
            loss = _BlockLoss(torch.mm(block, weight.t()).to(wide), labels[rows], z_loss_weight, weights)
            total += loss.total
            nll += loss.nll
            if of_tokens is not None:
                of_tokens[rows] = loss.of_tokens
            if gradients is not None:
                logit_gradient, scale = loss.logit_gradient().to(states.dtype), loss.weights.to(states.dtype)
                gradients[0][rows] = torch.mm(logit_gradient, weight).mul_(scale)
                gradients[1].add_(torch.mm(logit_gradient.t(), block * scale))
        ctx.mark_non_differentiable(nll)  # type: ignore[attr-defined]
        return total, nll

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, scale: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        state_gradient, weight_gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        return state_gradient * scale, (weight_gradient * scale).to(state_gradient.dtype), None, None, None, None, None


class _BlockLoss:
    """Losses of a block of logits [rows, v] in fp32 or wider, and then, in the same memory, their gradient.

    One exponential an entry: with p the softmax, logsumexp = max(logits) - log(max(p)), and max(p) is at least 1/v.
    """

    def __init__(self, logits: Tensor, labels: Tensor, z_loss_weight: float, weights: Tensor | None) -> None:
        supervised = (labels >= 0).to(logits.dtype).unsqueeze(-1)  # [rows, 1] of 0 and 1
        self.weights = supervised if weights is None else supervised * weights.unsqueeze(-1)
        self._targets = labels.clamp_min(0).unsqueeze(-1)
        picked, largest = logits.gather(-1, self._targets), logits.amax(-1, keepdim=True)
        self._probabilities = torch.softmax(logits, dim=-1, out=logits)
        normaliser = largest - self._probabilities.amax(-1, keepdim=True).log()
        losses = (normaliser - picked) * supervised
        self.of_tokens = losses.squeeze(-1)
        self.nll = losses.sum()
        self.total = self.nll if weights is None else (self.weights * losses).sum()
        self._slope = None
        if z_loss_weight:
            self.total = self.total + z_loss_weight * (normaliser.square() * self.weights).sum()
            self._slope = 1 + 2 * z_loss_weight * normaliser

    def logit_gradient(self) -> Tensor:
        """[rows, v]; the rows without supervision are the caller's to leave out. Uses up the block."""
        gradient = self._probabilities
        if self._slope is not None:
            gradient.mul_(self._slope)
        return gradient.scatter_add_(-1, self._targets, gradient.new_full((1, 1), -1.0).expand_as(self._targets))
