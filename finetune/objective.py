"""What fine-tuning minimises, as one module, so that DeepSpeed sees every weight used inside a forward of its own.

The loss of a step is the negative log-likelihood of its supervised tokens, summed and divided by their number over all ranks; with a stop
classifier also the mean binary cross-entropy of "this thought was the last one" over all thoughts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import MethodSection
from finetune.latent import LatentBatch, latent_states
from finetune.sampler import MicroBatch, StepBatch
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loss import loss_sums


class Objective(nn.Module):
    """The model, and the stop classifier if there is one.

    Args:
        model: whole, or its tensor-parallel part.
        method: what is trained.
    """

    def __init__(self, model: LoopedGPT, method: MethodSection) -> None:
        super().__init__()
        self.model, self._method = model, method
        self.stop = None
        if method.stop == "classifier":
            parameter = next(model.parameters())
            self.stop = nn.Linear(model.config.hidden_size, 1).to(parameter.device, parameter.dtype)
            nn.init.zeros_(self.stop.weight)  # at first every thought is as likely to be the last as not, on all ranks
            nn.init.zeros_(self.stop.bias)

    def forward(self, micro_batch: MicroBatch, step: StepBatch) -> tuple[Tensor, Tensor]:
        """The share of one micro-batch in the loss of its step, and in its negative log-likelihood (summed, in nats)."""
        batch = micro_batch.batch
        states = latent_states(self.model, batch, micro_batch.num_slots).flatten(0, 1)
        nll, plain = loss_sums(self.model, states[batch.supervised], batch.labels.flatten()[batch.supervised])
        loss = nll / step.num_targets
        if self.stop is not None and micro_batch.num_slots:
            loss = loss + self._method.stop_weight * self._stop_loss(states, batch) / max(step.num_thoughts, 1)
        return loss, plain

    def _stop_loss(self, states: Tensor, batch: LatentBatch) -> Tensor:
        """Binary cross-entropy, summed over the thoughts of a batch: [b·s, d] states -> scalar."""
        assert self.stop is not None
        goes_on = torch.zeros_like(batch.is_latent)
        goes_on[:, :-1] = batch.is_latent[:, 1:]
        logits = self.stop(states).float().view_as(batch.is_latent)
        losses = F.binary_cross_entropy_with_logits(logits, (~goes_on).to(logits.dtype), reduction="none")
        return (losses * batch.is_latent).sum()
