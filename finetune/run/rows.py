"""Rows of `metrics.jsonl` of a fine-tuning run: one optimizer step each. Evaluation rows:
`finetune/answers/results.py`."""

from dataclasses import dataclass

from finetune.latent.batch import StepBatch
from pretrain.model.config import ModelSection
from pretrain.model.count import body_flops, head_flops
from pretrain.rows.step import StepRow


@dataclass(frozen=True, kw_only=True)
class FinetuneRow(StepRow):
    """One optimizer step."""

    epoch: int
    """From 0."""
    stage: int
    """Of the curriculum."""
    thoughts_per_example: float
    """Mean number of latent slots."""
    examples_per_s: float
    """Examples per second over all ranks."""

    def describe(self) -> str:
        where = f"epoch {self.epoch}, stage {self.stage}"
        return f"{where}, loss {self.loss:.4f}, {self.describe_speed()}{self.describe_skipped()}"


def step_flops(model: ModelSection, step: StepBatch) -> float:
    """Forward and backward FLOPs of a step: every loop of every position in every pass, those of the method's term
    included, and the head where something is predicted.

    Attention is counted over rows of mean length (`pretrain/model/count.py` counts the whole square, causal or not).
    """
    length = round(step.num_tokens / step.num_examples)
    body = (step.num_tokens + step.num_tried) * body_flops(model, length)
    added = step.added
    if added.tokens:
        body += added.tokens * body_flops(model, round(added.tokens / added.rows))
    return 3.0 * (body + (step.num_targets + added.targets) * head_flops(model))
