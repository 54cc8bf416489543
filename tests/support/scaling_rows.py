"""Evaluation rows for the tests of the scaling plot: one valid row to vary, and a synthetic sweep with every kind of
result in it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pretrain.rows.evaluation import EvaluationRow

FIELDS = {
    "run": "a", "step": 10, "tokens_seen": 100, "train_flops": 1e9, "num_params": 1000, "task": "validation",
    "task_group": "validation", "metric": "nll", "value": 4.0, "stderr": 0.1, "num_examples": 8, "num_loops": 1,
    "effective_depth": 2, "eval_flops_per_token": 1e6, "family": "looped",
}  # fmt: skip

LAYER_PARAMS = 1_000_000
EMBEDDING_PARAMS = 2_000_000


def make_row(**fields: object) -> EvaluationRow:
    return EvaluationRow(**(FIELDS | fields))  # pyright: ignore[reportArgumentType]


def write_rows(file: Path, *rows: dict[str, object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(FIELDS | row) + "\n" for row in rows))
    return file


def model_fields(family: str, layers: int, loops: int, tokens: int, seed: int = 0) -> dict[str, object]:
    """What a k⊗L model has in each of its rows."""
    depth, params = layers * loops, EMBEDDING_PARAMS + layers * LAYER_PARAMS
    flops = 2.0 * (depth * LAYER_PARAMS + EMBEDDING_PARAMS)
    return {
        "run": f"{family}-{layers}x{loops}-{tokens}-{seed}", "family": family, "num_loops": loops,
        "effective_depth": depth, "num_params": params, "num_loop_params": layers * LAYER_PARAMS,
        "eval_flops_per_token": flops, "train_flops": 3 * flops * tokens, "tokens_seen": tokens, "step": tokens // 1000,
    }  # fmt: skip


def sweep(groups: Iterable[str] = ("closed book", "math"), seeds: int = 2, steps: int = 4) -> list[dict[str, object]]:
    """Rows of 4⊗L and 4L⊗1 over training: losses by the joint law with phi = 0.5, accuracies by the line in log
    depth."""
    rng, rows = np.random.default_rng(0), []
    for family, layers, loops in [("looped", 4, r) for r in (1, 2, 3, 6, 9)] + [
        ("baseline", 4 * r, 1) for r in (1, 2, 3, 6, 9)
    ]:
        for seed in range(seeds):
            for step in range(1, steps + 1):
                model = model_fields(family, layers, loops, 250_000_000 * step, seed) | {
                    "run": f"{family}-{layers}x{loops}-{seed}",
                    "step": step,
                }
                size = EMBEDDING_PARAMS + layers * LAYER_PARAMS * loops**0.5
                loss = 1.7 + 300 * size**-0.33 + 900 * (250e6 * step) ** -0.35 + rng.normal(0, 0.005)
                rows.append(model | {"value": loss, "stderr": 0.004, "num_examples": 64})
                for index, group in enumerate(groups):
                    slope = 0.06 * (1 + index) * (0.6 + 0.6 * index if family == "looped" else 1)
                    share = slope * math.log(layers * loops) + 0.02 * step
                    share = rng.binomial(1000, min(share, 1)) / 1000
                    rows.append(
                        model
                        | {"task": f"{group} task", "task_group": group, "metric": "acc", "value": share}
                        | {"stderr": None, "num_examples": 1000}
                    )
    return rows
