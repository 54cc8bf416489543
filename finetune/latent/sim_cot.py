"""SIM-CoT: a decoder learns to write each step from the thoughts that replace it (Wei et al. 2025, arXiv 2509.20317).

Coconut's loss says nothing about a single thought, and many thoughts become alike. Here the c thoughts z of step k are
the first inputs of a decoder, which has to write that step and eos:

    L_step = mean over all pairs of an example and a step of Σ_t -log p(step_t | z_1 ... z_c, step_<t)
    L      = L of Coconut + λ · L_step,                          λ = 1, as in the published code (InternLM/SIM-CoT)

Which text belongs to which slots: `finetune/examples/steps.py`; slots beyond the end of a short chain stand for the
answer, and the last ones for all steps that remain, both as published. In answering there is no decoder.

Difference from the published code: its decoder is a copy of the model that is trained on its own, with the model's
embeddings; here it is the model itself, without the question and without dropout, so that the model, its checkpoints
and the memory of a run do not change.

Cost: a forward and backward pass over steps and thoughts, and a head for each token of a step.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch, tensors_on
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loss import loss_sums


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of the decoder, c thoughts and t tokens each."""

    thoughts: Tensor
    """int64 [n, c]: where the thoughts are among the flattened states of the batch."""
    text: Tensor
    """int64 [n, t]: the tokens after them, padded on the right."""
    supervised: Tensor
    """int64 [m]: the places, of the flattened [n, c + t], that predict a token."""
    labels: Tensor
    """int64 [m]: these tokens."""

    def to(self, device: torch.device) -> "StepRows":
        return replace(self, **tensors_on(device, vars(self)))


class StepDecoderTerm:
    """The decoder's part of the loss."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def watch(self, model: LoopedGPT, batch: LatentBatch) -> AbstractContextManager[object]:
        return nullcontext()

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        if not micro_batch.num_slots:
            return states.new_zeros(())
        rows = micro_batch.added
        assert isinstance(rows, StepRows) and model.embedding is not None
        thoughts = states.flatten(0, 1).index_select(0, rows.thoughts.flatten())
        thoughts = thoughts.view(*rows.thoughts.shape, -1)  # [n, c, d]
        inputs = torch.cat((thoughts, model.embedding(rows.text)), dim=1)  # [n, c + t, d]
        tokens = torch.cat((torch.zeros_like(rows.thoughts), rows.text), dim=1)  # only their shape counts
        decoded = model(tokens, embeddings=inputs)
        nll, _ = loss_sums(model, decoded.index_select(0, rows.supervised), rows.labels)
        return self._weight * nll / max(step.added.rows, 1)
