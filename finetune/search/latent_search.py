"""What latent thoughts contain, measured on the model: the probability of names after them, their size and direction,
the tokens they resemble. Definitions without a model: `finetune/search/search_tree.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.latent.decoding import Decoding
from finetune.latent.generation import AnswerSettings, think
from finetune.search.graph_text import GraphText
from finetune.search.search_tree import NodeValue, concepts, node_values
from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS, Tokenizer
from pretrain.model.gpt import LoopedGPT
from pretrain.tasks.prosqa.prosqa_graph import Graph

NUM_TOKENS = 5
"""Likeliest tokens that are kept of a thought."""


def name_tokens(tokenizer: Tokenizer, opening: str, name: str) -> tuple[int, ...]:
    """The tokens of a name at the beginning of a step, as it is spelt after the opening.

    Raises:
        ValueError: the tokenizer joins them with the opening.
    """
    before, both = tokenizer.encode(opening), tokenizer.encode(opening + name)
    if both[: len(before)] != before:
        raise ValueError(f"the tokenizer has no boundary between {opening!r} and {name!r}: names have no probability")
    return tuple(both[len(before) :])


@torch.inference_mode()
def name_probabilities(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    names: Sequence[Sequence[tuple[int, ...]]],
    settings: AnswerSettings,
    *,
    excluded: Sequence[int] = (),
) -> list[list[float]]:
    """The probability of each name of each row at the beginning of the text: the product over its tokens.

    Args:
        model: on its device, in its precision.
        prompts: token ids of each row up to its first slot.
        names: for each row, the tokens of its names.
        settings: thoughts, loops, and the text that is forced before the names.
        excluded: tokens that are known not to come first.
    """
    num_names, longest = max(map(len, names)), max(len(name) for row in names for name in row)
    tokens = torch.zeros(len(prompts), num_names, longest, dtype=torch.int64)
    is_token = torch.zeros_like(tokens, dtype=torch.bool)
    for number, row in enumerate(names):
        for index, name in enumerate(row):
            tokens[number, index, : len(name)] = torch.tensor(name)
            is_token[number, index, : len(name)] = True
    num_new = settings.num_slots + len(settings.script) + num_names * longest
    decoding = Decoding(model, prompts, num_new, settings.num_loops)
    tokens, is_token = tokens.to(decoding.device), is_token.to(decoding.device)
    _, states = think(decoding, settings)
    before = states[:, None, None].expand(-1, num_names, 1, -1)  # [b, c, 1, d]
    if longest > 1:
        embeddings = decoding.embed(tokens[..., :-1].flatten(1)).view(len(prompts), num_names, longest - 1, -1)
        before = torch.cat((before, decoding.branch(embeddings)), dim=2)
    probabilities = []
    for number, row in enumerate(names):  # one row at a time: the logits of all would be large
        logits = model.all_logits(before[number].flatten(0, 1))[:, : settings.vocab_size]
        logits = logits.double().view(num_names, longest, -1)
        logits[:, 0, list(excluded)] = -torch.inf
        logs = logits.log_softmax(dim=-1).gather(-1, tokens[number, ..., None]).squeeze(-1)
        probabilities.append(logs.where(is_token[number], 0).sum(dim=-1).exp()[: len(row)].tolist())
    return probabilities


def search_values(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    graphs: Sequence[Graph],
    text: GraphText,
    tokenizer: Tokenizer,
    settings: AnswerSettings,
    *,
    batch: int,
) -> list[NodeValue]:
    """The value of every concept of every question, given as prompt (<bot> included) and as graph, after the thoughts
    of `settings`. The batch size changes no value.

    Raises:
        ValueError: the tokenizer joins a name with the text before it.
    """
    by_opening: dict[str, list[int]] = {}
    for question, graph in enumerate(graphs):
        by_opening.setdefault(text.form.opening(graph), []).append(question)
    values: dict[int, list[NodeValue]] = {}
    for opening, questions in by_opening.items():
        forced = replace(settings, forced_text=tuple(tokenizer.encode(opening)))
        # where no forced word begins a step, the answer may come instead
        excluded = [] if opening else tokenizer.encode(text.text.answer_start)[:1]
        for start in range(0, len(questions), batch):
            chosen = questions[start : start + batch]
            names = [
                [graphs[question].idx_to_symbol[node] for node in concepts(graphs[question])] for question in chosen
            ]
            tokens = [[name_tokens(tokenizer, opening, text.form.spelt(name)) for name in row] for row in names]
            before = [prompts[question] for question in chosen]
            rated = name_probabilities(model, before, tokens, forced, excluded=excluded)
            for question, row, probabilities in zip(chosen, names, rated, strict=True):
                of_name = dict(zip(row, probabilities, strict=True))
                first = text.form.first_distance
                values[question] = node_values(question, graphs[question], settings.num_slots, of_name, first)
    return [value for question in range(len(graphs)) for value in values[question]]


Token = tuple[str, float]
"""A token's text and its probability."""


@dataclass(frozen=True, kw_only=True)
class ThoughtSpread:
    """Means and standard deviations of k thoughts over many questions."""

    norms: list[float]
    """[k] lengths of the vectors."""
    norm_deviations: list[float]
    token_norm: float
    """Length of the embeddings of the vocabulary, for comparison; mean and deviation over tokens."""
    token_norm_deviation: float
    cosines: list[float]
    """[k - 1] cosines between each thought and the one before it."""
    cosine_deviations: list[float]


@dataclass(frozen=True, kw_only=True)
class ThoughtStatistics(ThoughtSpread):
    """With the tokens of every question."""

    top_tokens: list[list[list[Token]]]
    """[questions, k]: the tokens that the head finds likeliest for a thought, with their probabilities."""


@dataclass(frozen=True, kw_only=True)
class ThoughtNumbers(ThoughtSpread):
    """With the tokens of one question."""

    question: int
    top_tokens: list[list[Token]]

    @classmethod
    def of(cls, found: ThoughtStatistics, question: int) -> "ThoughtNumbers":
        return cls(**{**vars(found), "top_tokens": found.top_tokens[question]}, question=question)


@torch.inference_mode()
def thought_statistics(
    model: LoopedGPT, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer, settings: AnswerSettings, *, batch: int
) -> ThoughtStatistics:
    """Statistics of the thoughts about questions; arguments as of `search_values`."""
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


def _likeliest(model: LoopedGPT, thoughts: Tensor, tokenizer: Tokenizer) -> list[list[list[Token]]]:
    """The likeliest tokens of every thought [b, k, d]; special ones by their name."""
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
