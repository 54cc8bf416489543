"""After which loop a token stops, as a distribution: stopping after loop t of L has the probability

    p_t = λ_t Π_{j<t} (1 - λ_j) for t < L,    p_L = Π_{j<L} (1 - λ_j)

with λ_t what the gate of the model makes of the state after loop t (`pretrain/model/loop/exit/gate.py`). And what of it
training adds to the loss. Source: Ouro (Zhu et al. 2025, arXiv 2510.25741), section 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def log_exit_probabilities(log_odds: Tensor) -> Tensor:
    """log p_t of every loop: [L - 1, t] log-odds of the gate after each loop but the last -> [L, t]."""
    rest = F.logsigmoid(-log_odds).cumsum(0)  # log of what is left after each loop
    start = log_odds.new_zeros(1, *log_odds.shape[1:])
    return torch.cat((F.logsigmoid(log_odds), start)) + torch.cat((start, rest))


def expected_loss(log_odds: Tensor, losses: Tensor, log_prior: Sequence[float], prior_weight: float) -> Tensor:
    """Σ_t p_t loss_t + β KL(p ‖ prior) of each token.

    Args:
        log_odds: [L - 1, t].
        losses: [L, t] negative log-likelihood after each loop.
        log_prior: log-probabilities of the loops.
        prior_weight: β. With a uniform prior the KL is log L less the entropy of p.

    Returns:
        [t].
    """
    log_p = log_exit_probabilities(log_odds)
    away = log_p - torch.tensor(log_prior, dtype=log_p.dtype, device=log_p.device)[:, None]
    return (log_p.exp() * (losses + prior_weight * away)).sum(0)
