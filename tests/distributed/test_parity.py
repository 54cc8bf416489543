"""A step on any layout equals one process: loss, gradient norm and every gradient, in fp64.

The reference is plain autograd of `LoopedGPT.forward`, so the engine is tested on one rank as well. Cases: every value,
and every pair of values, of layout, depth, micro-batches and the options below appears.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import Tensor

from pretrain.config.model import ModelSection
from pretrain.config.run import RunConfig
from pretrain.model import layers, weights
from pretrain.model.parallel_ops import ParallelOps
from pretrain.model.weight_kinds import PartialUnder, Weight, Weights
from tests.distributed.cases import FAMILIES, RankReport, Reference, make_rows, one_step, tiny_config, world_size
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
    "recompute": ["none", "loop", "layer"],
}


def _allowed(layout: Layout, micro_batches: int, **_: Any) -> bool:
    return micro_batches >= layout.pipeline and (micro_batches != 4 or layout.pipeline == 4)


CASES = pairwise(FACTORS, _allowed)


def _config(case: dict[str, Any]) -> RunConfig:
    layout: Layout = case["layout"]
    model = {
        "num_prelude_layers": case["ends"],
        "num_coda_layers": min(case["ends"], 1),
        "input_injection": case["injection"],
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
    errors = _errors(reports, wanted)
    assert errors.keys() == wanted.keys()
    assert all(error <= TOLERANCE for error in errors.values()), errors


def _errors(reports: Sequence[RankReport], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each gradient on any rank, over the largest entry of all gradients."""
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    errors: dict[str, float] = {}
    for part in (part for report in reports for part in report.gradients):
        error = np.abs(part.values - part.of(wanted[part.name]).numpy()).max() / largest
        errors[part.name] = max(errors.get(part.name, 0.0), float(error))
    return errors


class AdaptedFeedForward(layers.FeedForward):
    """SwiGLU with a low-rank step beside `up` (Hu et al. 2021): its first factor [r, d] is whole on every rank and is
    used where the others are split."""

    def __init__(self, config: ModelSection, ops: ParallelOps, weights: Weights) -> None:
        super().__init__(config, ops, weights)
        self.first, self.second = (ops.parameter(weights[name]) for name in ("first", "second"))

    def forward(self, states: Tensor) -> Tensor:
        states = self.to_split(states)
        assert self.gate is not None
        up = self.up(states) + states @ self.first.T @ self.second.T
        return self.down(self.activation(up, self.gate(states)))


@contextmanager
def adapted(partial_under: PartialUnder) -> Iterator[None]:
    """Models are built with it, its first factor described so."""
    plain = weights.layer_weights

    def described(model: ModelSection) -> dict[str, Weight]:
        factors: dict[str, Any] = {"init": "normal", "decays": True}
        return {
            **plain(model),
            "ffn.first": Weight(shape=(2, model.hidden_size), split=None, partial_under=partial_under, **factors),
            "ffn.second": Weight(shape=(model.ffn_size, 2), split=0, partial_under="never", **factors),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "FeedForward", AdaptedFeedForward)
        patch.setattr(weights, "layer_weights", described)
        yield


def adapted_step(config: RunConfig, rows: Tensor, num_loops: int, partial_under: PartialUnder) -> RankReport:
    with adapted(partial_under):
        return one_step(config, rows, num_loops)


@pytest.mark.parametrize("layout", [Layout(2, 1, 1), Layout(2, 1, 1, sequence=True), Layout(2, 2, 1)], ids=str)
def test_a_new_weight_that_every_rank_holds_is_reduced_as_described(pool: RankPool, layout: Layout) -> None:
    """The gradient of a weight behind `to_split` is only this rank's part, and wrong where its description does not say
    so."""
    config = tiny_config(tensor=layout.tensor, pipeline=layout.pipeline, sequence=layout.sequence)
    rows = make_rows(3)
    with adapted("tensor"):
        reference = Reference(config=config, shake=True)
        reference.backward(rows, 2)
    wanted, size = reference.gradients(), world_size(config)
    for partial_under in ("tensor", "never"):
        errors = _errors(pool.run(adapted_step, config, rows, 2, partial_under, world_size=size), wanted)
        off = {name for name, error in errors.items() if error > TOLERANCE}
        assert off == {f"loop.{n}.ffn.first" for n in range(4) if partial_under == "never"}
        assert all(errors[name] > 1e5 * TOLERANCE for name in off)


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
