"""The latent forward against its definition: n + 1 whole passes without a cache, loss and every gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.latent import LatentBatch, latent_states
from pretrain.model.gpt import LoopedGPT
from tests.unit.test_model import GPT2, LLAMA, OLMO2, QWEN3, VOCAB, build

IGNORED = -100
BOT, EOT = 1, 2


def make_batch(questions: list[int], slots: list[int], texts: list[int]) -> LatentBatch:
    """Rows of random tokens: so many of the question, so many slots, so many after them; labels on the text after `<eot>`."""
    generator = torch.Generator().manual_seed(0)
    before = 1 + max(questions)
    length = before + max(count + 1 + text for count, text in zip(slots, texts, strict=True))
    tokens, labels = torch.zeros(len(questions), length, dtype=torch.int64), torch.full((len(questions), length), IGNORED)
    is_latent = torch.zeros(len(questions), length, dtype=torch.bool)
    for row, (question, count, text) in enumerate(zip(questions, slots, texts, strict=True)):
        words = torch.randint(3, VOCAB, (question + text,), generator=generator)
        tokens[row, before - 1 - question : before] = torch.cat((words[:question], torch.tensor([BOT])))
        is_latent[row, before : before + count] = True
        tokens[row, before + count] = EOT
        tokens[row, before + count + 1 : before + count + 1 + text] = words[question:]
        labels[row, before + count : before + count + text] = words[question:]
    first = torch.tensor([before - 1 - question for question in questions])
    supervised = (labels >= 0).flatten().nonzero().flatten()
    return LatentBatch(
        tokens=tokens, labels=labels, supervised=supervised, first_token=first, is_latent=is_latent, first_slot=before
    )


def by_definition(model: LoopedGPT, batch: LatentBatch, row: int, num_loops: int) -> Tensor:
    """States of one row alone, [s, d]: whole passes without a cache, each with one thought more in its place."""
    first = int(batch.first_token[row])
    tokens, is_latent = batch.tokens[row : row + 1, first:], batch.is_latent[row, first:]
    assert model.embedding is not None
    embeddings = model.embedding(tokens)
    for place in is_latent.nonzero().flatten().tolist():
        states = model(tokens[:, :place], num_loops, embeddings=embeddings[:, :place]).view(1, place, -1)
        embeddings = torch.cat((embeddings[:, :place], states[:, -1:], embeddings[:, place + 1 :]), dim=1)
    return model(tokens, num_loops, embeddings=embeddings)


def loss_of(model: LoopedGPT, states: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model.logits(states), labels, ignore_index=IGNORED, reduction="sum")


def gradients(model: LoopedGPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


SHAPES = {
    "no thought": ([3, 3], [0, 0], [4, 2]),
    "one thought": ([2, 3], [1, 1], [2, 3]),
    "six thoughts, ragged": ([1, 2, 1], [6, 6, 6], [1, 1, 2]),
    "mixed numbers of thoughts": ([2, 1, 2, 2], [0, 3, 1, 6], [2, 1, 3, 1]),
    "one row": ([2], [2], [2]),
}


@pytest.mark.parametrize("family", [LLAMA, GPT2, QWEN3, OLMO2], ids=["llama", "gpt2", "qwen3", "olmo2"])
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_whole_passes(family: Any, num_loops: int, shape: str) -> None:
    model = build(family, num_prelude_layers=1, num_coda_layers=1, input_injection="add")
    batch = make_batch(*SHAPES[shape])
    num_slots = int(batch.is_latent.sum(1).max())
    states = latent_states(model, batch, num_slots, num_loops)
    loss = loss_of(model, states.flatten(0, 1), batch.labels.flatten())
    ours = gradients(model, loss)
    wanted = sum(
        loss_of(model, by_definition(model, batch, row, num_loops), batch.labels[row, int(batch.first_token[row]) :])
        for row in range(len(batch.tokens))
    )
    assert isinstance(wanted, Tensor)
    theirs = gradients(model, wanted)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-10 * largest, name


def test_more_passes_than_slots_change_nothing() -> None:
    model = build(LLAMA, num_loops=2)
    batch = make_batch([2, 3], [1, 2], [3, 2])
    wanted = latent_states(model, batch, 2)
    for num_slots in (3, 4, 9):
        torch.testing.assert_close(latent_states(model, batch, num_slots), wanted, rtol=1e-12, atol=1e-12)


def test_a_thought_is_the_state_before_it_and_depends_on_the_question() -> None:
    model, batch = build(LLAMA, num_loops=2), make_batch([3], [2], [2])
    before = latent_states(model, batch, 2)
    changed = batch.tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    after = latent_states(model, LatentBatch(**{**vars(batch), "tokens": changed}), 2)
    assert (before[0, 4:] != after[0, 4:]).any(-1).all()
    other = batch.tokens.clone()
    other[batch.is_latent] = 7  # what stands at a slot is not looked at
    assert torch.equal(latent_states(model, LatentBatch(**{**vars(batch), "tokens": other}), 2), before)
