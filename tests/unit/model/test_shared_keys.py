"""Loops that attend to the keys and values of other loops (`model.loop.keys`), against a model whose projections are
told to repeat themselves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.generation.slots import SlotCache
from pretrain.model.config import ModelSection
from pretrain.model.count import cached_numbers, forward_flops_per_token
from pretrain.model.layers import KeyValueCache
from pretrain.model.loss import loss_sums
from pretrain.plan.partners import costs_of, partners
from pretrain.plan.plan import make_plan
from pretrain.plan.text import plan_rows
from tests.unit.model.test_model import LLAMA, SEQ, assert_same, build, gradients, random_tokens

SHARING: dict[str, dict[str, Any]] = {
    "first": {"keys": "first"}, "every second": {"keys": "every", "keys_every": 2},
    "every third": {"keys": "every", "keys_every": 3},
}  # fmt: skip
PERIODS = {"first": 99, "every second": 2, "every third": 3}
ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 4}
sharing = pytest.mark.parametrize("name", SHARING)


def repeating(module: Any, period: int) -> None:
    """Make a module answer what it answered in the loop that it shares with, whatever it is asked."""
    forward: Callable[[Tensor], Tensor] = module.forward
    answers: list[Tensor] = []

    def answer(states: Tensor) -> Tensor:
        answers.append(answers[-1] if len(answers) % period else forward(states))
        return answers[-1]

    module.forward = answer


def repeat_keys(model: Any, period: int) -> None:
    """The loops of a model, period by period, attend to the keys and values of the first of them."""
    for layer in model.loop.values():
        for module in (layer.attention.key, layer.attention.value):
            repeating(module, period)


@sharing
@pytest.mark.parametrize("recompute", ["none", "loop", "layer", "offload", "segment"])
def test_they_are_those_of_the_loop_that_computed_them(name: str, recompute: str) -> None:
    """Loss and every gradient, those of the keys through all loops that read them among them."""
    model, tokens = build(LLAMA, **ENDS, loop=SHARING[name], recompute=recompute), random_tokens()
    wanted = build(LLAMA, **ENDS)
    wanted.load_state_dict(model.state_dict())
    repeat_keys(wanted, PERIODS[name])
    losses = [loss_sums(each, each(tokens, 4), tokens.roll(-1, 1))[0] for each in (model, wanted)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    assert_same(gradients(model, losses[0]), gradients(wanted, losses[1]))
    assert not torch.allclose(losses[0], loss_sums(own := build(LLAMA, **ENDS), own(tokens, 4), tokens.roll(-1, 1))[0])


@sharing
@torch.no_grad()
def test_a_cache_holds_what_is_counted(name: str) -> None:
    model, tokens = build(LLAMA, **ENDS, loop=SHARING[name]), random_tokens()
    computing = {"first": 1, "every second": 2, "every third": 2}[name]
    assert model.config.cached_depth() == 2 + 2 * computing < model.config.effective_depth() == 10
    plain, slots = KeyValueCache(), SlotCache(model.config, num_slots=len(tokens), capacity=SEQ)
    slots.place(range(len(tokens)), [0] * len(tokens), [SEQ] * len(tokens), device=tokens.device)
    for cache in (plain, slots):
        model(tokens, 4, cache=cache)
    held = sum(each.numel() for pair in plain.entries.values() for each in pair)
    assert held == slots.num_held == tokens.numel() * cached_numbers(model.config)
    plain = ModelSection.model_validate(LLAMA.model_dump() | ENDS)
    saved = forward_flops_per_token(plain, SEQ) - forward_flops_per_token(model.config, SEQ)
    assert saved == 2 * (4 - computing) * 2 * 2 * 16 * 32  # two layers, keys and values of two heads of eight


def test_without_a_gradient_no_more_is_kept_than_will_be_read() -> None:
    model, tokens = build(LLAMA, **ENDS, loop=SHARING["every second"]), random_tokens()
    with torch.no_grad():
        context = model.context(tokens)
        states, carried = model.begin(tokens, context)
        for loop in range(4):
            states = model.run_loop(model.enter(states, carried, loop), context, loop)
            assert context.kept is not None and len(context.kept._kept) == 2


def test_the_partner_of_equal_work_may_have_more_cache() -> None:
    config = RunConfig.model_validate({"model": LLAMA.model_dump() | ENDS | {"loop": SHARING["first"]}})
    deep = next(each for each in partners(config) if each.name == "equal_inference_flops")
    ratios = costs_of(deep.config).over(costs_of(config))
    assert dict(plan_rows(make_plan(config, 1)))["cache"] == "256 bytes a token at 4 loops, of 4 layers"
    assert ratios["inference_flops"] == pytest.approx(1, abs=0.01) and ratios["cache_bytes"] == 10 / 4


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"model": {"loop": {"keys": "first", "per_loop": "lora"}}},
            "keys=first leaves the matrices that per_loop=lora",
        ),
        (
            {"model": {"num_loop_layers": 4, "loop": {"keys": "first"}, "loop_regulariser": {"block_size": 2}}},
            r"model\.loop\.keys=first is for a block that is shared by its loops",
        ),
        (
            {"model": {"num_loops": 4, "loop": {"keys": "first", "injection": "add"}}, "train": {"backprop_loops": 3}},
            r"train\.backprop_loops=3 with up to 4 loops can leave .* model\.loop\.keys=first: let it be at least 4",
        ),
        (
            {
                "model": {"num_loops": 4, "loop": {"keys": "every", "injection": "add"}},
                "train": {"backprop_loops": 2, "backprop_growth": {"start": 1}},
            },
            r"train\.backprop_loops=1 with up to 4 loops can leave .* at least 2",
        ),
    ],
)
def test_what_would_leave_weights_alone_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        RunConfig.model_validate(values)


def test_a_block_computes_keys_where_gradients_reach() -> None:
    model = {"num_loops": 4, "loop": {"keys": "every", "injection": "add"}}
    RunConfig.model_validate({"model": model, "train": {"backprop_loops": 2}})
