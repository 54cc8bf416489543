"""What a step trains on: rows of text and latent slots as tensors, in micro-batches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.loss import loss_sums


@dataclass(frozen=True, kw_only=True)
class LatentBatch:
    """Rows of one length, b of s positions."""

    tokens: Tensor
    """int64 [b, s]; padding is ignored, and latent slots too except by `finetune/latent/jacobi.py`."""
    labels: Tensor
    """int64 [b, s]: the token to predict after each position, IGNORED for none."""
    supervised: Tensor
    """int64 [n]: indices of the flattened labels that hold a token; finding them on a GPU would wait for it."""
    first_token: Tensor
    """int64 [b]: positions of padding before each row."""
    is_latent: Tensor
    """bool [b, s]: the latent slots, in a row consecutive from `first_slot` on."""
    first_slot: int
    """Where the slots of all rows begin, at least 1."""
    answer: Tensor | None = None
    """int64 [b]: the position that predicts the first token of the answer, after its mark; -1 for none. Needed by
    self-distillation."""

    def to(self, device: torch.device) -> "LatentBatch":
        """The batch on a device, copied asynchronously."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def text_loss(self, model: LoopedGPT, states: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the supervised tokens from final states [b, s, d], summed; with and without
        gradient."""
        chosen = states.flatten(0, 1).index_select(0, self.supervised)
        return loss_sums(model, chosen, self.labels.flatten()[self.supervised])


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass of this rank."""

    batch: LatentBatch
    num_slots: int
    """Most latent slots of a row in the micro-batches that the ranks run side by side."""
    teacher: LatentBatch | None
    """The same examples with their chain in text, for self-distillation (CODI)."""

    def to(self, device: torch.device) -> "MicroBatch":
        teacher = None if self.teacher is None else self.teacher.to(device)
        return replace(self, batch=self.batch.to(device), teacher=teacher)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One optimizer step: the micro-batches of this rank, and counts over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    num_examples: int
    num_targets: int
    """Supervised tokens, the teacher's not counted."""
    num_teacher_targets: int
    """Supervised tokens of the teacher's rows."""
    num_thoughts: int
    """Latent slots."""
    num_tokens: int
    """Positions without padding."""
