"""What tensor-parallel ranks compute again is what is counted: products that no gradient needs are not among it."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.run import RunConfig
from pretrain.model.count import train_flops_per_token
from tests.distributed.cases import SEQ_LEN, make_engine, make_rows, tiny_config
from tests.distributed.pool import RankPool

ROWS, LOOPS = 4, 2


def flops_of_a_step(config: RunConfig) -> int:
    engine, _ = make_engine(config)
    with FlopCounterMode(display=False) as counter:
        engine.train_step(make_rows(ROWS), LOOPS, 0.0)
    return counter.get_total_flops()


@pytest.mark.parametrize("recompute", ["selective", "loop", "layer"])
def test_tensor_parallel_ranks_compute_again_what_is_counted(pool: RankPool, recompute: str) -> None:
    plain, again = (tiny_config(tensor=2, train={"recompute": way}) for way in ("none", recompute))
    counts = [train_flops_per_token(each.model, SEQ_LEN, LOOPS, each.train.chosen_recompute) for each in (plain, again)]
    first, second = (pool.run(flops_of_a_step, each, world_size=2) for each in (plain, again))
    more = ROWS * SEQ_LEN * (counts[1] - counts[0]) // 2
    assert [found - kept for found, kept in zip(second, first, strict=True)] == [more] * 2
