"""What a step trains on: rows of text and latent slots as tensors, in micro-batches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

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
    dropout: float = 0.0
    """Probability of dropping an element (`pretrain/model/dropout.py`)."""
    row_keys: Tensor | None = None
    """int32 [b]: of each row, for dropout."""

    def to(self, device: torch.device) -> "LatentBatch":
        """The batch on a device, copied asynchronously."""
        return replace(self, **tensors_on(device, vars(self)))

    def text_loss(self, model: LoopedGPT, states: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the supervised tokens from final states [b, s, d], summed; with and without
        gradient."""
        chosen = states.flatten(0, 1).index_select(0, self.supervised)
        return loss_sums(model, chosen, self.labels.flatten()[self.supervised])


class Added(Protocol):
    """What the term of a method reads beside the rows, such as a teacher's rows: `Objective` gives it to that term."""

    def to(self, device: torch.device) -> Self: ...


class AddedCount(NamedTuple):
    """How much of it there is in a step, over all ranks."""

    rows: int = 0
    tokens: int = 0
    """Positions without padding, of forward passes of their own."""
    targets: int = 0
    """Supervised tokens."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass of this rank."""

    batch: LatentBatch
    num_slots: int
    """Most latent slots of a row in the micro-batches that the ranks run side by side."""
    added: Added | None
    """What the method's term reads of the same examples."""

    def to(self, device: torch.device) -> "MicroBatch":
        return replace(self, batch=self.batch.to(device), added=self.added and self.added.to(device))


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One optimizer step: the micro-batches of this rank, and counts over all ranks."""

    micro_batches: tuple[MicroBatch, ...]
    num_examples: int
    num_targets: int
    """Supervised tokens of the rows."""
    num_thoughts: int
    """Latent slots."""
    num_tokens: int
    """Positions of the rows without padding."""
    num_tried: int
    """Positions of further passes, whose keys are dropped."""
    added: AddedCount
    """What the method's term reads beside the rows."""


def tensors_on(device: torch.device, fields: Mapping[str, object]) -> dict[str, Tensor]:
    """Those fields that are tensors, on a device, copied asynchronously."""
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
