"""What the plan says that a step and an evaluation hold, against what ranks allocate."""

from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Separators
from pretrain.model.kernels import blocked_attention
from pretrain.parallel.engine import Engine
from pretrain.parallel.groups import make_groups
from pretrain.plan.plan import make_plan
from tests.distributed.pool import RankPool
from tests.support.fake_world import Storages
from tests.support.memory import measured_evaluation


def evaluate(config: RunConfig, num_batches: int) -> int:
    blocked_attention.SCRATCH_ELEMENTS = 2**14  # the usual some MiB would drown so small a model
    return measured_evaluation(config, num_batches, make_groups(config.parallel, torch.device("cpu")))


@pytest.mark.parametrize(("num_stages", "num_batches"), [(2, 5), (2, 12), (4, 20)])
def test_stages_hold_what_the_plan_says(pool: RankPool, num_stages: int, num_batches: int) -> None:
    model = {
        "vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "ffn_size": 192, "num_loop_layers": 4,
        "num_loops": 3, "loop": {"injection": "add"},
    }  # fmt: skip
    train = {"seq_len": 256, "micro_batch": 4, "global_batch": 4 * num_batches, "precision": "fp32"}
    config = RunConfig.model_validate({"model": model, "train": train, "parallel": {"pipeline": num_stages}})
    measured = pool.run(evaluate, config, num_batches, world_size=num_stages)
    assert [stage.evaluation for stage in make_plan(config, num_stages).stages] == pytest.approx(measured, rel=0.1)


def peak_of_a_step(config: RunConfig) -> int:
    """Bytes of a rank in its second step, which has all states from the start. The profiler would not do: gloo's
    threads let tensors go, and it sees its own thread alone."""
    groups, storages = make_groups(config.parallel, torch.device("cpu")), Storages()
    with storages:
        engine = Engine(config, groups, Separators(bos_id=1, eos_id=2))
        num_rows = config.train.global_batch // groups.data.size()
        rows = torch.randint(2, config.model.vocab_size, (num_rows, 2, config.train.seq_len))
        engine.train_step(rows, config.model.num_loops, lr=1e-3)
        storages.peak = storages.held
        engine.train_step(rows, config.model.num_loops, lr=1e-3)
    return storages.peak


@pytest.mark.parametrize(
    "parallel", [{}, {"pipeline": 2}, {"tensor": 2}, {"tensor": 2, "sequence": True}], ids=lambda each: str(each)
)
def test_two_ranks_hold_in_a_step_what_the_plan_says(pool: RankPool, parallel: dict[str, Any]) -> None:
    model = {
        "vocab_size": 512, "hidden_size": 128, "num_attention_heads": 4, "ffn_size": 352, "num_loop_layers": 2,
        "num_loops": 3,
    }  # fmt: skip
    train = {"seq_len": 256, "micro_batch": 2, "global_batch": 8, "precision": "fp32"}
    config = RunConfig.model_validate({"model": model, "train": train, "parallel": parallel})
    measured = pool.run(peak_of_a_step, config, world_size=2)
    stages = make_plan(config, 2).stages
    assert [stage.total for stage in stages] == pytest.approx(measured[: len(stages)], rel=0.1)
