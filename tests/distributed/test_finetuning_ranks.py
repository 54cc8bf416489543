"""What is noticed of ranks in fine-tuning, as in pretraining: weights that are no longer alike, and a slow rank."""

import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from finetune.config import FinetuneConfig
from finetune.engine.engine import FinetuneEngine
from finetune.engine.objective import Objective
from pretrain.command.console import RunFailed
from tests.distributed.finetuning import finetune, finetune_config
from tests.distributed.pool import RankPool
from tests.distributed.test_replicas import flip
from tests.distributed.test_stragglers import SLOW_S

NAME = "loop.0.ffn.down.weight"


def finetune_with_a_flip(config: FinetuneConfig, call: int) -> str:
    """Fine-tune; at a call of `train_step` (from 0) a weight of rank 1 changes before it. Returns the error's line."""
    train_step, calls = FinetuneEngine.train_step, iter(range(1_000_000))

    def flipped(engine: FinetuneEngine, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == call and dist.get_rank() == 1:
            flip(engine._named[NAME])
        return train_step(engine, *args, **kwargs)

    FinetuneEngine.train_step = flipped  # type: ignore[method-assign]
    try:
        finetune(config)
    except RunFailed as error:
        return str(error)
    finally:
        FinetuneEngine.train_step = train_step  # type: ignore[method-assign]
    return ""


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_flipped_bit_ends_the_run_with_rank_and_tensor(pool: RankPool, tmp_path: Path, zero_stage: int) -> None:
    config = finetune_config(
        tmp_path, "flipped", engine={"zero_stage": zero_stage}, ranks={"check_weights_every": 2}, data={"test": {}}
    )
    assert pool.run(finetune_with_a_flip, config, 3, world_size=2) == [f"ranks 0, 1 differ in {NAME}"] * 2
    run = tmp_path / "runs" / "flipped"
    assert (run / "state").read_text() == f"failed: ranks 0, 1 differ in {NAME}\n"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def finetune_slowly(config: FinetuneConfig) -> int:
    """Fine-tune; the forward pass of rank 1 takes three times as long."""
    forward = Objective.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = forward(*args, **kwargs)
        if dist.get_rank() == 1:
            time.sleep(max(SLOW_S, 2 * (time.perf_counter() - began)))
        return result

    Objective.forward = slow  # type: ignore[method-assign]
    try:
        return finetune(config)[0]
    finally:
        Objective.forward = forward  # type: ignore[method-assign]


def test_a_slow_rank_is_named_in_the_rows(pool: RankPool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"curriculum": {"num_stages": 1}, "train": {"epochs": 2}, "data": {"test": {}}}
    assert pool.run(finetune_slowly, finetune_config(tmp_path, "slow", **changes), world_size=2) == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "runs" / "slow" / "metrics.jsonl").read_text().splitlines()]
    assert Counter(row["slowest"] for row in rows).most_common()[0][0] == f"rank 1 on {socket.gethostname()}"
    assert all(row["work_worst_s"] >= SLOW_S and row["work_s"] <= row["work_worst_s"] for row in rows)
