"""What fine-tuning minimises, as one module, so that DeepSpeed sees every weight used inside a forward of its own.

The loss of a step is the negative log-likelihood of its supervised tokens, summed and divided by their number over all
ranks; with a stop classifier also the mean binary cross-entropy of "this thought was the last one" over all thoughts;
with self-distillation also the teacher's negative log-likelihood and the distance of its states
(`finetune/latent/distillation.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.config import MethodSection
from finetune.examples.sampler import MicroBatch, StepBatch
from finetune.latent.distillation import distillation_loss, watch_layers
from finetune.latent.forward import LatentBatch, latent_states
from finetune.latent.jacobi import jacobi_states
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
        """The share of a micro-batch in the loss of its step, and in its negative log-likelihood (summed, in nats)."""
        batch, teacher = micro_batch.batch, micro_batch.teacher
        if teacher is None:
            states = self._states(batch, micro_batch.num_slots)
            nll, plain = self._nll(states, batch)
            loss = nll / step.num_targets
        else:
            assert batch.answer is not None and teacher.answer is not None
            with watch_layers(self.model, batch.answer) as ours:
                states = self._states(batch, micro_batch.num_slots)
            with watch_layers(self.model, teacher.answer) as theirs:
                teacher_states = latent_states(self.model, teacher, 0).flatten(0, 1)
            nll, plain = self._nll(states, batch)
            distance = distillation_loss(ours, theirs, batch.answer)
            loss = nll / step.num_targets + self._nll(teacher_states, teacher)[0] / step.num_teacher_targets
            loss = loss + self._method.distillation_weight * distance / step.num_examples
        if self.stop is not None and micro_batch.num_slots:
            loss = loss + self._method.stop_weight * self._stop_loss(states, batch) / max(step.num_thoughts, 1)
        return loss, plain

    def _states(self, batch: LatentBatch, num_slots: int) -> Tensor:
        """Final states [b·s, d]."""
        num_passes = self._method.jacobi_passes
        if num_passes is None:
            return latent_states(self.model, batch, num_slots).flatten(0, 1)
        return jacobi_states(self.model, batch, num_slots, num_passes).flatten(0, 1)

    def _nll(self, states: Tensor, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood, summed over supervised tokens; the second has no gradient."""
        return loss_sums(self.model, states.index_select(0, batch.supervised), batch.labels.flatten()[batch.supervised])

    def _stop_loss(self, states: Tensor, batch: LatentBatch) -> Tensor:
        """Binary cross-entropy, summed over the thoughts of a batch: [b·s, d] states -> scalar."""
        assert self.stop is not None
        goes_on = torch.zeros_like(batch.is_latent)
        goes_on[:, :-1] = batch.is_latent[:, 1:]
        logits = self.stop(states).float().view_as(batch.is_latent)
        losses = F.binary_cross_entropy_with_logits(logits, (~goes_on).to(logits.dtype), reduction="none")
        return (losses * batch.is_latent).sum()
