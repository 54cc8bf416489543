"""The stop classifier: trained to predict after each thought whether it was the last, it ends thoughts in answering."""

from contextlib import AbstractContextManager, nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from finetune.latent.batch import LatentBatch, MicroBatch, StepBatch
from finetune.latent.decoding import Decoding
from pretrain.model.gpt import LoopedGPT


class StopClassifier(nn.Linear):
    """From the state [..., d] after a thought to a logit [..., 1]: above 0, that thought was the last one."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)

    def reset_parameters(self) -> None:
        """At first every thought is as likely the last as not, on all ranks."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def is_last(self, states: Tensor) -> Tensor:
        """Whether thoughts were the last ones: states [b, n, d] after them to [b, n]."""
        return self(states).squeeze(-1) > 0

    def end_thoughts(self, decoding: Decoding, states: Tensor) -> list[int]:
        """Forget every row's thoughts after the first that is classified as the last.

        Args:
            decoding: the rows, last fed n thoughts.
            states: [b, n, d] after each of these.

        Returns:
            Thoughts that each row keeps.
        """
        is_last = self.is_last(states)
        is_last[:, -1] = True
        num_thoughts = is_last.int().argmax(dim=-1) + 1
        decoding.forget(states.shape[1] - num_thoughts)
        return num_thoughts.tolist()


class StopTerm:
    """The classifier's part of the loss: its weighted binary cross-entropy, averaged over the thoughts of a step."""

    def __init__(self, classifier: StopClassifier, weight: float) -> None:
        self._classifier, self._weight = classifier, weight

    def watch(self, model: LoopedGPT, batch: LatentBatch) -> AbstractContextManager[object]:
        return nullcontext()

    def loss(self, model: LoopedGPT, states: Tensor, micro_batch: MicroBatch, step: StepBatch) -> Tensor:
        if not micro_batch.num_slots:
            return states.new_zeros(())  # no gradient either: the classifier is trained on thoughts only
        is_latent = micro_batch.batch.is_latent
        is_last = ~F.pad(is_latent[:, 1:], (0, 1))
        logits = self._classifier(states).float().view_as(is_latent)
        losses = F.binary_cross_entropy_with_logits(logits, is_last.to(logits.dtype), reduction="none")
        return self._weight * (losses * is_latent).sum() / max(step.num_thoughts, 1)
