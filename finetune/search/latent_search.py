"""What latent thoughts hold, read from the model: the probability of names after them, their size and direction, the
tokens they resemble.

The definitions, without a model: `finetune/search/search_tree.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.generation import AnswerSettings, think
from finetune.search.graph_text import GraphForm
from finetune.search.search_tree import NodeValue, concepts, node_values
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS, Tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.tasks.prosqa.prosqa_graph import Graph

NUM_TOKENS = 5
"""Likeliest tokens of a thought that are kept."""


def name_tokens(tokenizer: Tokenizer, form: GraphForm, name: str) -> tuple[int, ...]:
    """The tokens of a concept's name at the beginning of a step, after the form's opening.

    Raises:
        ValueError: the tokenizer spells them together with what stands before.
    """
    opening, both = tokenizer.encode(form.opening), tokenizer.encode(form.opening + form.before_name + name)
    if both[: len(opening)] != opening:
        raise ValueError(
            f"the tokenizer has no boundary between {form.opening!r} and {form.before_name + name!r}: "
            "names have no probability"
        )
    return tuple(both[len(opening) :])


@torch.inference_mode()
def name_probabilities(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    names: Sequence[Sequence[tuple[int, ...]]],
    settings: AnswerSettings,
    *,
    excluded: Sequence[int] = (),
) -> list[list[float]]:
    """The probability of each name at the beginning of the text: the product over its tokens.

    Args:
        model: on its device, in its precision.
        prompts: token ids of each row up to its first slot.
        names: tokens of the names to be rated in each row.
        settings: thoughts, loops, and the text that is forced before the names.
        excluded: tokens that are known not to come first.

    Returns:
        Of each row, the probability of each of its names.
    """
    num_names, longest = max(map(len, names)), max(len(name) for row in names for name in row)
    tokens = torch.zeros(len(prompts), num_names, longest, dtype=torch.int64)
    is_token = torch.zeros_like(tokens, dtype=torch.bool)
    for number, row in enumerate(names):
        for place, name in enumerate(row):
            tokens[number, place, : len(name)] = torch.tensor(name)
            is_token[number, place, : len(name)] = True
    num_new = settings.num_slots + len(settings.script) + num_names * longest
    decoding = Decoding(model, prompts, num_new, settings.num_loops)
    tokens, is_token = tokens.to(decoding.prompts.device), is_token.to(decoding.prompts.device)
    _, states = think(decoding, settings)
    before = states[:, None, None].expand(-1, num_names, 1, -1)  # [b, c, 1, d]
    if longest > 1:
        embeddings = decoding.embed(tokens[..., :-1].flatten(1)).view(len(prompts), num_names, longest - 1, -1)
        before = torch.cat((before, decoding.branch(embeddings)), dim=2)
    found = []
    for number, row in enumerate(names):  # one after the other: the logits of all would be large
        logits = (
            model.all_logits(before[number].flatten(0, 1))[:, : settings.vocab_size]
            .double()
            .view(num_names, longest, -1)
        )
        logits[:, 0, list(excluded)] = -torch.inf
        logs = logits.log_softmax(dim=-1).gather(-1, tokens[number, ..., None]).squeeze(-1)
        found.append(logs.where(is_token[number], 0).sum(dim=-1).exp()[: len(row)].tolist())
    return found


def search_values(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    graphs: Sequence[Graph],
    form: GraphForm,
    tokenizer: Tokenizer,
    settings: AnswerSettings,
    *,
    batch: int,
    track: Callable[[Sequence[int]], Iterable[int]] = lambda starts: starts,
) -> list[NodeValue]:
    """The value of every concept of every question after the thoughts of `settings`.

    Args:
        model: on its device, in its precision.
        prompts: token ids of each question, <bot> included.
        graphs: of the questions.
        form: how they are written.
        tokenizer: of the model.
        settings: thoughts and loops.
        batch: questions worked on together; changes no value.
        track: wraps the first questions of the batches; to show progress.

    Raises:
        ValueError: the tokenizer spells a name together with what stands before.
    """
    settings = replace(settings, forced_text=tuple(tokenizer.encode(form.opening)))
    # Where no forced word says that a step comes, the answer may come as well.
    excluded = [] if form.opening else tokenizer.encode(form.text.answer_start)[:1]
    values = []
    for start in track(range(0, len(prompts), batch)):
        chosen = slice(start, start + batch)
        names = [[graph.idx_to_symbol[node] for node in concepts(graph)] for graph in graphs[chosen]]
        tokens = [[name_tokens(tokenizer, form, name) for name in row] for row in names]
        found = name_probabilities(model, prompts[chosen], tokens, settings, excluded=excluded)
        for question, (graph, row, probabilities) in enumerate(
            zip(graphs[chosen], names, found, strict=True), start=start
        ):
            values += node_values(question, graph, settings.num_slots, dict(zip(row, probabilities, strict=True)))
    return values


@dataclass(frozen=True, kw_only=True)
class ThoughtStatistics:
    """Thoughts of many questions, by their place; k of them."""

    norms: list[float]
    """Mean length of the vector at each place."""
    norm_deviations: list[float]
    """Standard deviation of the length over questions."""
    token_norm: float
    """Mean length of the embedding of a token of the vocabulary."""
    token_norm_deviation: float
    """Its standard deviation over tokens."""
    cosines: list[float]
    """Mean cosine between each thought and the one before it, from the second on."""
    cosine_deviations: list[float]
    """Standard deviation of the cosine over questions."""
    top_tokens: list[list[list[tuple[str, float]]]]
    """For each question and place, the tokens that the head finds likeliest in the thought, with their probability."""


@torch.inference_mode()
def thought_statistics(
    model: LoopedGPT, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, settings: AnswerSettings, *, batch: int
) -> ThoughtStatistics:
    """Go through the thoughts of questions and describe them; the arguments are those of `search_values`."""
    assert model.embedding is not None
    collected: list[Tensor] = []
    top_tokens = []
    for start in range(0, len(prompts), batch):
        num_new = settings.num_slots + len(settings.script)
        decoding = Decoding(model, prompts[start : start + batch], num_new, settings.num_loops)
        thoughts = think(decoding, settings)[0].thoughts  # [b, k, d]
        assert thoughts.shape[1], "slots hold tokens, or there are none"
        collected.append(thoughts.double())
        top_tokens += _likeliest(model, thoughts, tokenizer)
    thoughts = torch.cat(collected)
    norms = thoughts.norm(dim=-1)  # [questions, k]
    cosines = torch.cosine_similarity(thoughts[:, 1:], thoughts[:, :-1], dim=-1)  # [questions, k - 1]
    tokens = torch.arange(tokenizer.vocab_size, device=thoughts.device)
    token_norms = model.embedding(tokens).double().norm(dim=-1)
    return ThoughtStatistics(
        norms=norms.mean(0).tolist(),
        norm_deviations=norms.std(0, correction=0).tolist(),
        token_norm=token_norms.mean().item(),
        token_norm_deviation=token_norms.std(correction=0).item(),
        cosines=cosines.mean(0).tolist(),
        cosine_deviations=cosines.std(0, correction=0).tolist(),
        top_tokens=top_tokens,
    )


def _likeliest(model: LoopedGPT, thoughts: Tensor, tokenizer: Tokenizer) -> list[list[list[tuple[str, float]]]]:
    """Of every thought [b, k, d], the likeliest tokens; special ones by their name."""
    logits = model.all_logits(thoughts.flatten(0, 1))[:, : tokenizer.vocab_size]
    probabilities, tokens = logits.float().softmax(dim=-1).topk(min(NUM_TOKENS, tokenizer.vocab_size), dim=-1)
    names = {tokenizer.pad_id: "<pad>", tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>"}
    names |= {tokenizer.thought_id(name): name for name in THOUGHT_TOKENS}
    texts = [
        [(names.get(token) or tokenizer.decode([token]), probability) for token, probability in zip(*row, strict=True)]
        for row in zip(tokens.tolist(), probabilities.tolist(), strict=True)
    ]
    num_thoughts = thoughts.shape[1]
    return [texts[start : start + num_thoughts] for start in range(0, len(texts), num_thoughts)]
