"""Segments of several loops that are computed again, as the engine runs them: a step equals one process in fp64, and
gradients that are sent early are those that are sent at the end. And that all ranks choose alike."""

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.data.stream.labels import IGNORED
from tests.distributed.cases import (
    Reference,
    gradient_errors,
    make_engine,
    make_rows,
    one_step,
    tiny_config,
    world_size,
)
from tests.distributed.pool import RankPool
from tests.distributed.test_overlap import both
from tests.distributed.test_parity import TOLERANCE

MODEL: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loop_layers": 2}
LOOPS = {"injection": "add", "keys": "every", "keys_every": 3}
COUNTS = [9, 2, 16, 5]
"""Of each row: segments of three and of two loops."""


@pytest.mark.parametrize(
    "layout", [{}, {"tensor": 2, "sequence": True}, {"pipeline": 2}], ids=["one", "tensor", "pipeline"]
)
def test_a_step_of_rows_with_loops_of_their_own_equals_one_process(pool: RankPool, layout: dict[str, Any]) -> None:
    config = tiny_config(**layout, model={**MODEL, "loop": LOOPS}, train={"recompute": "segment", "micro_batch": 2})
    rows, reference = make_rows(4), Reference(config=config, shake=True)
    num_supervised = (rows[:, 1] != IGNORED).sum()
    for row, count in zip(rows.split(1), COUNTS, strict=True):
        total, *_ = reference.loss(row, count)
        (total * ((row[:, 1] != IGNORED).sum().double() / num_supervised)).backward()

    reports = pool.run(one_step, config, rows, COUNTS, world_size=world_size(config, 1))

    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys() and all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_overlap_changes_no_bit(pool: RankPool, precision: str) -> None:
    train = {"recompute": "segment", "precision": precision}
    config = tiny_config(model={**MODEL, "loop": LOOPS}, train=train, optimizer={"clip_grad_norm": 0.0})
    for ours, plain in pool.run(both, config, (8, 1, 9), None, world_size=2):
        assert ours.norms == pytest.approx(plain.norms, rel=1e-6)
        assert all(np.array_equal(a.values, b.values) for a, b in zip(ours.weights, plain.weights, strict=True))
        assert min(ours.early) > 1, "nothing was sent early"


def chosen(config: RunConfig) -> tuple[str, str, list[str]]:
    engine, _ = make_engine(config)
    return engine.model.recompute, engine.config.train.recompute, engine.notes


@pytest.mark.parametrize(
    ("gib", "way", "text"), [(None, "none", "recompute: none, the cheapest"), (1e-6, "layer", "recompute: none fits")]
)
def test_all_ranks_choose_alike(pool: RankPool, gib: float | None, way: str, text: str) -> None:
    """By what the machine has for each of them, or by what they are given."""
    config = tiny_config(pipeline=2, model=MODEL, train={"recompute": "auto", "memory_gib": gib})
    ranks = pool.run(chosen, config, world_size=2)
    assert ranks[0] == ranks[1] and ranks[0][:2] == (way, way)
    (note,) = ranks[0][2]
    assert note.startswith(text) and ("this machine, for 2 ranks" in note) == (gib is None)
