"""Dropout by a hash: the right share, no pattern, the mean unchanged, and parts of a pass alike the whole."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretrain.model.dropout import SITES, Dropout, Site

ROWS, LENGTH, WIDTH, RATE = 8, 32, 64, 0.1


def dropout_of(rate: float = RATE, rows: int = ROWS, length: int = LENGTH) -> Dropout:
    keys = torch.randint(-(2**31), 2**31, (rows,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    positions = torch.arange(length)[None]
    return Dropout(rate=rate, rows=keys, positions=positions, keys=positions)


def is_dropped(dropout: Dropout, site: Site, application: int = 0) -> Tensor:
    """[rows, length, width], 1 where it is."""
    ones = torch.ones(len(dropout.rows) * dropout.positions.shape[1], WIDTH, dtype=torch.float64)
    return (dropout.states(ones, site, application) == 0).double().view(len(dropout.rows), -1, WIDTH)


def probabilities(dropout: Dropout, num_heads: int, first_head: int = 0) -> Tensor:
    """[b, h, s, keys] of attention whose scores are all equal, by values that are one-hot in the key; no mask."""
    rows, length, keys = len(dropout.rows), dropout.positions.shape[1], dropout.keys.shape[1]
    queries, same = (torch.zeros(rows, num_heads, n, keys, dtype=torch.float64) for n in (length, keys))
    values = torch.eye(keys, dtype=torch.float64).expand(rows, num_heads, keys, keys)
    return dropout.attend(queries, same, values, torch.ones(1, 1, 1, keys, dtype=torch.bool), first_head, 3)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("site", SITES)
def test_the_share_of_what_is_dropped_is_the_rate(site: Site, rate: float) -> None:
    dropped = is_dropped(dropout_of(rate), site)
    if site == "probabilities":
        dropped = (probabilities(dropout_of(rate), 4) == 0).double()
    error = math.sqrt(rate * (1 - rate) / dropped.numel())
    assert abs(dropped.mean() - rate) < 4 * error


@given(first=st.integers(0, 400), second=st.integers(0, 400))
def test_places_of_the_network_are_independent(first: int, second: int) -> None:
    """Applications and sites, the rows, positions and channels of one: the share dropped in both is rate²."""
    one = is_dropped(dropout_of(0.3), SITES[first % 4], first // 4)
    other = is_dropped(dropout_of(0.3), SITES[second % 4], second // 4)
    shifted = [one.roll(shifts, dim) for dim in range(3) for shifts in (1, 2, 4)]
    for compared in [*shifted, *([other] if first != second else [])]:
        assert abs((one * compared).mean() - 0.09) < 5 * math.sqrt(0.09 * 0.91 / one.numel())


def test_heads_queries_and_keys_are_independent() -> None:
    dropped = (probabilities(dropout_of(0.3), 4) == 0).double()
    for dim in range(4):
        for shift in (1, 2):
            both = (dropped * dropped.roll(shift, dim)).mean()
            assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / dropped.numel())


def test_what_stays_is_scaled_so_that_the_mean_is_kept_and_the_gradient_follows() -> None:
    states = torch.randn(ROWS * LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    dropped = dropout_of().states(states, "ffn", 5)
    dropped.sum().backward()
    assert states.grad is not None
    assert set(states.grad.unique().tolist()) == {0.0, 1 / (1 - RATE)}
    torch.testing.assert_close(dropped, states * states.grad)


def test_a_part_of_a_pass_is_dropped_as_in_the_whole() -> None:
    """Rows alone, positions alone, heads of one rank alone."""
    whole = dropout_of()
    states = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64)
    wanted = whole.states(states.flatten(0, 1), "attention", 2).view_as(states)
    part = replace(whole, rows=whole.rows[3:5], positions=torch.arange(7, 20)[None])
    found = part.states(states[3:5, 7:20].flatten(0, 1), "attention", 2).view(2, 13, WIDTH)
    assert torch.equal(found, wanted[3:5, 7:20])
    heads = probabilities(whole, 4)
    assert torch.equal(probabilities(whole, 2, first_head=2), heads[:, 2:])
    assert torch.equal(probabilities(part, 4), heads[3:5, :, 7:20])


def test_without_dropped_probabilities_attention_is_that_of_the_model() -> None:
    """At a rate that drops nothing of this size, with grouped heads, causal and with a mask added."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(2, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    dropout = dropout_of(1e-9, rows=2, length=5)
    bias = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    for mask in (None, bias, bias == 0):
        torch.testing.assert_close(dropout.attend(queries, keys, values, mask, 0, 0), wanted)
