"""What a run shows and keeps of its numbers, as configuration: `logging`."""

from typing import Literal

from pydantic import Field

from pretrain.schema.section import Section

WandbMode = Literal["disabled", "offline", "online"]
"""From the least to the most that leaves the machine."""


class LoggingSection(Section):
    every: int = Field(default=1, gt=0)
    """Steps between rows of metrics.jsonl."""
    wandb: WandbMode = "offline"
    """Weights & Biases: offline writes <run>/wandb for a later `wandb sync`. WANDB_MODE=disabled or offline in the
    environment lowers it."""
    wandb_project: str = "looped"
    """Project that wandb files the run under."""
    tensorboard: bool = False
    """Also write <run>/tensorboard, for `tensorboard --logdir runs`; the package is an extra (tools/setup.sh)."""
