"""The rules by which a token stops looping (`pretrain/model/loop/exit_rules.py`) at work on rows that generate
together, each in its slot and in a loop of its own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop.exit_rules import ExitRule


def needs_output(rule: ExitRule) -> bool:
    """Whether a rule looks at the output of the model after each loop."""
    return rule.name in ("kl", "entropy")


class ExitWatch:
    """What the rules remember of the token that each slot is at.

    Args:
        model: whose gate is asked.
        num_slots: sequences at most.
    """

    def __init__(self, model: LoopedGPT, num_slots: int) -> None:
        self._model, self._num_slots = model, num_slots
        self._log_rest: Tensor | None = None
        """[slots] log-probability that the gate has not stopped yet."""
        self._log_p: Tensor | None = None
        """[slots, v] log-probabilities after the loop before."""

    def move(self, source: int, target: int) -> None:
        for each in (self._log_rest, self._log_p):
            if each is not None:
                each[target] = each[source]

    def stops(
        self, rule: ExitRule, slots: Sequence[int], loops: Sequence[int], before: Tensor, states: Tensor,
        output: Tensor | None,
    ) -> list[bool]:  # fmt: skip
        """Which of the rows stop.

        Args:
            rule: of all of them.
            slots: of each.
            loops: that each has run.
            before: [rows, d] states before the last of these loops.
            states: [rows, d] states after it.
            output: [rows, v] logits after it, for rules that need them.
        """
        at, is_first = torch.tensor(slots, device=states.device), torch.tensor(loops, device=states.device) == 1
        wide = torch.promote_types(states.dtype, torch.float32)
        if rule.name == "gate":
            rest = F.logsigmoid(-self._model.exit_log_odds(states))
            if self._log_rest is None:
                self._log_rest = rest.new_zeros(self._num_slots)
            rest = torch.where(is_first, rest, self._log_rest[at] + rest)
            self._log_rest[at] = rest
            return (-rest.expm1() >= rule.threshold).tolist()
        if rule.name == "change":
            after = states.to(wide)
            return ((after - before.to(wide)).norm(dim=-1) < rule.threshold * after.norm(dim=-1)).tolist()
        assert output is not None, "the rule looks at the output"
        log_p = output.to(wide).log_softmax(-1)
        if rule.name == "entropy":
            return (-(log_p.exp() * log_p).sum(-1) < rule.threshold).tolist()
        if self._log_p is None:
            self._log_p = log_p.new_zeros(self._num_slots, log_p.shape[1])
        divergence = (log_p.exp() * (log_p - self._log_p[at])).sum(-1)
        self._log_p[at] = log_p
        return ((divergence < rule.threshold) & ~is_first).tolist()
