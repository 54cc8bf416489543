"""Counts against the real model: parameters name by name, FLOPs against torch's own counter."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config.run import RunConfig
from pretrain.model.config import ModelSection, Recompute
from pretrain.model.count import (
    Outputs,
    count,
    count_parameters,
    forward_flops_per_token,
    head_flops,
    layer_flops,
    train_flops_per_token,
)
from pretrain.model.gpt import LoopedGPT
from pretrain.model.loop_loss import ShortRun
from pretrain.model.loss import loss_sums
from pretrain.model.weights import layer_weights
from pretrain.plan.plan import make_plan
from pretrain.plan.text import plan_rows
from tests.support.every_loop import loss_of_every_loop
from tests.support.learned_injection import learned_injection, with_learned_injection
from tests.support.loop_designs import MODELS

SEQ_LEN = 32
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "ffn_size": 80, "num_loop_layers": 2}
GPT2 = {"norm": "layer", "positions": "learned", "activation": "gelu", "bias": "all", "tied_head": True}
SHAPES = {
    "llama": {},
    "grouped queries": {"num_key_value_heads": 2},
    "gpt-2": GPT2,
    "gpt-2 with a head of its own": {**GPT2, "tied_head": False},
    "qwen2": {"bias": "qkv", "num_key_value_heads": 2},
    "qwen3": {"qk_norm": "head", "head_size": 12, "num_key_value_heads": 2},
    "olmo": {"norm": "plain"},
    "olmo2": {"qk_norm": "all", "norm_place": "after"},
    "ouro": {"norm_place": "both"},
    "huginn": {"norm_place": "around"},
    "post-norm": {"norm_place": "sum"},
    "shared keys": {"num_key_value_heads": 2, "loop": {"keys": "every"}},
    "prelude and coda": {"num_prelude_layers": 1, "num_coda_layers": 2, "loop": {"injection": "add"}},
    "blocks": {"num_loop_layers": 6, "loop_regulariser": {"block_size": 2}},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def section(shape: dict) -> ModelSection:
    return ModelSection.model_validate({**SMALL, **shape})


def build(model: ModelSection, recompute: str = "none") -> LoopedGPT:
    built = LoopedGPT(model, SEQ_LEN, recompute=recompute)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(0.01)
    return built


def measured_flops(
    model: ModelSection,
    num_loops: int,
    *,
    backward: bool,
    recompute: str = "none",
    outputs: Outputs = "last",
    backprop_loops: int | None = None,
) -> float:
    """FLOPs per token by torch's counter, on two sequences. With a mask, attention is the unfused kernel, which it can
    see on a CPU."""
    built = build(model, recompute)
    tokens = torch.zeros(2, SEQ_LEN, dtype=torch.long)
    mask = torch.ones(1, 1, SEQ_LEN, SEQ_LEN, dtype=torch.bool).tril()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        if outputs != "last":
            short = ShortRun(last_loop=1, weight=0.1, consistency_weight=0.1) if outputs == "two" else None
            loss = loss_of_every_loop(built, tokens, num_loops, mask, short)
        else:
            loss, _ = loss_sums(built, built(tokens, num_loops, mask=mask, backprop_loops=backprop_loops), tokens)
        if backward:
            loss.backward()
    return counter.get_total_flops() / tokens.numel()


@shapes
def test_parameters_are_those_of_the_module(shape: dict) -> None:
    model = section(shape)
    built = build(model)
    parts = Counter[str]()
    for name, parameter in built.named_parameters():  # a tied weight appears once
        parts[name.split(".")[0].removeprefix("position_")] += parameter.numel()
    assert count_parameters(model, SEQ_LEN) == parts


@shapes
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_flops_are_those_that_torch_counts(shape: dict, num_loops: int, backward: bool) -> None:
    model = section(shape)
    num_loops = 1 if model.num_blocks > 1 else num_loops
    counted = (train_flops_per_token if backward else forward_flops_per_token)(model, SEQ_LEN, num_loops)
    assert measured_flops(model, num_loops, backward=backward) == pytest.approx(counted, rel=0.001)


@pytest.mark.parametrize("recompute", ["selective", "loop", "layer", "offload", "segment"])
def test_recomputed_flops_are_those_that_torch_counts(recompute: str) -> None:
    model = section(SHAPES["prelude and coda"])
    counted = train_flops_per_token(model, SEQ_LEN, 3, recompute)  # type: ignore[arg-type]
    assert (counted > train_flops_per_token(model, SEQ_LEN, 3)) == (recompute != "selective")
    assert measured_flops(model, 3, backward=True, recompute=recompute) == pytest.approx(counted, rel=0.001)


NORM_PLACES: dict[str, dict[str, Any]] = {place: {"norm_place": place} for place in ("after", "both", "around", "sum")}
OF_LOOPS = {name: fields for name, fields in MODELS.items() if name != "plain"} | {
    f"{injection} into {start}": {"loop": {"injection": injection, "injection_at": "every", "start": start}}
    for injection, start in (("concat", "noise"), ("gated", "zeros"))
}


@pytest.mark.parametrize("shape", (NORM_PLACES | OF_LOOPS).values(), ids=[*NORM_PLACES, *OF_LOOPS])
def test_recomputed_flops_of_any_design_are_those_that_torch_counts(shape: dict[str, Any]) -> None:
    """Each loop that has a gradient is computed again, up to the last tensor that it needs."""
    model = section({**SHAPES["prelude and coda"], **shape})
    for recompute in ("none", "selective", "loop", "layer", "offload", "segment"):
        counted = train_flops_per_token(model, SEQ_LEN, 3, recompute)
        assert measured_flops(model, 3, backward=True, recompute=recompute) == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("recompute", ["none", "loop", "layer", "offload", "segment"])
def test_keys_of_a_loop_without_gradient_get_none(recompute: Recompute) -> None:
    model = section({**SHAPES["prelude and coda"], "loop": {"keys": "every", "injection": "add"}})
    counted = train_flops_per_token(model, SEQ_LEN, 5, recompute, backprop_loops=2)
    measured = measured_flops(model, 5, backward=True, recompute=recompute, backprop_loops=2)
    assert measured == pytest.approx(counted, rel=1e-4)


@pytest.mark.parametrize("recompute", ["none", "loop", "layer", "offload", "segment"])
@pytest.mark.parametrize("outputs", ["two", "every"])
def test_a_loss_of_more_than_the_last_loop_is_counted(recompute: str, outputs: Outputs) -> None:
    model = section(SHAPES["prelude and coda"])
    counted = train_flops_per_token(model, SEQ_LEN, 3, recompute, outputs=outputs)  # type: ignore[arg-type]
    measured = measured_flops(model, 3, backward=True, recompute=recompute, outputs=outputs)
    assert measured == pytest.approx(counted, rel=0.001)


@pytest.mark.parametrize("recompute", ["none", "loop", "layer", "offload", "segment"])
@pytest.mark.parametrize("loop", [{"injection": "concat", "injection_at": "every"}, {"injection": "concat"}])
def test_truncated_flops_are_those_that_torch_counts(recompute: Recompute, loop: dict) -> None:
    model = section({**SHAPES["prelude and coda"], "loop": loop})
    for num_loops, backprop_loops in ((4, 1), (4, 3), (2, 3)):
        counted = train_flops_per_token(model, SEQ_LEN, num_loops, recompute, backprop_loops=backprop_loops)
        assert (counted < train_flops_per_token(model, SEQ_LEN, num_loops, recompute)) == (backprop_loops < num_loops)
        measured = measured_flops(model, num_loops, backward=True, recompute=recompute, backprop_loops=backprop_loops)
        assert measured == pytest.approx(counted, rel=0.001)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_an_injection_with_weights_is_counted(backward: bool) -> None:
    """It is described with itself alone; counts, plan and the printed table read it there."""
    run = RunConfig.model_validate({"model": {**SMALL, "num_loops": 3}, "train": {"seq_len": SEQ_LEN}})
    run = run.model_copy(update={"parallel": run.parallel.model_copy(update={"pipeline": 2})})
    with learned_injection():
        plain, plan = make_plan(run, 2), make_plan(with_learned_injection(run), 2)
        model = plan.config.model
        matrix, extra = 32 * 32, 32 * 32 + 32
        assert plan.parameters == {**plain.parameters, "injection": extra}
        for stage, (injected, usual) in enumerate(zip(plan.stages, plain.stages, strict=True)):
            is_first = stage == 0
            assert injected.parameters - usual.parameters == is_first * extra
            assert injected.forward_flops - usual.forward_flops == is_first * 3 * 2 * matrix
        assert " + injection 1.06 k + loop " in dict(plan_rows(plan))["parameters"]
        counted = (train_flops_per_token if backward else forward_flops_per_token)(model, SEQ_LEN)
        assert measured_flops(model, 3, backward=backward) == pytest.approx(counted, rel=0.001)
        assert counted == pytest.approx(
            (train_flops_per_token if backward else forward_flops_per_token)(run.model, SEQ_LEN)
            + (3 if backward else 1) * 3 * 2 * matrix
        )


def test_a_loop_costs_flops_but_no_parameters() -> None:
    looped, deep = section({"num_loops": 5}), section({"num_loop_layers": 10})
    assert forward_flops_per_token(looped, SEQ_LEN) == forward_flops_per_token(deep, SEQ_LEN)
    assert count_parameters(looped, SEQ_LEN) == count_parameters(section({}), SEQ_LEN)
    assert forward_flops_per_token(looped, SEQ_LEN) == 10 * layer_flops(looped, SEQ_LEN) + head_flops(looped)


def test_tensor_parallel_ranks_hold_the_split_weights_once_and_the_others_each() -> None:
    weights = layer_weights(section(GPT2)).values()
    whole = sum(weight.numel for weight in weights if weight.split is None)
    assert whole == (4 + 2) * 32  # two LayerNorms, and the biases of the two projections into the residual stream
    assert 2 * count(weights, 2) == count(weights) + whole
