"""Memory of a rank of large worlds: the plan against the engine itself, on fake tensors and a fake process group."""

from pathlib import Path

import pytest

from pretrain.config.read import read_config
from pretrain.config.run import RunConfig
from pretrain.plan.plan import make_plan
from tests.support.fake_world import rank_memory

CONFIG = Path(__file__).parents[3] / "configs" / "pretrain" / "12x2.yaml"
"""Of the 1.5B family: 12 layers of 2,048, looped twice."""


@pytest.mark.parametrize(
    ("world_size", "tensor", "pipeline", "stage", "micro_batch", "recompute", "optimizer"),
    [
        (8, 1, 1, 0, 4, "none", "adamw"),
        (64, 2, 4, 0, 4, "none", "adamw"),
        (8, 2, 2, 1, 4, "none", "adamw"),
        (64, 4, 2, 1, 2, "loop", "adamw"),
        (1024, 8, 4, 3, 4, "layer", "adamw"),
        (8, 1, 1, 0, 4, "segment", "adamw"),
        (64, 4, 2, 1, 2, "segment", "adamw"),
        (8, 1, 1, 0, 4, "selective", "adamw"),
        (64, 2, 4, 0, 4, "selective", "adamw"),
        (8, 2, 2, 0, 4, "none", "muon"),
        (8, 2, 2, 1, 4, "none", "adafactor"),
    ],
)
def test_a_rank_holds_what_is_planned(
    world_size: int, tensor: int, pipeline: int, stage: int, micro_batch: int, recompute: str, optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = world_size // (tensor * pipeline)
    overrides = [
        f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.sequence={str(tensor > 1).lower()}",
        f"train.micro_batch={micro_batch}", f"train.recompute={recompute}", f"optimizer.name={optimizer}",
        f"train.global_batch={pipeline * micro_batch * data}", f"data.num_streams={data}", "validation.every=0",
    ]  # fmt: skip
    config = read_config(CONFIG, RunConfig, overrides)
    held = rank_memory(config, world_size, stage * data * tensor, monkeypatch)
    planned = make_plan(config, world_size).stages[stage]
    states = planned.weights + planned.gradients + planned.optimizer
    assert held.states == pytest.approx(states, rel=0.001, abs=2**20)  # buckets are padded
    assert held.peak == pytest.approx(planned.total, rel=0.05)
