"""What fine-tuning minimises, as one module, so that DeepSpeed sees every weight used inside a forward of its own.

The loss of a step is the negative log-likelihood of its supervised tokens, summed and divided by their number over all
ranks, and the terms that a method adds: the stop classifier's (`finetune/latent/stop.py`) and self-distillation's
(`finetune/latent/distillation.py`).
"""

from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from torch import Tensor, nn

from finetune.config import MethodSection
from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch
from finetune.latent.distillation import DistillationTerm
from finetune.latent.stop import StopClassifier, StopTerm
from finetune.latent.ways import thinking_of
from pretrain.model.gpt import LoopedGPT


class Term(Protocol):
    """A part of the loss."""

    def watch(self, model: LoopedGPT, batch: LatentBatch) -> AbstractContextManager[object]:
        """Entered around the forward of a batch."""
        ...

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        """The share of a micro-batch in this part of the loss of its step; states are final ones, [b, s, d]."""
        ...


class Objective(nn.Module):
    """The model, and the stop classifier if there is one.

    Args:
        model: whole, or its tensor-parallel part.
        method: what is trained.
    """

    def __init__(self, model: LoopedGPT, method: MethodSection) -> None:
        super().__init__()
        self.model, self._thinking = model, thinking_of(method)
        self.stop: StopClassifier | None = None
        self._terms: list[Term] = []
        if method.distillation_weight:
            self._terms.append(DistillationTerm(method.distillation_weight))
        if method.stop == "classifier":
            parameter = next(model.parameters())
            self.stop = StopClassifier(model.config.hidden_size).to(parameter.device, parameter.dtype)
            self._terms.append(StopTerm(self.stop, method.stop_weight))

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Those of the model by the names that it gives them, those of the stop classifier under "stop/"."""
        named = dict(self.model.named_parameters())
        if self.stop is not None:
            named |= {f"stop/{name}": parameter for name, parameter in self.stop.named_parameters()}
        return named

    def forward(self, micro_batch: MicroBatch, step: StepBatch) -> tuple[Tensor, Tensor]:
        """The share of a micro-batch in the loss of its step, and in its negative log-likelihood (summed, in nats)."""
        batch = micro_batch.batch
        with ExitStack() as watching:
            for term in self._terms:
                watching.enter_context(term.watch(self.model, batch))
            states = self._thinking.states(self.model, batch, micro_batch.num_slots)
        added = [term.loss(self.model, states, micro_batch, step) for term in self._terms]
        nll, plain = batch.text_loss(self.model, states)
        return sum(added, start=nll / step.num_targets), plain
