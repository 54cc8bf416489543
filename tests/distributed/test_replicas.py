"""A bit that changes on one data-parallel rank alone is noticed before the update, and named with rank and tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.parallel.engine import Engine
from pretrain.parallel.replicas import bit_sum, describe_differences
from tests.distributed.pool import RankPool
from tests.distributed.training import train_aloud, training_config, write_corpus

NAME = "loop.1.ffn.down.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("replicas"))


def flip(tensor: Tensor) -> None:
    """Change a bit of the last number, by an eighth."""
    whole = tensor.detach().flatten()
    dtype, bit = (torch.int32, 20) if whole.element_size() == 4 else (torch.int16, 4)
    whole.view(dtype)[-1] ^= 1 << bit


def train_with_a_flip(config: RunConfig, rank: int, call: int, kind: str) -> str:
    """Train; at a call of `train_step` (from 0) a weight of one rank, or its master copy, changes before it."""
    train_step, calls = Engine.train_step, iter(range(1_000_000))

    def flipped(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == call and dist.get_rank() == rank:
            flip(next(tensor for name, tensor in engine.optimizer.replicated() if name == f"{kind}{NAME}"))
        return train_step(engine, *args, **kwargs)

    Engine.train_step = flipped  # type: ignore[method-assign]
    try:
        return train_aloud(config)
    finally:
        Engine.train_step = train_step  # type: ignore[method-assign]


def said(pool: RankPool, root: Path, name: str, ranks: int, call: int, kind: str, **sections: Any) -> list[str]:
    settings = {"ranks": {"check_weights_every": 2}, "checkpoint": {"every": 100}, "train": {"steps": 6}}
    config = training_config(root, name, **(settings | sections))
    return pool.run(train_with_a_flip, config, ranks - 1, call, kind, world_size=ranks)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_flipped_bit_ends_the_run_with_rank_and_tensor(pool: RankPool, root: Path, optimizer: str) -> None:
    name, train = f"flipped-{optimizer}", {"steps": 6, "precision": "bf16"}
    printed = said(pool, root, name, 2, 3, "", train=train, optimizer={"name": optimizer})
    line = f"error: ranks 0, 1 differ in {NAME}\n"
    assert [text.endswith(line) for text in printed] == [True, True], printed
    assert (root / "runs" / name / "state").read_text() == f"failed: ranks 0, 1 differ in {NAME}\n"
    assert len((root / "runs" / name / "metrics.jsonl").read_text().splitlines()) == 3


def test_most_replicas_are_right(pool: RankPool, root: Path) -> None:
    printed = said(pool, root, "three", 4, 1, "", parallel={})
    line = f"error: rank 3 differs from the other replicas in {NAME}\n"
    assert all(text.endswith(line) for text in printed), printed


def test_wrong_weights_are_not_saved(pool: RankPool, root: Path) -> None:
    sections: dict[str, Any] = {"optimizer": {"name": "muon"}, "checkpoint": {"every": 3}, "train": {"steps": 3}}
    printed = said(pool, root, "saved", 2, 2, "weights/", **sections)  # the master copy, after the check of step 2
    assert all(f"error: ranks 0, 1 differ in {NAME}, weights/{NAME}" in text for text in printed), printed
    assert not list((root / "runs" / "saved" / "checkpoints").glob("step-*"))


def test_what_is_alike_passes(pool: RankPool, root: Path) -> None:
    printed = said(pool, root, "alike", 2, 1000, "", parallel={"tensor": 1})
    assert all("error" not in text for text in printed), printed


def test_one_bit_changes_the_sum() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        tensor = torch.randn(5, 7, dtype=dtype)
        before = bit_sum(tensor)
        assert torch.equal(bit_sum(tensor.clone()), before)
        bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        bits[3, 3] ^= 1 << (8 * tensor.element_size() - 2)
        assert not torch.equal(bit_sum(tensor), before)
    assert bit_sum(torch.tensor([float("nan")])) == bit_sum(torch.tensor([float("nan")]))  # alike, if not equal


def test_many_tensors_are_a_line() -> None:
    names = [f"w{number}" for number in range(9)]
    rows = [list(range(9)), list(range(9)), [-1] * 9]
    (line,) = describe_differences(names, rows, [1, 3, 5])
    assert line == "rank 5 differs from the other replicas in w0, w1, w2 and 6 more"
