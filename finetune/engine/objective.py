"""The objective of fine-tuning.

The loss of a step is the negative log-likelihood of its supervised tokens, summed and divided by their number over all
ranks, and what is added to it: the term of the method (the table `TERMS`) and the stop classifier's
(`finetune/latent/stop.py`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, assert_never

from torch import Tensor

from finetune.config import MethodSection
from finetune.engine.interface import EngineObjective
from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch
from finetune.latent.distillation import CODI_WEIGHT, DistillationTerm
from finetune.latent.lotus import SlotTerm
from finetune.latent.sim_cot import StepDecoderTerm
from finetune.latent.stop import StopClassifier, StopTerm
from finetune.latent.ways import thinking_of
from finetune.method.methods import Term
from pretrain.model.gpt import LoopedGPT


class LossTerm(Protocol):
    """A part of the loss."""

    def watch(self, model: LoopedGPT, batch: LatentBatch) -> AbstractContextManager[object]:
        """A context for the forward of a batch."""
        ...

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        """The share of a micro-batch in this part of the loss of its step, from final states [b, s, d]."""
        ...


TERMS: dict[Term, Callable[[MethodSection], LossTerm]] = {
    "distillation": lambda method: DistillationTerm(method.distillation_weight or CODI_WEIGHT),
    "step_decoder": lambda method: StepDecoderTerm(method.step_weight),
    "slot_tokens": lambda method: SlotTerm(method.step_weight),
}
"""The terms that methods add, by the names in `finetune/method/methods.py`."""


class Objective(EngineObjective):
    """Of fine-tuning."""

    def __init__(self, model: LoopedGPT, method: MethodSection) -> None:
        super().__init__(model)
        self._thinking = thinking_of(method)
        self._terms: list[LossTerm] = [] if method.term is None else [TERMS[method.term](method)]
        match method.stop:
            case "count":
                pass
            case "classifier":
                parameter = next(model.parameters())
                self.stop_classifier = StopClassifier(model.config.hidden_size).to(parameter.device, parameter.dtype)
                self._terms.append(StopTerm(self.stop_classifier, method.stop_weight))
            case _:
                assert_never(method.stop)

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
