"""What a fine-tuning run counts, beyond steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.counters import Counters


@dataclass(kw_only=True)
class FinetuneCounters(Counters):
    """What a run counts; saved with every checkpoint."""

    epoch: int = 0
    """Epochs done, validation included."""
    step_in_epoch: int = 0
    """Steps done of the next one; all of them if only its validation is missing."""
    best_accuracy: float = -1.0
    """Of a validation in the last stage; below 0 before the first."""
    best_step: int = 0
    """Where it was."""


def last_epoch(meta: Mapping[str, Any]) -> int:
    """The epoch that a checkpoint trained last, from 0, from its `meta`: it names the one to train next, unless it is
    in the middle of it or, as the best one is, before the end of its validation."""
    counters = FinetuneCounters.read(meta)
    is_old_best = "counters" not in meta and "progress" not in meta
    is_next = counters.step_in_epoch == 0 and not is_old_best
    return max(counters.epoch - is_next, 0)
