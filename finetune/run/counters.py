"""What a fine-tuning run counts, besides steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.counters import Counters


@dataclass(kw_only=True)
class FinetuneCounters(Counters):
    """Saved with every checkpoint."""

    epoch: int = 0
    """Complete epochs, validation included."""
    step_in_epoch: int = 0
    """Steps of the next epoch that are done; all of them if only its validation is missing."""
    best_accuracy: float = -1.0
    """Best validation accuracy in the last stage; below 0 before the first validation there."""
    best_step: int = 0
    """Step of the best validation."""


def last_epoch(meta: Mapping[str, Any]) -> int:
    """The epoch, from 0, that was trained last before a checkpoint. Its `meta` has the one to train next, unless it was
    saved within an epoch or, like the best checkpoint, before the end of a validation."""
    counters = FinetuneCounters.read(meta)
    is_old_best = "counters" not in meta and "progress" not in meta
    is_next = counters.step_in_epoch == 0 and not is_old_best
    return max(counters.epoch - is_next, 0)
