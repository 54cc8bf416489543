"""Jacobi's iteration against the sequential latent forward: equal with enough passes, exact as far as it has come with
fewer."""

from typing import Any

import pytest
import torch

from finetune.latent.jacobi import Jacobi
from finetune.latent.sequential import Sequential
from tests.support.latent_cases import SHAPES, assert_same_gradients, gradients, loss_of, make_batch, num_slots_of
from tests.unit.model.test_model import GPT2, LLAMA, build


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_enough_passes_are_the_sequential_method(family: Any, num_loops: int, shape: str, dropout: float) -> None:
    model = build(family, num_prelude_layers=1, num_coda_layers=1, loop={"injection": "add"})
    batch = make_batch(*SHAPES[shape], dropout=dropout)
    num_slots = num_slots_of(batch)
    states = Sequential().states(model, batch, num_slots, num_loops)
    real = torch.arange(batch.tokens.shape[1]) >= batch.first_token[:, None]
    wanted = loss_of(model, states.flatten(0, 1), batch.labels.flatten())
    for num_passes in {max(num_slots - 1, 0), num_slots + 1}:
        parallel = Jacobi(num_passes).states(model, batch, num_slots, num_loops)
        torch.testing.assert_close(parallel[real], states[real], rtol=1e-10, atol=1e-10)
        loss = loss_of(model, parallel.flatten(0, 1), batch.labels.flatten())
        torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
        assert_same_gradients(gradients(model, loss), gradients(model, wanted))


def test_each_pass_makes_one_more_thought_exact() -> None:
    model, batch = build(LLAMA, num_loops=2), make_batch([2, 3], [6, 6], [2, 1])
    wanted = Sequential().states(model, batch, 6)
    for num_passes in range(6):
        states = Jacobi(num_passes).states(model, batch, 6)
        is_exact = (
            torch.isclose(states, wanted, rtol=1e-9, atol=1e-9).all(-1).all(0)[batch.first_slot : batch.first_slot + 6]
        )
        assert is_exact.tolist() == [place <= num_passes for place in range(6)]


def test_without_passes_only_the_first_slot_is_a_thought() -> None:
    """The others are `<latent>` tokens: one pass with embeddings put together by hand."""
    model, batch = build(LLAMA, num_loops=2), make_batch([3], [4], [2])
    before = model(batch.tokens[:, : batch.first_slot]).view(1, batch.first_slot, -1)
    assert model.embedding is not None
    embeddings = model.embedding(batch.tokens).clone()
    embeddings[:, batch.first_slot] = before[:, -1]
    wanted = model(batch.tokens, embeddings=embeddings)[None]
    torch.testing.assert_close(Jacobi(0).states(model, batch, 4), wanted, rtol=1e-10, atol=1e-10)


def test_it_takes_as_many_passes_as_asked_for() -> None:
    model, batch = build(LLAMA), make_batch([3, 1], [6, 4], [2, 1])
    positions: list[int] = []
    with model.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0].shape[1])):
        Jacobi(3).states(model, batch, 6)
    assert positions == [4, 5, 5, 5, batch.tokens.shape[1] - 4]
