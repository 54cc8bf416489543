"""What the plan says that an evaluation holds, against what the stages of a pipeline allocate."""

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.model.kernels import blocked_attention
from pretrain.parallel.groups import make_groups
from pretrain.plan.plan import make_plan
from tests.distributed.pool import RankPool
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
