"""A frozen model that training imitates: its distribution over the next token, computed on the fly.

    KL(teacher ‖ model) = Σ_v p_teacher (log p_teacher - log p_model)      for each supervised token

Its logits and the model's are held whole, in fp32 or wider, so both models are whole on a rank: one stage, no tensor
parallelism (the configuration refuses others); data parallelism is free. It costs a forward pass of the teacher.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.run import open_checkpoint
from pretrain.config.run import RunConfig
from pretrain.config.saved_model import SavedModel
from pretrain.data.stream.batch import Inputs
from pretrain.data.stream.labels import IGNORED
from pretrain.model.gpt import LoopedGPT


def require_teacher(config: RunConfig, saved: SavedModel) -> None:
    """Raise a ValueError unless a model can teach that of the configuration."""
    if saved.model.vocab_size != config.model.vocab_size:
        raise ValueError(
            f"train.teacher.run={config.train.teacher.run} has {saved.model.vocab_size} rows of vocabulary, "
            f"model.vocab_size={config.model.vocab_size}: a teacher needs the same"
        )
    if saved.model.positions == "learned" and config.train.seq_len > saved.seq_len:
        raise ValueError(
            f"train.seq_len={config.train.seq_len}: the teacher has learned {saved.seq_len} positions; lower it"
        )


class Teacher:
    """The frozen model, on this rank's device.

    Raises:
        ValueError: there is no such run, or its model cannot teach this one.
        OSError: its checkpoint cannot be read.
    """

    def __init__(self, config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
        section = config.train.teacher
        self.weight, self.value = section.weight, torch.zeros(())
        self.reader, _ = open_checkpoint(Path(section.run or ""))
        self.saved = SavedModel.read(self.reader.meta)
        require_teacher(config, self.saved)
        self.model = LoopedGPT(self.saved.model, self.saved.seq_len).to(device, dtype).eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.reader.read_whole(f"weights/{name}"))

    def begin_step(self) -> None:
        """Forget what the last step minimised."""
        self.value = torch.zeros((), dtype=torch.float64)

    def loss_sums(
        self, model: LoopedGPT, inputs: Inputs, plain: Callable[[Tensor], tuple[Tensor, Tensor]], states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of final states [t, d] with what the teacher adds: the sum to differentiate, and the plain negative
        log-likelihood, as `pretrain.model.loss.loss_sums` has them, which is `plain` here."""
        total, nll = plain(states)
        divergence = self.weight * self._divergence(model, inputs, states)
        self.value = self.value.to(nll.device) + (nll + divergence.detach()).double()
        return total + divergence, nll

    def _divergence(self, model: LoopedGPT, inputs: Inputs, states: Tensor) -> Tensor:
        """Nats, summed over supervised tokens."""
        supervised = inputs.labels.flatten() != IGNORED
        wide = torch.promote_types(states.dtype, torch.float32)
        with torch.no_grad():
            final = self.model(inputs.tokens, positions=inputs.positions, documents=inputs.documents)
            theirs = self.model.logits(final[supervised]).to(wide).log_softmax(-1)
        ours = model.logits(states[supervised]).to(wide).log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum()
