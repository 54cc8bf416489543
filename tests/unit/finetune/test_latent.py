"""The latent forward against its definition, n + 1 whole passes without a cache: loss and every gradient; and what it
costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from finetune.latent.batch import LatentBatch
from finetune.latent.forward import Passes
from finetune.latent.jacobi import Jacobi
from finetune.latent.sequential import Sequential
from pretrain.hf.importing import import_model
from pretrain.model.gpt import LoopedGPT
from pretrain.run.trained_model import load_trained_model
from tests.support.latent_cases import (
    IGNORED,
    SHAPES,
    assert_same_gradients,
    gradients,
    loss_by_definition,
    loss_of,
    make_batch,
    num_slots_of,
)
from tests.support.loop_designs import DESIGNS
from tests.unit.hf.test_convert import byte_level, publish  # noqa: F401
from tests.unit.model.test_loop_variants import shaken
from tests.unit.model.test_model import GPT2, LLAMA, OLMO2, QWEN3, VOCAB, build
from tests.unit.model.test_shared_keys import repeat_keys


def our_loss(model: LoopedGPT, batch: LatentBatch, num_loops: int) -> Tensor:
    """Of supervised positions alone, as a training step takes it."""
    return loss_of_states(model, batch, Sequential().states(model, batch, num_slots_of(batch), num_loops))


def loss_of_states(model: LoopedGPT, batch: LatentBatch, states: Tensor) -> Tensor:
    supervised = batch.supervised
    return loss_of(model, states.flatten(0, 1)[supervised], batch.labels.flatten()[supervised])


@pytest.mark.parametrize("family", [LLAMA, GPT2, QWEN3, OLMO2], ids=["llama", "gpt2", "qwen3", "olmo2"])
@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_whole_passes(family: Any, num_loops: int, shape: str) -> None:
    model = build(family, num_prelude_layers=1, num_coda_layers=1, loop={"injection": "add"})
    batch = make_batch(*SHAPES[shape])
    loss, wanted = our_loss(model, batch, num_loops), loss_by_definition(model, batch, num_loops)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, wanted))


@pytest.mark.parametrize("name", DESIGNS)
def test_so_they_are_for_every_design_of_the_loop(name: str) -> None:
    model, batch = shaken(name), make_batch(*SHAPES["mixed numbers of thoughts"])
    loss, wanted = our_loss(model, batch, 3), loss_by_definition(model, batch, 3)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, wanted))


@pytest.mark.parametrize("family", [LLAMA, GPT2, OLMO2], ids=["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_so_they_are_under_dropout(family: Any, shape: str) -> None:
    """What is dropped depends on neither the padding nor the passes, nor on the other rows."""
    model = build(family, num_prelude_layers=1, num_coda_layers=1, loop={"injection": "add"})
    batch = make_batch(*SHAPES[shape], dropout=0.2)
    loss, wanted = our_loss(model, batch, 2), loss_by_definition(model, batch, 2)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, wanted))
    assert not torch.isclose(loss, our_loss(model, make_batch(*SHAPES[shape]), 2), rtol=1e-3)


@pytest.mark.parametrize("way", [Sequential(), Jacobi(1)], ids=["one by one", "in parallel"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_loops_read_the_keys_of_the_first_in_every_segment(way: Any, dropout: float) -> None:
    """Against a model whose projections repeat, in every pass, what they gave in the first loop."""
    ends: dict[str, Any] = {"num_prelude_layers": 1, "num_coda_layers": 1}
    model, wanted = build(LLAMA, **ends, loop={"keys": "first"}), build(LLAMA, **ends)
    repeat_keys(wanted, 3)
    batch = make_batch([2, 3, 1], [3, 2, 0], [2, 1, 9], dropout=dropout)
    losses = [loss_of_states(each, batch, way.states(each, batch, num_slots_of(batch), 3)) for each in (model, wanted)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, losses[0]), gradients(wanted, losses[1]))


@pytest.mark.parametrize("text", [7, 8, 30])
def test_text_of_any_length_gives_them(text: int) -> None:
    """Short text looks at the question as slots do, longer text at all keys in one."""
    model, batch = build(LLAMA), make_batch([2, 3], [2, 1], [1, text])
    loss, wanted = our_loss(model, batch, 2), loss_by_definition(model, batch, 2)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, wanted))


def test_a_cache_counts_the_prefix_too() -> None:
    model, batch = build(LLAMA, num_loops=2), make_batch(*SHAPES["mixed numbers of thoughts"])
    passes = Passes(model, batch, 6, None)
    cache, lengths = passes._cache, [passes._cache.length]
    passes.run_prefix()
    for place in range(passes.prefix, passes.prefix + 2):
        lengths.append(cache.length)
        passes.run("slots", place, place + 1, passes.embed(place, place + 1))
    passes.run("trial", passes.prefix + 2, passes.end, passes.embed(passes.prefix + 2, passes.end))
    assert [*lengths, cache.length] == [0, passes.prefix, passes.prefix + 1, passes.prefix + 2]


def test_the_gradient_through_thoughts_is_not_small() -> None:
    """What the comparison above would see if gradients did not flow through thoughts, or through the keys of the
    question."""
    model, batch = build(LLAMA, num_loops=2), make_batch(*SHAPES["six thoughts, ragged"])
    whole = gradients(model, our_loss(model, batch, 2))
    states = Sequential().states(model, batch, 6)
    with torch.no_grad():
        inputs = torch.cat((states[:, :1], states[:, :-1]), dim=1)
    assert model.embedding is not None
    places, masks = batch.is_latent[..., None], batch.first_token[:, None] <= torch.arange(batch.tokens.shape[1])
    causal = torch.ones(len(masks[0]), len(masks[0]), dtype=torch.bool).tril()
    mask = ((causal & masks[:, None]) | torch.eye(len(masks[0]), dtype=torch.bool))[:, None]
    positions = (torch.arange(len(masks[0])) - batch.first_token[:, None]).clamp_min(0)
    embeddings = torch.where(places, inputs, model.embedding(batch.tokens))
    cut = model(batch.tokens, positions=positions, mask=mask, embeddings=embeddings)
    torch.testing.assert_close(cut.view_as(states)[masks], states[masks], rtol=1e-10, atol=1e-10)
    without = gradients(model, loss_of(model, cut, batch.labels.flatten()))
    assert (whole["loop.0.ffn.up.weight"] - without["loop.0.ffn.up.weight"]).abs().max() > 1e-3


def test_more_passes_than_slots_change_nothing() -> None:
    model = build(LLAMA, num_loops=2)
    batch = make_batch([2, 3], [1, 2], [3, 2])
    wanted = Sequential().states(model, batch, 2)
    real = torch.arange(batch.tokens.shape[1]) >= batch.first_token[:, None]
    for num_slots in (3, 4, 9):
        torch.testing.assert_close(
            Sequential().states(model, batch, num_slots)[real], wanted[real], rtol=1e-12, atol=1e-12
        )


def test_a_thought_is_the_state_before_it_and_depends_on_the_question() -> None:
    model, batch = build(LLAMA, num_loops=2), make_batch([3], [2], [2])
    before = Sequential().states(model, batch, 2)
    changed = batch.tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    after = Sequential().states(model, LatentBatch(**{**vars(batch), "tokens": changed}), 2)
    assert (before[0, 4:] != after[0, 4:]).any(-1).all()
    other = batch.tokens.clone()
    other[batch.is_latent] = 7  # what stands at a slot is not looked at
    assert torch.equal(Sequential().states(model, LatentBatch(**{**vars(batch), "tokens": other}), 2), before)


# What it costs


def passes_of(model: LoopedGPT, batch: LatentBatch, num_slots: int) -> list[tuple[int, bool]]:
    """Positions of each pass, and whether it has a mask."""
    passes = []
    with model.register_forward_pre_hook(
        lambda _, inputs, options: passes.append((inputs[0].shape[1], options.get("mask") is not None)),
        with_kwargs=True,
    ):
        Sequential().states(model, batch, num_slots)
    return passes


def test_every_position_is_computed_once_and_the_question_without_a_mask() -> None:
    model = build(LLAMA)
    assert passes_of(model, make_batch([3, 1], [2, 2], [2, 1]), 2) == [(4, False), (1, True), (1, True), (3, True)]
    assert passes_of(model, make_batch([3, 1], [0, 0], [2, 1]), 0) == [(7, False)]


def test_ranks_that_agree_on_slots_make_the_same_number_of_passes() -> None:
    """Also one whose rows are shorter than the slots: a rank with nothing left to do."""
    model = build(LLAMA)
    assert [
        len(passes_of(model, make_batch(*shape), 6)) for shape in (([3], [6], [1]), ([1], [0], [1]), ([2], [2], [1]))
    ] == [8, 8, 8]


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_nothing_waits_for_a_value(family: Any) -> None:
    """A meta tensor has none: forward and backward pass depend on shapes alone."""
    batch = make_batch(*SHAPES["mixed numbers of thoughts"])
    model, abstract = build(family).to("meta"), batch.to(torch.device("meta"))
    states = Sequential().states(model, abstract, num_slots_of(batch))
    loss = model.logits(states.flatten(0, 1).index_select(0, abstract.supervised)).sum()
    assert gradients(model, loss).keys() == dict(model.named_parameters()).keys()


def test_slots_keep_no_copies_of_the_question() -> None:
    """Bytes that autograd keeps for the backward pass grow with slots by what a token costs, not by the keys of the
    question."""

    def kept_bytes(num_slots: int) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = build(LLAMA, dtype=torch.float32)
        batch = make_batch([400], [num_slots], [1])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = Sequential().states(model, batch, num_slots)
        assert states.requires_grad
        return sum(storages.values()) - sum(parameter.numel() * 4 for parameter in model.parameters())

    few, many = kept_bytes(2), kept_bytes(10)
    assert (
        many - few
    ) / 8 < 10 * few / 400  # a slot keeps less than ten tokens of the question do; a copy of its keys alone is forty


# Published weights


def by_transformers(model: Any, batch: LatentBatch, row: int) -> Tensor:
    """Summed negative log-likelihood of a row with transformers' GPT-2: everything is computed again for each
    thought."""
    first = int(batch.first_token[row])
    embeddings = model.transformer.wte(batch.tokens[row, first:])[None]
    for place in batch.is_latent[row, first:].nonzero().flatten().tolist():
        hidden = model.transformer(inputs_embeds=embeddings[:, :place]).last_hidden_state
        embeddings = torch.cat((embeddings[:, :place], hidden[:, -1:], embeddings[:, place + 1 :]), dim=1)
    logits = model(inputs_embeds=embeddings).logits[0]
    return torch.nn.functional.cross_entropy(logits, batch.labels[row, first:], ignore_index=IGNORED, reduction="sum")


def test_imported_gpt2_has_the_loss_of_transformers(tmp_path: Path, byte_level: Path) -> None:  # noqa: F811
    shape = {"n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 300}
    folder = publish(tmp_path / "published", byte_level, "GPT2", shape)
    import_model(folder=folder, run=tmp_path / "run", new_tokens=False)
    model = load_trained_model(tmp_path / "run", torch.device("cpu")).model
    published = GPT2LMHeadModel.from_pretrained(folder).eval()
    for name in ("no thought, ragged", "one thought", "six thoughts, ragged", "mixed numbers of thoughts"):
        batch = make_batch(*SHAPES[name], vocab=300)
        ours = our_loss(model, batch, 1)
        theirs = torch.stack([by_transformers(published, batch, row) for row in range(len(batch.tokens))]).sum()
        assert abs(ours.item() - theirs.item()) <= 1e-5 * theirs.item()
