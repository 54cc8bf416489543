"""What the engine asks of a configuration, of an objective and of a step: fine-tuning and reinforcement learning each
have their own."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune.config import ConstantAdamWSection, EngineSection, EngineTrainSection
from finetune.latent.stop import StopClassifier
from pretrain.config.ranks import RanksSection
from pretrain.config.run import ParallelSection, RunSection
from pretrain.model.gpt import LoopedGPT


class EngineConfig(Protocol):
    """The sections that the engine reads."""

    @property
    def run(self) -> RunSection: ...

    @property
    def train(self) -> EngineTrainSection: ...

    @property
    def optimizer(self) -> ConstantAdamWSection: ...

    @property
    def engine(self) -> EngineSection: ...

    @property
    def ranks(self) -> RanksSection: ...

    @property
    def parallel(self) -> ParallelSection: ...


class EngineMicroBatch(Protocol):
    """Rows of one forward pass of this rank."""

    def to(self, device: torch.device) -> Any: ...


class EngineStep(Protocol):
    """One optimizer step."""

    @property
    def micro_batches(self) -> Sequence[EngineMicroBatch]:
        """Those of this rank."""
        ...

    @property
    def num_targets(self) -> int:
        """What the loss is divided by, over all ranks."""
        ...


class EngineObjective(nn.Module):
    """What to minimise, as one module, so that DeepSpeed sees every weight used inside the module's forward.

    `forward(micro_batch, step)` gives the share of a micro-batch in the loss of its step, which has a gradient, and in
    the sum that is reported as the loss, divided by `num_targets`.
    """

    def __init__(self, model: LoopedGPT) -> None:
        super().__init__()
        self.model = model
        """Or its tensor-parallel part."""
        self.stop_classifier: StopClassifier | None = None

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The model's parameters by its own names, those of the stop classifier under "stop/"."""
        named = dict(self.model.named_parameters())
        if self.stop_classifier is not None:
            named |= {f"stop/{name}": parameter for name, parameter in self.stop_classifier.named_parameters()}
        return named

    def forward(self, micro_batch: Any, step: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError
