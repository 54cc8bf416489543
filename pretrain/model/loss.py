"""The training loss: negative log-likelihood of the next token, with an optional z-loss, summed over supervised tokens.

Sums, not means: the caller divides by the number of supervised tokens of the *global* batch, so that the loss and its
gradients do not depend on how the batch is cut into ranks and micro-batches.
"""

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels.head_loss import head_loss


def loss_sums(
    model: LoopedGPT,
    states: Tensor,
    labels: Tensor,
    z_loss_weight: float = 0.0,
    of_tokens: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of final states.

    Args:
        model: the model, or its last pipeline stage.
        states: [t, d] states after the final norm (under sequence parallelism the rows of this rank).
        labels: [b, s] next tokens; -100 is not supervised.
        z_loss_weight: weight of logsumexp(logits)² (PaLM, Chowdhery et al. 2022, section 5).
        of_tokens: [b, s], filled with the negative log-likelihood of each token, 0 of one that is not supervised.

        weights: [t] of the tokens in what is differentiated; all 1 by default.

    Returns:
        The sum to differentiate and the negative log-likelihood, unweighted and without the z-loss (detached), both
        scalars over supervised tokens.
    """
    flat = labels.reshape(-1)
    token_losses = model.ops.token_losses
    if token_losses is None:
        filled = None if of_tokens is None else of_tokens.view(-1)
        return head_loss(states, model.get_parameter("head.weight"), flat, z_loss_weight, filled, weights)
    losses, normaliser = token_losses(model.logits(states), flat)
    if of_tokens is not None:
        of_tokens.copy_(losses.detach().view_as(of_tokens))
    total = losses.sum()
    nll = total.detach()
    if weights is not None:
        total = (weights * losses).sum()
    if z_loss_weight:
        squares = torch.where(flat >= 0, normaliser.square(), 0.0)
        total = total + z_loss_weight * (squares if weights is None else weights * squares).sum()
    return total, nll
