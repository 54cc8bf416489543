"""Every variant of the loop on any layout equals one process, in fp64: loss, gradient norm and every gradient.

Cases: every value, and every pair of values, of layout, start and injection, what differs between loops, loop count and
recomputation. The reference is plain autograd of `LoopedGPT.forward`.
"""

from itertools import cycle, product
from typing import Any

import pytest
import torch

from pretrain.model.loop.tables import INJECTIONS, PER_LOOP, STARTS
from tests.distributed.cases import Reference, gradient_errors, make_rows, one_step, tiny_config, world_size
from tests.distributed.pairwise import pairwise
from tests.distributed.pool import RankPool
from tests.distributed.test_parity import TOLERANCE, Layout

WITH_INPUT = [name for name in INJECTIONS if name != "none"]
BOUNDARIES = [
    *product(["prelude"], INJECTIONS, ["later"]),
    *((start, name, "every") for name, start in zip(WITH_INPUT, cycle(reversed(STARTS)))),
    ("noise", WITH_INPUT[0], "first"),
]
"""Start state, injection and the passes at which it acts: all of each."""
LOSSES: dict[str, dict[str, Any]] = {
    "last": {},
    "uniform": {"over": "every"},
    "linear": {"over": "every", "weights": "linear"},
    "given": {"over": "every", "weights": (1.0, 3.0)},
}
FACTORS: dict[str, list[Any]] = {
    "layout": [Layout(1, 1, 1), Layout(2, 1, 1, sequence=True), Layout(2, 2, 1), Layout(1, 2, 2), Layout(1, 4, 1)],
    "boundary": BOUNDARIES,
    "per_loop": list(PER_LOOP),
    "num_loops": [1, 2, 4],
    "recompute": ["none", "loop", "layer"],
    "residual_scale": ["one", "sqrt"],
    "loss": list(LOSSES),
}
CASES = pairwise(FACTORS, lambda **_: True)


@pytest.mark.parametrize("case", CASES, ids=["-".join(str(value) for value in case.values()) for case in CASES])
def test_a_step_equals_one_process(pool: RankPool, case: dict[str, Any]) -> None:
    layout: Layout = case["layout"]
    loop = dict(zip(("start", "injection", "injection_at"), case["boundary"], strict=True))
    loop |= {key: case[key] for key in ("per_loop", "residual_scale")}
    config = tiny_config(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        sequence=layout.sequence,
        model={
            "num_prelude_layers": 1,
            "num_coda_layers": 1,
            "num_loops": 3,
            "loop": loop,
        },
        train={"recompute": case["recompute"], "loop_loss": LOSSES[case["loss"]], "z_loss_weight": 0.1},
    )
    rows = make_rows(4 * layout.data)
    reference = Reference(config=config, shake=True)
    nll, _, norm = reference.backward(rows, case["num_loops"])

    reports = pool.run(one_step, config, rows, case["num_loops"], world_size=world_size(config, layout.data))

    for report in reports:
        (result,) = report.results
        assert not result.skipped
        assert (result.objective is None) == (case["loss"] == "last")
        assert result.loss == pytest.approx(nll, rel=TOLERANCE)
        assert result.grad_norm == pytest.approx(norm, rel=TOLERANCE)
    # what a step does not use, as the weights of later loops, has no gradient
    wanted = {name: torch.zeros_like(weight) for name, weight in reference.weights().items()} | reference.gradients()
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors
