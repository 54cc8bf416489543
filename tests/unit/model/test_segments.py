"""Segments of several loops that are computed again: gradients, FLOPs and memory, and the size that holds least."""

from typing import Any

import pytest
import torch

from pretrain.model.config import ModelSection
from pretrain.model.count import train_flops_per_token
from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels import blocked_attention
from pretrain.model.loop.recurrence import Recurrence, Stage
from pretrain.model.loss import loss_sums
from pretrain.plan.memory import Activations
from tests.unit.model.test_count import SEQ_LEN, measured_flops
from tests.unit.model.test_model import LLAMA, assert_same, build, gradients, random_tokens
from tests.unit.plan.test_plan import config, measured_bytes

NINE: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loop_layers": 1, "num_loops": 9}
DESIGNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "injection": {"injection": "concat", "start": "noise", "injection_at": "every"},
    "lora": {"per_loop": "lora"},
    "streams": {"residual": "hyper"},
    "keys of the first": {"keys": "first"},
    "keys of every second": {"keys": "every", "keys_every": 2},
    "window": {"keys": "first", "keys_window": 3},
}
"""Segments are of three loops, so shared keys are read within the segment that computes them, and in later ones."""


def test_a_segment_has_the_size_that_holds_least() -> None:
    for num_layers, num_passes in ((1, 9), (1, 64), (2, 32), (3, 12), (4, 4), (12, 3)):
        model = ModelSection(num_loop_layers=num_layers, num_loops=num_passes)
        held = {size: -(-num_passes // size) + size * num_layers for size in range(1, num_passes + 1)}
        assert held[Recurrence(config=model).segment_size(num_passes)] == min(held.values())
    ring = Recurrence(config=ModelSection(num_loop_layers=2, num_loops=64), stage=Stage(index=0, count=2))
    assert ring.segment_size(64) == 1, "what enters the next loop comes from another stage"


def test_parts_are_all_passes_once() -> None:
    model = LoopedGPT(ModelSection.model_validate(LLAMA.model_dump() | NINE), 8, recompute="segment")
    assert model.parts(9, 0) == [range(3), range(3, 6), range(6, 9)]
    assert model.parts(9, 4) == [*(range(i, i + 1) for i in range(4)), range(4, 6), range(6, 8), range(8, 9)]
    assert model.parts(3, 4) == [range(1), range(1, 2), range(2, 3)]
    assert model.parts(9, 0, one_by_one=True) == [range(i, i + 1) for i in range(9)]
    with torch.no_grad():
        assert len(model.parts(9, 0)) == 9


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("backprop_loops", [None, 5])
def test_gradients_are_those_of_one_graph(name: str, backprop_loops: int | None) -> None:
    plain, segments = (build(LLAMA, **NINE, loop=DESIGNS[name], recompute=mode) for mode in ("none", "segment"))
    tokens, found = random_tokens(), []
    for model in (plain, segments):
        loss, _ = loss_sums(model, model(tokens, 9, backprop_loops=backprop_loops), tokens.roll(-1, 1))
        found.append((loss.detach(), gradients(model, loss)))
    assert torch.equal(found[0][0], found[1][0])
    assert_same(found[1][1], found[0][1], 1e-12)


@pytest.mark.parametrize(("injection", "backprop_loops"), [("none", None), ("concat", None), ("concat", 5)])
def test_flops_are_those_that_torch_counts(injection: str, backprop_loops: int | None) -> None:
    model = ModelSection.model_validate(LLAMA.model_dump() | NINE | {"loop": {"injection": injection}})
    counted = train_flops_per_token(model, SEQ_LEN, 9, "segment", backprop_loops=backprop_loops)
    measured = measured_flops(model, 9, backward=True, recompute="segment", backprop_loops=backprop_loops)
    assert measured == pytest.approx(counted, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_memory_is_that_which_torch_allocates(num_layers: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_attention, "SCRATCH_ELEMENTS", 2**14)
    model = {"num_loop_layers": num_layers, "num_loops": 25}
    run, loop = (
        config(model, train={"recompute": mode, "precision": precision, "seq_len": 128}) for mode in ("segment", "loop")
    )
    plan, of_loops = Activations(config=run), Activations(config=loop)
    kept, peak = measured_bytes(run)
    assert plan.peak(4, 25) == pytest.approx(kept, rel=0.1)
    assert plan.peak(4, 25) + plan.working == pytest.approx(peak, rel=0.1)
    assert plan.peak(4, 25) + plan.working < 0.75 * (of_loops.peak(4, 25) + of_loops.working)
