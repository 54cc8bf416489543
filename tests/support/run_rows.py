"""Rows of a training step, and what a checkpoint says that it counted, for tests."""

from pathlib import Path
from typing import Any

from pretrain.checkpoint.run import open_checkpoint
from pretrain.rows.evaluation import ScoredModel
from pretrain.rows.step import MetricsRow

FIELDS = {
    "tokens_seen": 1000, "loss": 3.5, "grad_norm": 0.5, "lr": 1e-3, "num_loops": 2, "tokens_per_s": 2000.0,
    "flops_per_s": 4e9, "mfu_pct": 50.0, "step_time_s": 0.5, "memory_gib": 1.0, "skipped": 0,
}  # fmt: skip


def step_row(step: int, **changes: Any) -> MetricsRow:
    return MetricsRow(step=step, **(FIELDS | changes))  # pyright: ignore[reportArgumentType]


def scored(run: Path) -> ScoredModel:
    """The model of the newest checkpoint of a run, as evaluation rows describe it."""
    reader, _ = open_checkpoint(run)
    return ScoredModel.of(reader.meta, reader.step)
