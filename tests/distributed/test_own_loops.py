"""Variants of the loop of a user's file, one of each kind, equal one process on any layout, in fp64."""

from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from tests.distributed.cases import Reference, gradient_errors, make_rows, one_step, tiny_config, world_size
from tests.distributed.pool import RankPool
from tests.distributed.test_parity import TOLERANCE
from tests.support.own_loops import LOOP


def config_of(layout: dict[str, Any]) -> RunConfig:
    model = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 3, "loop": LOOP}
    return tiny_config(**layout, model=model)


@pytest.mark.parametrize(
    ("layout", "data"),
    [
        ({"pipeline": 2}, 2),
        ({"tensor": 2, "pipeline": 2, "sequence": True}, 1),
        ({"tensor": 2}, 1),
        ({"pipeline": 4}, 1),
    ],
)
@pytest.mark.parametrize("num_loops", [2, 4])
def test_a_step_equals_one_process(pool: RankPool, layout: dict[str, Any], data: int, num_loops: int) -> None:
    config, rows = config_of(layout), make_rows(4 * data)
    reference = Reference(config=config, shake=True)
    nll, _, norm = reference.backward(rows, num_loops)
    assert {"injection.turn.weight", "loop.0.per_loop.volume"} <= reference.weights().keys()
    for report in (reports := pool.run(one_step, config, rows, num_loops, world_size=world_size(config, data))):
        assert report.results[0].loss == pytest.approx(nll, rel=TOLERANCE)
        assert report.results[0].grad_norm == pytest.approx(norm, rel=TOLERANCE)
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys() and max(errors.values()) <= TOLERANCE, errors
