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
    """int64 [b, s]; what stands at padding is not looked at, at latent slots only by Jacobi passes
    (`finetune/latent/jacobi.py`)."""
    labels: Tensor
    """int64 [b, s]: the token to predict after each position, -100 for none."""
    supervised: Tensor
    """int64 [n]: where the flattened labels hold a token. Known when the batch is made, so that no kernel waits to
    count them."""
    first_token: Tensor
    """int64 [b]: positions of padding before each row."""
    is_latent: Tensor
    """bool [b, s]: the latent slots; in a row they follow each other from `first_slot` on."""
    first_slot: int
    """Where the slots of all rows begin; at least one position is before it."""
    answer: Tensor | None = None
    """int64 [b]: the position that predicts the first token of the answer, after its mark; -1 for none. Read by
    self-distillation."""

    def to(self, device: torch.device) -> "LatentBatch":
        """The batch on a device; the copies need not have ended."""
        tensors = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def text_loss(self, model: LoopedGPT, states: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood from the final states [b, s, d], summed over supervised tokens; the second has no
        gradient."""
        chosen = states.flatten(0, 1).index_select(0, self.supervised)
        return loss_sums(model, chosen, self.labels.flatten()[self.supervised])


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass of this rank."""

    batch: LatentBatch
    num_slots: int
    """Most latent slots of a row of any rank at the same turn."""
    teacher: LatentBatch | None
    """The same examples with their chain in text, where thoughts learn from it (CODI)."""

    def to(self, device: torch.device) -> "MicroBatch":
        """The rows on a device; the copies need not have ended."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        return replace(self, batch=self.batch.to(device), teacher=teacher)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Everything one optimizer step needs, on this rank."""

    micro_batches: tuple[MicroBatch, ...]
    num_examples: int
    """Examples of all ranks; the following count over all ranks too."""
    num_targets: int
    """Supervised tokens."""
    num_teacher_targets: int
    """Supervised tokens of the teacher's rows."""
    num_thoughts: int
    """Latent slots."""
    num_tokens: int
    """Positions that are no padding."""
