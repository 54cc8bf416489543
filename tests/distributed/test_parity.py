"""A step on any layout equals one process: loss, gradient norm and every gradient, in fp64.

The reference is plain autograd of `LoopedGPT.forward`, so the engine is tested on one rank as well. Cases: every value,
and every pair of values, of layout, depth, micro-batches and the options below appears.
"""

from itertools import combinations, product
from typing import Any, NamedTuple

import pytest

from pretrain.config.run import RunConfig
from tests.distributed.cases import FAMILIES, Reference, gradient_errors, make_rows, one_step, tiny_config, world_size
from tests.distributed.pairwise import pairwise
from tests.distributed.pool import RankPool

TOLERANCE = 1e-10


class Layout(NamedTuple):
    tensor: int
    pipeline: int
    data: int
    sequence: bool = False

    def __str__(self) -> str:
        return f"tp{self.tensor}{'s' if self.sequence else ''}pp{self.pipeline}dp{self.data}"


LAYOUTS = [Layout(t, p, d) for t in (1, 2) for p in (1, 2) for d in (1, 2) if t * p * d <= 4] + [Layout(1, 4, 1)]
LAYOUTS += [layout._replace(sequence=True) for layout in LAYOUTS if layout.tensor == 2]
FACTORS: dict[str, list[Any]] = {
    "layout": LAYOUTS,
    "depth": ["L1", "L2", "L3", "L7", "blocks2", "blocks3"],
    "micro_batches": [2, 3, 4, 5],
    "family": list(FAMILIES),
    "ends": [0, 1, 2],
    "injection": ["none", "add"],
    "z_loss": [0.0, 1e-3],
    "documents": [False, True],
    "recompute": ["none", "loop", "layer", "offload", "segment", "selective"],
}


def _allowed(layout: Layout, micro_batches: int, **_: Any) -> bool:
    return micro_batches >= layout.pipeline and (micro_batches != 4 or layout.pipeline == 4)


CASES = pairwise(FACTORS, _allowed)


def _config(case: dict[str, Any]) -> RunConfig:
    layout: Layout = case["layout"]
    model = {
        "num_prelude_layers": case["ends"],
        "num_coda_layers": min(case["ends"], 1),
        "loop": {"injection": case["injection"]},
    }
    if case["depth"].startswith("blocks"):
        num_blocks = int(case["depth"][-1])
        model |= {"num_loop_layers": 4 * num_blocks, "loop_regulariser": {"weight": 0.5, "block_size": 4}}
    return tiny_config(
        case["family"],
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        sequence=layout.sequence,
        model=model,
        train={"recompute": case["recompute"], "z_loss_weight": case["z_loss"]},
        document_mask=case["documents"],
    )


def _loops(case: dict[str, Any]) -> int:
    return int(case["depth"][1:]) if case["depth"].startswith("L") else 1


@pytest.mark.parametrize("case", CASES, ids=["-".join(str(value) for value in case.values()) for case in CASES])
def test_a_step_equals_one_process(pool: RankPool, case: dict[str, Any]) -> None:
    layout: Layout = case["layout"]
    config, num_loops = _config(case), _loops(case)
    rows = make_rows(case["micro_batches"] * layout.data)
    reference = Reference(config=config, shake=True)
    nll, pull, norm = reference.backward(rows, num_loops)
    wanted = reference.gradients()

    reports = pool.run(one_step, config, rows, num_loops, world_size=world_size(config, layout.data))

    for report in reports:
        (result,) = report.results
        assert not result.skipped
        assert result.loss == pytest.approx(nll, rel=TOLERANCE)
        assert result.regularisation == pytest.approx(pull, rel=TOLERANCE)
        assert result.grad_norm == pytest.approx(norm, rel=TOLERANCE)
    errors = gradient_errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors


def test_the_comparison_would_see_a_missing_gradient() -> None:
    """Every weight has a gradient far above the tolerance, but for key biases, on which softmax does not depend."""
    for family in FAMILIES:
        reference = Reference(
            config=tiny_config(family, model={"num_prelude_layers": 1, "num_coda_layers": 1}), shake=True
        )
        reference.backward(make_rows(2), 3)
        largest = {name: gradient.abs().max().item() for name, gradient in reference.gradients().items()}
        assert min(size for name, size in largest.items() if not name.endswith("key.bias")) > 1e5 * TOLERANCE * max(
            largest.values()
        )


def test_every_pair_of_values_appears() -> None:
    for (one, ones), (other, others) in combinations(FACTORS.items(), 2):
        missing = set(product(ones, others)) - {(case[one], case[other]) for case in CASES}
        assert all((one, other) == ("layout", "micro_batches") and not _allowed(*pair) for pair in missing)
