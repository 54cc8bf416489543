"""The training loss: negative log-likelihood of the next token, with an optional z-loss, summed over supervised tokens.

Sums, not means: the caller divides by the number of supervised tokens of the *global* batch, so that the loss and its
gradients do not depend on how the batch is cut into ranks and micro-batches.
"""

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels.head_loss import head_loss


def loss_sums(model: LoopedGPT, states: Tensor, labels: Tensor, z_loss_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Loss of final states.

    Args:
        model: the model, or its last pipeline stage.
        states: [t, d] states after the final norm (under sequence parallelism the rows of this rank).
        labels: [b, s] next tokens; -100 is not supervised.
        z_loss_weight: weight of logsumexp(logits)² (PaLM, Chowdhery et al. 2022, section 5).

    Returns:
        The sum to differentiate and the plain negative log-likelihood in it (detached), both scalars over supervised
        tokens.
    """
    flat = labels.reshape(-1)
    token_losses = model.ops.token_losses
    if token_losses is None:
        return head_loss(states, model.get_parameter("head.weight"), flat, z_loss_weight)
    losses, normaliser = token_losses(model.logits(states), flat)
    total = losses.sum()
    nll = total.detach()
    if z_loss_weight:
        total = total + z_loss_weight * torch.where(flat >= 0, normaliser.square(), 0.0).sum()
    return total, nll
