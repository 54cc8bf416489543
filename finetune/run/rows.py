"""Rows of `metrics.jsonl` of a fine-tuning run: one optimizer step each. Evaluation rows:
`finetune/answers/results.py`."""

from dataclasses import dataclass

from tqdm import tqdm

from finetune.latent.batch import StepBatch
from pretrain.config.model import ModelSection
from pretrain.model.count import head_flops, layer_flops


@dataclass(frozen=True, kw_only=True)
class FinetuneRow:
    """One optimizer step; a number that is not finite is null in the file."""

    step: int
    """Steps done, this one included."""
    epoch: int
    """From 0."""
    stage: int
    """Of the curriculum."""
    loss: float
    """Mean loss per supervised token, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float
    """Learning rate of this step."""
    thoughts_per_example: float
    """Mean number of latent slots."""
    examples_per_s: float
    """Examples per second over all ranks."""
    tokens_per_s: float
    """Positions, padding not counted, per second over all ranks."""
    flops_per_s: float
    """Model FLOP/s over all ranks, for the loops that were run."""
    mfu_pct: float
    """Share of the peak of all ranks' devices, in percent."""
    step_time_s: float
    """Wall time of this step."""
    memory_gib: float
    """Largest memory use of rank 0 so far."""
    skipped: int
    """Steps skipped so far because fp16 overflowed."""

    def describe(self) -> str:
        """The few numbers worth watching, on one line."""
        rate = tqdm.format_sizeof(self.tokens_per_s)
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        speed = f"{rate} tok/s, MFU {self.mfu_pct:.1f}%"
        return f"epoch {self.epoch}, stage {self.stage}, loss {self.loss:.4f}, {speed}{skipped}"


def step_flops(model: ModelSection, step: StepBatch) -> float:
    """Forward and backward FLOPs of a step: every loop of every position, and the head where something is predicted.

    Attention is counted over rows of mean length (`pretrain/model/count.py` counts the whole square, causal or not).
    """
    length = round(step.num_tokens / step.num_examples)
    layers = model.effective_depth() * layer_flops(model, length)
    return 3.0 * (step.num_tokens * layers + step.num_targets * head_flops(model))
