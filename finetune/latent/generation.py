"""Answering with latent thoughts: questions of any lengths in one batch, cached, a row the same in every batch.

    question <bot>  thought ... thought <eot>  text     the slots of a method: thoughts, pauses, or none, then without
                                                        markers

1. Prompts are padded on the left to one length (as in `pretrain/eval/sampling.py`), so all rows write at the same
   place; padding is never looked at and each row counts its own positions.
2. One pass over the prompts; one pass of one position for each thought, whose input is the state before it; the last
   thought shares its pass with <eot>, which is forced, as it is never trained. Pauses are tokens, so they need no pass
   of their own. Thoughts of Jacobi's iteration have passes of all slots instead (`finetune/latent/jacobi.py`).
3. With a classifier the number of thoughts is found on the way: a row that stopped goes on with <eot> and text while
   others still think, so that the input of a pass is a thought in some rows and a token in others.
4. Then one pass for each token of text, greedily. Nothing waits for the device but the one copy of the new tokens of
   all rows.

The number of thoughts is free, whatever the model was trained with. Source: Hao et al. 2024 (arXiv 2412.06769),
sections 3 and 4.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.method.methods import Slots
from pretrain.eval.sampling import GenerationCache, check_prompts, pad_left
from pretrain.model.gpt import LoopedGPT

THINKS = -1
"""Among the new tokens of the rows: this row went through a thought."""


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How questions are answered.

    Raises:
        ValueError: a setting is out of range, or lacks one it needs.
    """

    max_new_tokens: int
    """Longest text, in tokens."""
    vocab_size: int
    """Tokens of the tokenizer; the model may have more rows, which are never chosen."""
    eos_id: int
    """End-of-sequence token: ends a row."""
    slots: Slots = "none"
    """What stands between prompt and text; "none" leaves <eot> out too."""
    num_thoughts: int = 0
    """k: slots; with a classifier the largest number of them."""
    eot_id: int | None = None
    """End of thoughts, put after the slots and never chosen."""
    pause_id: int | None = None
    """Stands in the slots of method "pause"."""
    jacobi_passes: int | None = None
    """Compute all thoughts together in so many refining passes, as in training. Default: one after the other."""
    latent_id: int | None = None
    """What thoughts are before the first of those passes."""
    num_loops: int | None = None
    """L. Default: model.num_loops."""
    forced_text: tuple[int, ...] = ()
    """Tokens every text begins with; not part of the answer."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_thoughts < 0:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} needs at least 1, num_thoughts={self.num_thoughts} at least 0"
            )
        if self.slots == "none" and self.num_thoughts:
            raise ValueError(f"num_thoughts={self.num_thoughts}: this method has no slots")
        if (self.slots != "none" and self.eot_id is None) or (self.slots == "pause" and self.pause_id is None):
            raise ValueError(f"slots={self.slots} needs eot_id, and pauses need pause_id")
        if self.jacobi_passes is not None and (self.slots != "thought" or self.latent_id is None):
            raise ValueError(f"jacobi_passes={self.jacobi_passes} needs slots of thoughts, and latent_id")

    @property
    def script(self) -> tuple[int, ...]:
        """Tokens between the last thought, or the prompt, and the first token that is chosen."""
        pauses = (self.pause_id,) * self.num_thoughts if self.slots == "pause" else ()
        markers = (self.eot_id,) if self.slots != "none" else ()
        return tuple(token for token in (*pauses, *markers, *self.forced_text) if token is not None)


@dataclass(kw_only=True)
class Answer:
    """What one row came to."""

    text: list[int] = field(default_factory=list)
    """New tokens, without eos."""
    num_thoughts: int = 0
    """Latent thoughts that the row went through; pauses are none."""
    is_over: bool = False
    """Whether eos ended it, not the largest number of tokens."""

    @property
    def num_new_tokens(self) -> int:
        """As the paper counts them: thoughts and text."""
        return self.num_thoughts + len(self.text)


class Rows:
    """A batch of rows on its way through a model: keys and values so far, and the place of every row in them.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row.
        num_new: largest number of positions after the prompts.
        num_loops: L; the configuration's by default.
    """

    def __init__(
        self, model: LoopedGPT, prompts: Sequence[Sequence[int]], num_new: int, num_loops: int | None = None
    ) -> None:
        self.model, self._num_loops = model, num_loops
        self.prompts, padding = pad_left(prompts, next(model.parameters()).device)
        self._is_padded = len(set(map(len, prompts))) > 1
        self._places = torch.arange(self.prompts.shape[1] + num_new, device=self.prompts.device)
        self._positions = (self._places - padding[:, None]).clamp_min(0)  # [b, places], counted in the row
        self._visible = self._places >= padding[:, None]  # [b, places]
        self._cache = GenerationCache(capacity=len(self._places))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [b, n, d] of tokens [b, n]."""
        assert self.model.embedding is not None, "answering needs the whole model"
        return self.model.embedding(tokens)

    def embed_script(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [b, n, d] of the same n tokens in every row."""
        return self.embed(
            torch.tensor(tokens, dtype=torch.int64, device=self.prompts.device).expand(len(self.prompts), -1)
        )

    def feed(self, embeddings: Tensor) -> Tensor:
        """Run the model over the next n places: [b, n, d] inputs to [b, n, d] states after the final norm."""
        start = self._cache.length
        stop = start + embeddings.shape[1]
        mask = None
        if self._is_padded or start:
            queries, keys = self._places[start:stop, None], self._places[:stop]
            # Padding looks at itself: a query without keys has no softmax.
            mask = ((keys <= queries) & self._visible[:, None, :stop] | (keys == queries))[:, None]
        return self._run(embeddings, self._positions[:, start:stop], mask)

    def branch(self, embeddings: Tensor) -> Tensor:
        """Run the model over c continuations of every row side by side, none of which sees another, and leave the rows
        where they are.

        Args:
            embeddings: [b, c, n, d] inputs.

        Returns:
            [b, c, n, d] states after the final norm.
        """
        num_rows, num_branches, length, _ = embeddings.shape
        start, num_new = self._cache.length, num_branches * length
        number = torch.arange(num_new, device=embeddings.device)
        is_own = (number[:, None] // length == number // length) & (number <= number[:, None])
        past = self._visible[:, None, :start].expand(-1, num_new, -1)
        mask = torch.cat((past, is_own.expand(num_rows, -1, -1)), dim=2)[:, None]
        positions = self._positions[:, start : start + length].repeat(1, num_branches)
        states = self._run(embeddings.flatten(1, 2), positions, mask).view(embeddings.shape)
        self._cache.rewind(start)
        return states

    def forget(self, counts: Tensor) -> None:
        """Take the last positions of the rows, [b] of them, out of sight, as if they had not been."""
        end = self._cache.length
        self._visible &= (self._places < end - counts[:, None]) | (self._places >= end)
        self._positions = torch.where(self._places >= end, self._positions - counts[:, None], self._positions)

    def _run(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        num_rows, num_places, _ = embeddings.shape
        tokens = self._places.new_zeros(num_rows, num_places)  # only their shape counts
        states = self.model(
            tokens, self._num_loops, positions=positions, mask=mask, cache=self._cache, embeddings=embeddings
        )
        return states.view(num_rows, num_places, -1)


class Thinking(NamedTuple):
    """What rows came to on the way to their text."""

    states: Tensor
    """[b, d], which predict the first token of the text."""
    thoughts: Tensor
    """[b, k, d], as they entered; none but in slots of thoughts."""
    num_thoughts: list[int]
    """Of each row, how many of them it went through."""


def think(rows: Rows, settings: AnswerSettings, stop_classifier: nn.Module | None = None) -> Thinking:
    """Go through prompts, all slots and what is forced after them; a classifier chooses among Jacobi's thoughts
    alone."""
    if settings.slots != "thought" or settings.num_thoughts == 0:
        states = rows.feed(torch.cat((rows.embed(rows.prompts), rows.embed_script(settings.script)), dim=1))
        return Thinking(states[:, -1], states[:, :0], [0] * len(states))
    thoughts = rows.feed(rows.embed(rows.prompts))[:, -1:]
    num_fed, num_thoughts = 0, [settings.num_thoughts] * len(thoughts)
    if settings.jacobi_passes is not None:
        thoughts = _refine(rows, thoughts, settings)
        if stop_classifier is not None:
            num_thoughts, num_fed = _choose_last(rows, thoughts, stop_classifier), settings.num_thoughts
    else:
        for num_fed in range(settings.num_thoughts - 1):
            thoughts = torch.cat((thoughts, rows.feed(thoughts[:, num_fed:])), dim=1)
        num_fed = settings.num_thoughts - 1
    states = rows.feed(torch.cat((thoughts[:, num_fed:], rows.embed_script(settings.script)), dim=1))
    return Thinking(states[:, -1], thoughts, num_thoughts)


def _choose_last(rows: Rows, thoughts: Tensor, stop_classifier: nn.Module) -> list[int]:
    """Send all thoughts [b, k, d] through the model, and forget those after the one that the classifier says is the
    last; their numbers."""
    is_last = stop_classifier(rows.feed(thoughts)).squeeze(-1) > 0  # [b, k]
    is_last[:, -1] = True
    num_thoughts = is_last.int().argmax(dim=-1) + 1
    rows.forget(thoughts.shape[1] - num_thoughts)
    return num_thoughts.tolist()


def _refine(rows: Rows, first: Tensor, settings: AnswerSettings) -> Tensor:
    """All k thoughts by Jacobi's iteration: from the first, [b, 1, d], to [b, k, d]; none is in the rows yet."""
    assert settings.jacobi_passes is not None and settings.latent_id is not None
    num_refined = settings.num_thoughts - 1  # the state of the last slot is no input of a slot
    thoughts = torch.cat((first, rows.embed_script([settings.latent_id] * num_refined)), dim=1)
    for _ in range(min(settings.jacobi_passes, num_refined)):
        states = rows.branch(thoughts[:, None, :num_refined])[:, 0]
        thoughts = torch.cat((first, states), dim=1)
    return thoughts


def generate_with_thoughts(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    settings: AnswerSettings,
    *,
    stop_classifier: nn.Module | None = None,
    track: Callable[[Iterator[list[int]]], Iterable[list[int]]] = iter,
) -> list[Answer]:
    """Answer every prompt.

    Args:
        model: on its device, in its precision; or its tensor-parallel part, on all ranks together.
        prompts: token ids of each row up to its first slot: the question, and <bot> where the method has markers.
        settings: how.
        stop_classifier: states [..., d] after a thought to [..., 1] logits: above 0, that thought was the last one. A
            row has at least one, if there are slots of thoughts at all. No text can be forced after them.
        track: wraps the iterator of steps, one for each pass that gives new tokens; to show progress.

    Returns:
        The answers, in the order of the prompts.

    Raises:
        ValueError: a prompt is empty or outside the vocabulary, or a row outgrows the model's table of positions.
    """
    assert stop_classifier is None or not settings.forced_text
    num_new = (
        (settings.num_thoughts if settings.slots == "thought" else 0) + len(settings.script) + settings.max_new_tokens
    )
    check_prompts(model, prompts, settings.vocab_size, num_new - 1)  # the last new token is never an input
    writing = _Writing(len(prompts), settings)
    is_thinking = (
        stop_classifier is not None
        and settings.jacobi_passes is None
        and settings.slots == "thought"
        and settings.num_thoughts > 0
    )
    with torch.inference_mode():
        rows = Rows(model, prompts, num_new, settings.num_loops)
        if is_thinking:
            states = rows.feed(rows.embed(rows.prompts))[:, -1]
        else:
            states, _, num_thoughts = think(rows, settings, stop_classifier)
            for answer, number in zip(writing.answers, num_thoughts, strict=True):
                answer.num_thoughts = number
        for _ in track(_write(rows, states, settings, stop_classifier if is_thinking else None, writing.take)):
            pass
    return writing.answers


class _Writing:
    """The answers of a batch while they are written."""

    def __init__(self, num_rows: int, settings: AnswerSettings) -> None:
        self.answers = [Answer() for _ in range(num_rows)]
        self._is_open = [True] * num_rows
        self._settings = settings

    def take(self, tokens: list[int]) -> bool:
        """Give every open row its token; whether one is still open."""
        settings, is_open = self._settings, self._is_open
        for row, (answer, token) in enumerate(zip(self.answers, tokens, strict=True)):
            if not is_open[row] or token == settings.eot_id:
                continue
            if token == THINKS:
                answer.num_thoughts += 1
            elif token == settings.eos_id:
                answer.is_over, is_open[row] = True, False
            else:
                answer.text.append(token)
                is_open[row] = len(answer.text) < settings.max_new_tokens
        return any(is_open)


def _write(
    rows: Rows,
    states: Tensor,
    settings: AnswerSettings,
    stop_classifier: nn.Module | None,
    take: Callable[[list[int]], bool],
) -> Iterator[list[int]]:
    """One new token of every row at a time, until `take` says that all have ended; with a classifier, first thoughts.

    Args:
        rows: up to their first thought or to their text.
        states: [b, d], the last ones.
        settings: of the answers.
        stop_classifier: ends the thoughts.
        take: gets the new tokens.
    """
    is_thinking = torch.full((len(states), 1), stop_classifier is not None, device=states.device)
    for num_thoughts in count():  # of the rows that still think
        logits = rows.model.all_logits(states)[:, : settings.vocab_size]
        if settings.eot_id is not None:
            logits[:, settings.eot_id] = -torch.inf
        chosen = logits.argmax(dim=-1, keepdim=True)
        if stop_classifier is not None and num_thoughts <= settings.num_thoughts:
            assert settings.eot_id is not None
            thinks_on = is_thinking & (num_thoughts < settings.num_thoughts)
            if num_thoughts:
                thinks_on &= stop_classifier(states) <= 0
            chosen = torch.where(thinks_on, THINKS, torch.where(is_thinking, settings.eot_id, chosen))
            is_thinking = thinks_on
        new = chosen.flatten().tolist()
        goes_on = take(new)
        yield new
        if not goes_on:
            return
        inputs = torch.where(is_thinking[..., None], states[:, None], rows.embed(chosen.clamp_min(0)))
        states = rows.feed(inputs)[:, -1]
