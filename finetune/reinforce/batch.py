"""Answers that were drawn as tensors, to compute their probabilities anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from finetune.examples.sequence import TrainingRow
from finetune.examples.sequence import collate as collate_rows
from finetune.latent.batch import LatentBatch, tensors_on
from finetune.latent.generation import AnswerSettings
from finetune.reinforce.rollout import Rollout


class ActionLogs(NamedTuple):
    """Of what was drawn: log-probabilities, and where thoughts were expected."""

    text: Tensor
    """[l, n] of the tokens of text, by each loop that is rewarded; the last is the last loop."""
    thoughts: Tensor
    """[b, k] of the thoughts, without the constant; k = 0 where these are no actions."""
    means: Tensor
    """[b, k, d] states that the thoughts were drawn around."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Rows of one forward pass of this rank: b answers, n tokens of text that were drawn, k thoughts a row."""

    rows: LatentBatch
    """Their tokens; supervised are those that were drawn."""
    thoughts: Tensor
    """[b, k, d] as they entered."""
    noise: Tensor
    """[b, k, d] that is in them."""
    advantages: Tensor
    """fp32 [b]."""
    before: ActionLogs | None = None
    """Under the weights that the answers were drawn with; None: they are the present ones."""
    reference: ActionLogs | None = None
    """Under the weights that training started from, where these pull."""

    @property
    def num_thoughts(self) -> int:
        """k."""
        return self.thoughts.shape[1]

    @property
    def row(self) -> Tensor:
        """int64 [n]: the row of each token of text."""
        return self.rows.supervised // self.rows.tokens.shape[1]

    def to(self, device: torch.device) -> Self:
        """The batch on a device, copied asynchronously."""
        both = {"before": self.before, "reference": self.reference}
        logs = {name: value and ActionLogs(*(each.to(device) for each in value)) for name, value in both.items()}
        return replace(self, rows=self.rows.to(device), **tensors_on(device, vars(self)), **logs)


@dataclass(frozen=True, kw_only=True)
class RolloutStep:
    """One optimizer step: the micro-batches of this rank, and counts over all ranks."""

    micro_batches: tuple[RolloutBatch, ...]
    num_targets: int
    """Actions."""


def collate(rollouts: Sequence[Rollout], advantages: Sequence[float], settings: AnswerSettings) -> RolloutBatch:
    """Answers as a batch; `settings` as they were drawn with."""
    rows = []
    for prompt, thoughts, _, answer in rollouts:
        drawn = (*answer.text, *([settings.eos_id] if answer.is_over else ()))
        head = (*prompt, *[settings.markers.slot] * settings.num_slots, *settings.script)
        rows.append(TrainingRow((*head, *drawn), len(head), len(prompt), len(thoughts), -1))
    return RolloutBatch(
        rows=collate_rows(rows),
        thoughts=torch.stack([rollout.thoughts for rollout in rollouts]).cpu(),
        noise=torch.stack([rollout.noise for rollout in rollouts]).cpu(),
        advantages=torch.tensor(advantages, dtype=torch.float32),
    )
