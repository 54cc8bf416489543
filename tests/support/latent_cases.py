"""Batches with latent slots, the latent forward by its definition, and comparisons: for the tests on one process and on
ranks."""

import torch
from torch import Tensor

from finetune.latent.batch import LatentBatch
from pretrain.data.stream.labels import IGNORED
from pretrain.model.dropout import Dropout
from pretrain.model.gpt import LoopedGPT

BOT, EOT, LATENT = 1, 2, 3
SHAPES = {
    "no thought": ([3, 3], [0, 0], [4, 2]),
    "no thought, ragged": ([1, 3, 2], [0, 0, 0], [4, 2, 3]),
    "one thought": ([2, 3], [1, 1], [2, 3]),
    "six thoughts, ragged": ([1, 2, 1], [6, 6, 6], [1, 1, 2]),
    "mixed numbers of thoughts": ([2, 1, 2, 2], [0, 3, 1, 6], [2, 1, 3, 1]),
    "one row": ([2], [2], [2]),
}
"""Of each row: tokens of the question, slots, and tokens of text; at most 11 positions with `<bot>` and `<eot>`."""
Shape = tuple[list[int], list[int], list[int]]


def make_batch(
    questions: list[int], slots: list[int], texts: list[int], vocab: int = 64, dropout: float = 0.0
) -> LatentBatch:
    """Rows of random tokens; labels on the text after `<eot>`."""
    generator = torch.Generator().manual_seed(0)
    before = 1 + max(questions)
    length = before + max(count + 1 + text for count, text in zip(slots, texts, strict=True))
    tokens, labels = (
        torch.zeros(len(questions), length, dtype=torch.int64),
        torch.full((len(questions), length), IGNORED),
    )
    is_latent = torch.zeros(len(questions), length, dtype=torch.bool)
    for row, (question, count, text) in enumerate(zip(questions, slots, texts, strict=True)):
        words = torch.randint(4, vocab, (question + text,), generator=generator)
        tokens[row, before - 1 - question : before] = torch.cat((words[:question], torch.tensor([BOT])))
        is_latent[row, before : before + count] = True
        tokens[row, before : before + count + 1] = torch.tensor([LATENT] * count + [EOT])
        tokens[row, before + count + 1 : before + count + 1 + text] = words[question:]
        labels[row, before + count : before + count + text] = words[question:]
    return LatentBatch(
        tokens=tokens,
        labels=labels,
        supervised=(labels >= 0).flatten().nonzero().flatten(),
        first_token=torch.tensor([before - 1 - question for question in questions]),
        is_latent=is_latent,
        first_slot=before,
        answer=torch.tensor([before + count for count in slots]),
        dropout=dropout,
        row_keys=torch.arange(7, 7 + len(slots), dtype=torch.int32) * 2**27 if dropout else None,
    )


def num_slots_of(batch: LatentBatch) -> int:
    return int(batch.is_latent.sum(1).max())


def dropout_of(batch: LatentBatch, row: int, length: int) -> Dropout | None:
    """Of a whole pass over the first positions of one row."""
    if batch.row_keys is None:
        return None
    positions = torch.arange(length)[None]
    return Dropout(rate=batch.dropout, rows=batch.row_keys[row : row + 1], positions=positions, keys=positions)


def embeddings_by_definition(model: LoopedGPT, batch: LatentBatch, row: int, num_loops: int) -> Tensor:
    """Inputs of one row alone, [1, s, d]: whole passes without a cache, each giving one thought more its place."""
    first = int(batch.first_token[row])
    tokens, is_latent = batch.tokens[row : row + 1, first:], batch.is_latent[row, first:]
    assert model.embedding is not None
    embeddings = model.embedding(tokens)
    for place in is_latent.nonzero().flatten().tolist():
        dropout = dropout_of(batch, row, place)
        states = model(tokens[:, :place], num_loops, embeddings=embeddings[:, :place], dropout=dropout)
        states = states.view(1, place, -1)
        embeddings = torch.cat((embeddings[:, :place], states[:, -1:], embeddings[:, place + 1 :]), dim=1)
    return embeddings


def loss_of_row(model: LoopedGPT, batch: LatentBatch, row: int, num_loops: int) -> Tensor:
    """Summed negative log-likelihood of one row by definition: n + 1 whole passes without a cache."""
    first = int(batch.first_token[row])
    tokens = batch.tokens[row : row + 1, first:]
    states = model(
        tokens,
        num_loops,
        embeddings=embeddings_by_definition(model, batch, row, num_loops),
        dropout=dropout_of(batch, row, tokens.shape[1]),
    )
    return loss_of(model, states, batch.labels[row, first:])


def loss_by_definition(model: LoopedGPT, batch: LatentBatch, num_loops: int) -> Tensor:
    return torch.stack([loss_of_row(model, batch, row, num_loops) for row in range(len(batch.tokens))]).sum()


def loss_of(model: LoopedGPT, states: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood of states [t, d] on one process, labels [t]."""
    return torch.nn.functional.cross_entropy(model.logits(states), labels, ignore_index=IGNORED, reduction="sum")


def gradients(model: LoopedGPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Every gradient is within the tolerance times the largest entry of all of them."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() <= tolerance * largest, name
