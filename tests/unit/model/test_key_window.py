"""Loops that read the first loop's keys and a window of their own (`model.loop.keys_window`), against the definition,
and against models that are what the gate makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.generation.slots import SlotCache
from pretrain.model.count import cached_numbers, window_numbers
from pretrain.model.gpt import LoopedGPT
from pretrain.model.kernels.window_attention import newest_visible, window_attention
from pretrain.model.layers import KeyValueCache
from pretrain.plan.partners import costs_of
from pretrain.plan.plan import make_plan
from pretrain.plan.text import plan_rows
from tests.unit.model.test_model import LLAMA, SEQ, build, random_tokens

ENDS: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 3}
WINDOW = {"keys": "first", "keys_window": 3}


def by_definition(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, window: int) -> Tensor:
    """Query by query: a softmax over the newest `window` of the keys that it may look at."""
    group, (batch, heads, seq, width) = queries.shape[1] // keys.shape[1], queries.shape
    mixed = torch.empty_like(queries)
    for row in range(batch):
        for query in range(seq):
            seen = mask[row, 0, query].nonzero().flatten()[-window:]
            for head in range(heads):
                scores = keys[row, head // group, seen] @ queries[row, head, query] / width**0.5
                mixed[row, head, query] = scores.softmax(0) @ values[row, head // group, seen]
    return mixed


def causal(num_queries: int, num_keys: int) -> Tensor:
    return torch.ones(2, 1, num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)


def documents(seq: int) -> Tensor:
    numbers = torch.arange(seq)[None] // torch.tensor([[4], [7]])
    return causal(seq, seq) & (numbers[:, :, None] == numbers[:, None])[:, None]


def padded(seq: int) -> Tensor:
    """Two tokens of padding on the left of the first row, which look at themselves."""
    is_token = torch.arange(seq) >= torch.tensor([[2], [0]])
    return causal(seq, seq) & is_token[:, None, None] | torch.eye(seq, dtype=torch.bool)


@pytest.mark.parametrize("window", [1, 3, 5, 40])
@pytest.mark.parametrize("seq", [1, 7, 12, 13])
@pytest.mark.parametrize("kind", ["none", "documents", "padded", "added"])
def test_a_window_is_the_newest_keys_that_are_visible(window: int, seq: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (torch.randn(2, h, seq, 4, generator=generator).double() for h in (4, 2, 2))
    visible = {"none": causal(seq, seq), "documents": documents(seq)}.get(kind, padded(seq))
    mask = None if kind == "none" else newest_visible(visible, window)
    if kind == "added":
        mask = newest_visible(torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf), window)
    wanted = by_definition(queries, keys, values, visible, window)
    torch.testing.assert_close(window_attention(queries, keys, values, mask, window), wanted)


def with_gate(model: LoopedGPT, log_odds: float) -> LoopedGPT:
    with torch.no_grad():
        for number in model.loop:
            model.get_parameter(f"loop.{number}.attention.window.offset").fill_(log_odds)
    return model


@pytest.mark.parametrize(("log_odds", "loop"), [(60.0, {"keys": "first"}), (-60.0, {})], ids=["first", "own"])
def test_the_gate_chooses_between_the_first_loops_keys_and_all_of_the_own(log_odds: float, loop: Any) -> None:
    """A window as long as the sequence, and a gate that is shut on one side."""
    model = with_gate(build(LLAMA, **ENDS, loop=WINDOW | {"keys_window": SEQ}), log_odds)
    wanted, tokens = build(LLAMA, **ENDS, loop=loop), random_tokens()
    wanted.load_state_dict({name: value for name, value in model.state_dict().items() if ".window." not in name})
    torch.testing.assert_close(model(tokens), wanted(tokens), rtol=1e-12, atol=1e-12)


def test_a_token_is_seen_through_the_window_alone() -> None:
    """With gates shut to the first loop, a later loop sees three tokens back and no further."""
    model, tokens = with_gate(build(LLAMA, **ENDS, loop=WINDOW), -60.0), random_tokens()[:1]
    context = model.context(tokens)
    states, carried = model.begin(tokens, context)
    first = model.run_pass(states, carried, context, 0)
    changed = first.clone()
    changed[4] += 1
    before, after = (model.run_pass(each, carried, context, 1) for each in (first, changed))
    differs = (before != after).any(-1).tolist()
    assert differs == [place in range(4, 4 + 1 + 2 * 2) for place in range(SEQ)]  # two layers of two tokens back


@torch.no_grad()
def test_a_cache_holds_no_more_than_windows_see() -> None:
    model, tokens = build(LLAMA, **ENDS, loop=WINDOW), random_tokens()
    assert window_numbers(model.config) == 2 * 2 * 8 * 2 * 2 * 3  # k and v, two heads of eight, two layers, two loops
    plain, slots = KeyValueCache(), SlotCache(model.config, num_slots=len(tokens), capacity=SEQ)
    whole, start, num_rows = model(tokens).view(*tokens.shape, -1), 0, len(tokens)
    for part in tokens.split(SEQ - 2, dim=1):
        stop = start + part.shape[1]
        slots.place(range(num_rows), [start] * num_rows, [stop - start] * num_rows, device=tokens.device)
        model(part, cache=plain)
        states = model(part, positions=torch.arange(start, stop)[None], cache=slots).view(*part.shape, -1)
        torch.testing.assert_close(states, whole[:, start:stop], rtol=0, atol=1e-12)
        start = stop
    held = sum(each.numel() for pair in plain.entries.values() for each in pair)
    assert held == slots.num_held
    assert held == tokens.numel() * cached_numbers(model.config) + num_rows * window_numbers(model.config)


def test_the_plan_and_the_costs_count_it() -> None:
    config = RunConfig.model_validate({"model": LLAMA.model_dump() | ENDS | {"loop": WINDOW}})
    assert dict(plan_rows(make_plan(config, 1)))["cache"] == (
        "256 bytes a token at 3 loops, of 4 layers, and 768 a sequence for windows"
    )
    assert costs_of(config).cache_bytes == 256 + 768 / config.train.seq_len


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keys=last cannot be trained exactly: .* choose every, or first"):
        RunConfig.model_validate({"model": {"loop": {"keys": "last"}}})
    RunConfig.model_validate({"model": {"loop": WINDOW | {"per_loop": "lora"}}})  # its matrices for keys have a use
    looped = {"num_loops": 4, "loop": WINDOW | {"injection": "add"}}
    RunConfig.model_validate({"model": looped, "train": {"backprop_loops": 1}})
