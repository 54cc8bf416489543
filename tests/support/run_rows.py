"""Rows of a training step for tests."""

from typing import Any

from pretrain.run.rows import MetricsRow

FIELDS = {
    "tokens_seen": 1000, "loss": 3.5, "grad_norm": 0.5, "lr": 1e-3, "num_loops": 2, "tokens_per_s": 2000.0,
    "flops_per_s": 4e9, "mfu_pct": 50.0, "step_time_s": 0.5, "memory_gib": 1.0, "skipped": 0,
}  # fmt: skip


def step_row(step: int, **changes: Any) -> MetricsRow:
    return MetricsRow(step=step, **(FIELDS | changes))  # pyright: ignore[reportArgumentType]
