"""Answers that were drawn as tensors, to compute their probabilities anew: one pass over each row, thoughts given.

question <bot> thought ... thought <eot> text eos        padded on the right
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from finetune.latent.batch import tensors_on
from finetune.latent.generation import AnswerSettings
from finetune.reinforce.rollout import Rollout


class ActionLogs(NamedTuple):
    """Of what was drawn: log-probabilities, and where thoughts were expected."""

    text: Tensor
    """[l, n] of the tokens of text, by each loop that is rewarded; the last is the last loop."""
    thoughts: Tensor
    """[b, k] of the thoughts, without the constant."""
    means: Tensor
    """[b, k, d] states that the thoughts were drawn around."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Rows of one forward pass of this rank: b answers, n tokens of text that were drawn, k thoughts a row."""

    tokens: Tensor
    """int64 [b, s]; ignored at thoughts and in padding."""
    thoughts: Tensor
    """[b, k, d] as they entered."""
    first_slot: Tensor
    """int64 [b]: where the thoughts of a row begin, at least 1."""
    predicting: Tensor
    """int64 [n]: flattened positions whose state a token of text was drawn from."""
    labels: Tensor
    """int64 [n]: those tokens."""
    row: Tensor
    """int64 [n]: the row of each."""
    advantages: Tensor
    """fp32 [b]."""
    before: ActionLogs | None = None
    """Under the weights that the answers were drawn with; None: they are the present ones."""
    reference: ActionLogs | None = None
    """Under the weights that training started from, where these pull."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device, copied asynchronously."""
        logs = {name: value and ActionLogs(*(each.to(device) for each in value)) for name, value in self._logs()}
        return replace(self, **tensors_on(device, vars(self)), **logs)

    def _logs(self) -> tuple[tuple[str, ActionLogs | None], ...]:
        return ("before", self.before), ("reference", self.reference)


@dataclass(frozen=True, kw_only=True)
class RolloutStep:
    """One optimizer step: the micro-batches of this rank, and counts over all ranks."""

    micro_batches: tuple[RolloutBatch, ...]
    num_targets: int
    """Actions: thoughts and tokens of text."""


def collate(
    rollouts: Sequence[Rollout], advantages: Sequence[float], settings: AnswerSettings, hidden_size: int
) -> RolloutBatch:
    """Answers as a batch; `settings` as they were drawn with."""
    rows, predicting, labels, of_row = [], list[int](), list[int](), list[int]()
    for prompt, thoughts, answer in rollouts:
        num_slots = settings.num_slots
        slots = [0] * num_slots if len(thoughts) else [settings.markers.slot] * num_slots
        drawn = (*answer.text, *([settings.eos_id] if answer.is_over else ()))
        rows.append((*prompt, *slots, *settings.script, *drawn))
        predicting.append(len(rows[-1]) - len(drawn) - 1)
    length = max(map(len, rows))
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    starts, predicting = predicting, []
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        labels += row[start + 1 :]
        predicting += [number * length + place for place in range(start, len(row) - 1)]
        of_row += [number] * (len(row) - 1 - start)
    thoughts = [rollout.thoughts for rollout in rollouts]
    return RolloutBatch(
        tokens=tokens,
        thoughts=torch.stack(thoughts).cpu() if len(thoughts[0]) else torch.zeros(len(rows), 0, hidden_size),
        first_slot=torch.tensor([len(rollout.prompt) for rollout in rollouts]),
        predicting=torch.tensor(predicting),
        labels=torch.tensor(labels),
        row=torch.tensor(of_row),
        advantages=torch.tensor(advantages, dtype=torch.float32),
    )
