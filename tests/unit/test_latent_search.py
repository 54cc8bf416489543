"""What is read from thoughts, against whole passes over each question and name alone."""

import math

import pytest
import torch

from finetune.generation import AnswerSettings
from finetune.graph_text import Symbols, Words
from finetune.latent_search import name_probabilities, name_tokens, search_values, thought_statistics
from finetune.search_tree import concepts
from pretrain.data.symbol_tokenizer import SymbolTokenizer, write_symbols
from pretrain.model.gpt import LoopedGPT
from tests.unit.finetuned_runs import tokenizer_bytes
from tests.unit.test_generation import BOT, EOS, EOT, PAUSE, PROMPTS, VOCAB, by_definition, how
from tests.unit.test_sampling import make_model
from tests.unit.test_search_tree import GRAPH, QUESTION

NAMES = [[(20,), (21, 22, 23)], [(24, 25)], [(21, 22), (26,), (27, 28, 29), (21, 30)], [(31, 32)]]


@torch.no_grad()
def probability(model: LoopedGPT, prompt: list[int], name: tuple[int, ...], settings: AnswerSettings) -> float:
    """By one whole pass over question, thoughts, forced text and name."""
    assert model.embedding is not None
    thoughts = by_definition(model, prompt, settings)[1]
    slots = [PAUSE] * settings.num_thoughts if settings.slots == "pause" else []
    markers = [EOT] if settings.slots != "none" else []
    after = model.embedding(torch.tensor([*slots, *markers, *settings.forced_text, *name]))
    inputs = torch.cat((model.embedding(torch.tensor(prompt)), thoughts, after))[None]
    states = model(torch.zeros(inputs.shape[:2], dtype=torch.int64), settings.num_loops, embeddings=inputs)
    logs = model.all_logits(states)[:, :VOCAB].log_softmax(-1)[-len(name) - 1 : -1]
    return math.exp(sum(float(logs[place, token]) for place, token in enumerate(name)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("slots", "num_thoughts"), [("thought", 0), ("thought", 3), ("pause", 2), ("none", 0)])
def test_the_value_of_a_name_is_the_product_over_its_tokens(family: str, slots: str, num_thoughts: int) -> None:
    model, settings = make_model(family), how(slots=slots, num_thoughts=num_thoughts, num_loops=3, forced_text=(9, 17), max_new_tokens=1)
    found = name_probabilities(model, PROMPTS, NAMES, settings)
    for prompt, names, values in zip(PROMPTS, NAMES, found, strict=True):
        assert values == pytest.approx([probability(model, prompt, name, settings) for name in names], rel=1e-9)


def test_names_of_one_token_sum_to_one_over_the_vocabulary() -> None:
    every = [(token,) for token in range(VOCAB)]
    for values in name_probabilities(make_model(), PROMPTS, [every] * len(PROMPTS), how(num_thoughts=2)):
        assert sum(values) == pytest.approx(1, rel=1e-9)


def test_every_concept_of_every_question_gets_a_value_whatever_the_batch() -> None:
    tokenizer, form, model = SymbolTokenizer(tokenizer_bytes()), Symbols(), make_model()
    other = "Ab,bc,cd,Ba,?Ada"
    graphs = [GRAPH, form.graph(other)]
    prompts = [[*(token % VOCAB for token in tokenizer.encode(question)), BOT] for question in (QUESTION, other)]
    settings = how(num_thoughts=2, vocab_size=VOCAB)
    values = search_values(model, prompts, graphs, form, tokenizer, settings, batch=2)
    alone = search_values(model, prompts, graphs, form, tokenizer, settings, batch=1)
    assert [value._replace(value=0) for value in values] == [value._replace(value=0) for value in alone]
    assert [value.value for value in values] == pytest.approx([value.value for value in alone], rel=1e-9)
    assert len(values) == sum(len(concepts(graph)) for graph in graphs)
    assert {(value.question, value.num_thoughts) for value in values} == {(0, 2), (1, 2)}
    first = next(value for value in values if value.name == "c" and value.question == 0)
    assert first.value == pytest.approx(probability(model, prompts[0], tuple(tokenizer.encode("c")), settings), rel=1e-9)


def test_names_are_spelt_as_they_stand_in_a_step() -> None:
    letters = SymbolTokenizer(write_symbols([*"abcdefghijklmnopqrstuvwxyzE ", "Every", " rem", "pus", "Every im"]))
    assert name_tokens(letters, Words(), "rempus") == tuple(letters.encode(" rempus"))
    assert len(name_tokens(letters, Words(), "rempus")) == 2
    with pytest.raises(ValueError, match="no boundary between 'Every' and ' impus'"):
        name_tokens(letters, Words(), "impus")


def test_statistics_are_those_of_the_thoughts_by_definition() -> None:
    model, tokenizer = make_model(), SymbolTokenizer(write_symbols([chr(33 + number) for number in range(54)]))
    settings = AnswerSettings(max_new_tokens=1, vocab_size=VOCAB, eos_id=EOS, slots="thought", num_thoughts=3, eot_id=EOT)
    thoughts = torch.stack([by_definition(model, prompt, settings)[1] for prompt in PROMPTS])  # [questions, k, d]
    found = thought_statistics(model, PROMPTS, tokenizer, settings, batch=3)
    norms = thoughts.norm(dim=-1)
    assert found.norms == pytest.approx(norms.mean(0).tolist())
    assert found.norm_deviations == pytest.approx(norms.std(0, correction=0).tolist())
    dots = (thoughts[:, 1:] * thoughts[:, :-1]).sum(-1) / (norms[:, 1:] * norms[:, :-1])
    assert found.cosines == pytest.approx(dots.mean(0).tolist())
    assert found.cosine_deviations == pytest.approx(dots.std(0, correction=0).tolist())
    assert found.token_norm == pytest.approx(model.get_parameter("embedding.weight")[:VOCAB].norm(dim=-1).mean().item())
    likeliest = model.all_logits(thoughts[2, 1][None])[0, :VOCAB].softmax(0).detach()
    token = int(likeliest.argmax())
    assert found.top_tokens[2][1][0] == (tokenizer.decode([token]) or f"<{token}>", pytest.approx(float(likeliest[token]), rel=1e-5))
    assert [len(found.top_tokens), len(found.top_tokens[0]), len(found.top_tokens[0][0])] == [4, 3, 5]
