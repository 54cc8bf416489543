"""Silent errors when parallelisms meet: the kinds that NVIDIA/Megatron-LM#7452 lists of megatron-core, in our engine.

| finding | kind | here |
|---|---|---|
| 1 label smoothing | a statistic of a rank's part of the vocabulary | own loss with z-loss: `test_parity.py` |
| 4, 5 recomputation, padding mask | the wrong group of ranks | both on two tensor groups: `test_parity.py` |
| 8 attention sink | a split vector of which the gradient norm counts one part | `test_new_weights` below |
| 11 norm of a gated delta network | a whole weight whose gradient is a rank's part | `test_new_weights` below |

The modules of megatron-core that these findings are in are not used at all (`test_parts_of_megatron_that_are_used`).
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.model import layers, weights
from pretrain.model.config import ModelSection
from pretrain.model.loop.per_loop.this import InThisLoop
from pretrain.model.parallel_ops import ParallelOps
from pretrain.model.weight_kinds import PartialUnder, Weight, Weights
from pretrain.parallel import megatron
from tests.distributed.cases import RankReport, Reference, gradient_errors, make_rows, one_step, tiny_config, world_size
from tests.distributed.pool import RankPool
from tests.distributed.test_parity import TOLERANCE, Layout

PARTS = {
    "distributed", "optimizer", "optimizer.distrib_optimizer", "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules", "process_groups_config", "tensor_parallel", "tensor_parallel.mappings",
    "transformer", "transformer.enums",
}  # fmt: skip
"""Modules of megatron.core that we use. Compare a new one with the list of known errors first."""


class AdaptedFeedForward(layers.FeedForward):
    """SwiGLU with a low-rank step beside `up` (Hu et al. 2021), whose first factor [r, d] is whole on every rank and is
    used where the others are split; and a scale [f] of the inner columns, split with them."""

    def __init__(self, config: ModelSection, ops: ParallelOps, weights: Weights, is_selective: bool) -> None:
        super().__init__(config, ops, weights, is_selective)
        self.first, self.second, self.scale = (ops.parameter(weights[name]) for name in ("first", "second", "scale"))

    def forward(self, states: Tensor, this: InThisLoop) -> Tensor:
        states = self.to_split(states)
        assert self.gate is not None
        up = self.up(states) + states @ self.first.T @ self.second.T
        return self.down(self.activation(up * self.scale, self.gate(states)))


@contextmanager
def adapted(partial_under: PartialUnder) -> Iterator[None]:
    """Models are built with it, its first factor described so."""
    plain = weights.layer_weights

    def described(model: ModelSection, **choices: Any) -> dict[str, Weight]:
        factors: dict[str, Any] = {"init": "normal", "decays": True}
        return {
            **plain(model, **choices),
            "ffn.first": Weight(shape=(2, model.hidden_size), split=None, partial_under=partial_under, **factors),
            "ffn.second": Weight(shape=(model.ffn_size, 2), split=0, partial_under="never", **factors),
            "ffn.scale": Weight(shape=(model.ffn_size,), split=0, init="ones"),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "FeedForward", AdaptedFeedForward)
        patch.setattr(weights, "layer_weights", described)
        yield


def adapted_step(config: RunConfig, rows: Tensor, num_loops: int, partial_under: PartialUnder) -> RankReport:
    with adapted(partial_under):
        return one_step(config, rows, num_loops)


@pytest.mark.parametrize(
    "layout",
    [Layout(2, 1, 1), Layout(2, 1, 1, sequence=True), Layout(2, 2, 1), Layout(2, 1, 2, sequence=True)],
    ids=str,
)
def test_new_weights_are_reduced_and_counted_as_described(pool: RankPool, layout: Layout) -> None:
    """The gradient of a whole weight behind `to_split` is only this rank's part, and wrong where its description does
    not say so; the norm counts each number once, of whole and of split weights."""
    config = tiny_config(tensor=layout.tensor, pipeline=layout.pipeline, sequence=layout.sequence)
    rows = make_rows(4)
    with adapted("tensor"):
        reference = Reference(config=config, shake=True)
        _, _, norm = reference.backward(rows, 2)
    wanted, size = reference.gradients(), world_size(config, layout.data)
    assert all(wanted[f"loop.{n}.ffn.scale"].norm() > 1e-3 * norm for n in range(4))
    for partial_under in ("tensor", "never"):
        reports = pool.run(adapted_step, config, rows, 2, partial_under, world_size=size)
        errors = gradient_errors(reports, wanted)
        off = {name for name, error in errors.items() if error > TOLERANCE}
        assert off == {f"loop.{n}.ffn.first" for n in range(4) if partial_under == "never"}
        assert all(errors[name] > 1e5 * TOLERANCE for name in off)
        norms = [report.results[0].grad_norm for report in reports]
        assert (norms == pytest.approx([norm] * size, rel=TOLERANCE)) == (partial_under == "tensor")


def test_parts_of_megatron_that_are_used() -> None:
    """By the one module that may import it (a contract in pyproject.toml)."""
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(megatron))) if isinstance(node, ast.ImportFrom)]
    modules = {name.removeprefix("megatron.core.") for node in imports if (name := node.module or "")}
    assert {name for name in modules if name[0].islower()} - {"collections.abc", "contextlib", "typing"} == PARTS
