"""What a run counts from its first step on; every checkpoint has it, and a resumed run continues it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(kw_only=True)
class Counters:
    """What every run counts. Steps of a run whose weights it started from are not among them."""

    step: int = 0
    """Steps done."""
    skipped: int = 0
    """Of them, those without an update: loss or gradient was not finite, or fp16 overflowed."""
    tokens_seen: int | None = 0
    """Tokens trained on, over all ranks, padding not counted; None: not counted when the run began."""
    train_flops: float | None = 0.0
    """FLOPs of the model in all steps, forward and backward; None: not counted when the run began."""

    def count_step(self, *, tokens: int, flops: float, skipped: bool) -> None:
        """Add a step to what is known."""
        self.step += 1
        self.skipped += skipped
        self.tokens_seen = None if self.tokens_seen is None else self.tokens_seen + tokens
        self.train_flops = None if self.train_flops is None else self.train_flops + flops

    @classmethod
    def read(cls, meta: Mapping[str, Any]) -> Self:
        """The counters of a checkpoint, from its `meta`."""
        saved = meta["counters"] if "counters" in meta else _old_counters(meta)
        return cls(**{field.name: saved[field.name] for field in fields(cls) if field.name in saved})


def _old_counters(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a checkpoint from before `meta["counters"]`: pretraining kept them beside everything else, its tokens
    being steps times the batch; fine-tuning and import knew neither tokens nor FLOPs."""
    saved = {"tokens_seen": None, "train_flops": None, **meta, **meta.get("progress", {})}
    if "next_sample" in meta:
        train = meta["config"]["train"]
        saved["tokens_seen"] = meta["step"] * train["global_batch"] * train["seq_len"]
    return saved
