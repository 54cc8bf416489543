"""Generating text: prompts of any lengths in one cached batch, at any loop count, each row as if it were alone.

1. Prompts are padded on the left to one length. No token attends to padding, and each row counts its own positions.
2. One pass over the prompts fills the key/value cache; then one pass per new token. Every loop has its own keys and
   values unless `model.loop.keys` says otherwise, so a cache of N tokens holds N · `ModelSection.cached_depth` of them,
   and those of windows (`model.loop.keys_window`).
3. The next token is the likeliest one (temperature 0), or the quantile of the tempered distribution, cut to top k and
   then top p, at one uniform number: a hash of (seed, row number, position), independent of the batch and the device.
4. A row ends at an end-of-sequence token, or where the caller decides; the batch ends with its last row.

Logits of a row equal those of the row alone up to the rounding of matrix products, which may differ between batch
sizes; in low precision that can decide between two tokens of nearly equal probability.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pretrain.keyed_hash import open_uniform
from pretrain.model.gpt import LoopedGPT
from pretrain.model.layers import KeyValueCache
from pretrain.model.loop.recurrence import Application


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How text is generated.

    Raises:
        ValueError: a setting is out of range.
    """

    max_new_tokens: int
    """Longest continuation, in tokens; with rotary positions it may exceed the trained train.seq_len."""
    vocab_size: int
    """Tokens of the tokenizer; the model may have more rows, which are never chosen."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a row."""
    num_loops: int | None = None
    """L. Default: model.num_loops."""
    temperature: float = 0.0
    """Logits are divided by it; 0 = always the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have at least this probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """Draw among so many of the likeliest, of which top_p is a share; 0 = all."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: needs 0 (always the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: needs a probability above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: needs a number of tokens, or 0 for all")


class Decoder(Protocol):
    """What runs the model for generation."""

    def __call__(
        self, tokens: Tensor, num_loops: int | None, *, positions: Tensor, mask: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        """[b, vocabulary] logits after the last of `tokens` [b, s]; the other arguments as of `LoopedGPT.forward`."""
        ...


def decoder_of(model: LoopedGPT) -> Decoder:
    """A model that this process holds whole (or its tensor-parallel part, then on all ranks together)."""

    def decode(
        tokens: Tensor, num_loops: int | None, *, positions: Tensor, mask: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        states = model(tokens, num_loops, positions=positions, mask=mask, cache=cache)
        return model.all_logits(states.view(*tokens.shape, -1)[:, -1])

    return decode


def generate(
    model: LoopedGPT,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    decoder: Decoder | None = None,
    row_numbers: Sequence[int] | None = None,
    is_over: Callable[[list[int]], bool] = lambda _: False,
    track: Callable[[Iterator[list[int]]], Iterable[list[int]]] = iter,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: on its device, in its precision; or this rank's stage of it.
        prompts: token ids of each row, at least one.
        settings: how.
        decoder: runs the model. Default: `decoder_of` it.
        row_numbers: numbers of the rows in the whole job, for their draws; 0, 1, ... by default.
        is_over: asked of a row's new tokens after each one; True ends the row.
        track: wraps the iterator of steps, one for each new token of the batch; to show progress.

    Returns:
        The new token ids of each row, without the end-of-sequence token.

    Raises:
        ValueError: a prompt is empty or outside the vocabulary, or the rows outgrow the model's table of positions.
    """
    assert settings.max_new_tokens > 0
    # the last new token is never an input
    check_prompts(model, prompts, settings.vocab_size, settings.max_new_tokens - 1)
    rows: list[list[int]] = [[] for _ in prompts]
    is_open = [True] * len(prompts)
    device = next(model.parameters()).device
    steps = _decode(decoder or decoder_of(model), device, prompts, settings, row_numbers or range(len(prompts)))
    for tokens in track(steps):
        for row, token in enumerate(tokens):
            is_open[row] = is_open[row] and token not in settings.end_ids
            if is_open[row]:
                rows[row].append(token)
                is_open[row] = not is_over(rows[row])
        if not any(is_open):
            break
    return rows


@torch.inference_mode()
def _decode(
    decoder: Decoder, device: torch.device, prompts: Sequence[Sequence[int]], settings: Generation,
    row_numbers: Sequence[int],
) -> Iterator[list[int]]:  # fmt: skip
    """One new token of every row at a time."""
    steps, chosen = next_logits(decoder, device, prompts, settings.num_loops, settings.max_new_tokens), None
    for position in range(settings.max_new_tokens):
        logits = next(steps) if chosen is None else steps.send(chosen)
        draws = [draw_uniform(settings.seed, row, position) for row in row_numbers]
        uniforms = torch.tensor(draws, dtype=torch.float64, device=device)
        chosen = choose_tokens(logits[:, : settings.vocab_size], settings, uniforms)
        yield chosen.tolist()


def next_logits(
    decoder: Decoder, device: torch.device, prompts: Sequence[Sequence[int]], num_loops: int | None, num_new: int
) -> Generator[Tensor, Tensor, None]:
    """Logits [b, v] of the next token of every row, `num_new` times; is sent the tokens [b] that were chosen."""
    tokens, padding = pad_left(prompts, device)
    longest = tokens.shape[1]
    places = torch.arange(longest + num_new, device=device)  # of a token in the padded row
    positions = (places - padding[:, None]).clamp_min(0)  # of a token in its own row, [b, longest + new]
    visible = places >= padding[:, None]  # [b, longest + new]
    mask = None
    if padding.any():
        causal = places[:longest] <= places[:longest, None]
        # padding looks at itself: a query without keys has no softmax
        itself = places[:longest] == places[:longest, None]
        mask = (causal & visible[:, None, :longest] | itself)[:, None]
    cache = GenerationCache(capacity=len(places))
    start = 0
    for stop in range(longest, len(places)):
        chosen = yield decoder(tokens, num_loops, positions=positions[:, start:stop], mask=mask, cache=cache)
        tokens, mask, start = chosen[:, None], visible[:, None, None, : stop + 1], stop


def check_prompts(model: LoopedGPT, prompts: Sequence[Sequence[int]], vocab_size: int, num_new: int) -> None:
    """Raise a ValueError if a prompt is empty or outside the vocabulary, or with `num_new` positions more longer than
    the model's table."""
    assert prompts
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {row} has no token: begin it with the begin-of-sequence token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompt {row} has tokens {min(prompt)} to {max(prompt)}, the vocabulary has {vocab_size}")
    if model.position_embedding is not None:
        num_positions = len(model.get_parameter("position_embedding.weight"))
        wanted = max(map(len, prompts)) + num_new
        if wanted > num_positions:
            raise ValueError(
                f"prompt and continuation may have {wanted} tokens, but the model learned {num_positions} positions: "
                "shorten the prompt or lower the number of new tokens"
            )


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of one length: [b, longest] token ids, and [b] the number of zeros before each."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * missing + list(prompt) for missing, prompt in zip(padding, prompts, strict=True)]
    return torch.tensor(rows, device=device), torch.tensor(padding, device=device)


def choose_tokens(logits: Tensor, settings: Generation, uniforms: Tensor) -> Tensor:
    """The next token of each row.

    Args:
        logits: [b, v].
        settings: how to choose.
        uniforms: [b] numbers in (0, 1), fp64; not looked at when the temperature is 0.

    Returns:
        [b] token ids.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    sorted_logits, order = logits.double().sort(dim=-1, descending=True, stable=True)
    if settings.top_k:
        sorted_logits[:, settings.top_k :] = -torch.inf
    cumulative = (sorted_logits / settings.temperature).softmax(dim=-1).cumsum(dim=-1)  # [b, v]
    num_kept = (cumulative < settings.top_p).sum(dim=-1, keepdim=True).clamp_max(logits.shape[-1] - 1) + 1
    targets = uniforms[:, None] * cumulative.gather(-1, num_kept - 1)
    places = torch.searchsorted(cumulative, targets).minimum(num_kept - 1)
    return order.gather(-1, places).squeeze(-1)


def draw_uniform(seed: int, row: int, position: int) -> float:
    """A number strictly between 0 and 1 that depends on its arguments alone."""
    return open_uniform(f"sampling/{seed}/{row}/{position}")


class GenerationCache(KeyValueCache):
    """Keys and values in memory allocated once, for `capacity` tokens with padding; overwritten in place, so not for
    training. Of windows it keeps the newest positions, or all if it `forgets`: where some are hidden or taken back."""

    def __init__(self, *, capacity: int, forgets: bool = False) -> None:
        super().__init__()
        self._capacity, self._num_rows, self._forgets = capacity, 0, forgets
        self._filled: dict[int, int] = {}  # positions of each application, in order
        self._rolled: set[int] = set()  # applications whose newest positions alone are kept
        self.rows: Tensor | None = None
        """Numbers of the rows [n] that keys and values are of, in the batch that the cache began with; None: all."""

    @property
    def length(self) -> int:
        return next(iter(self._filled.values()), 0)

    def rewind(self, length: int, applications: Iterable[int] | None = None) -> None:
        """Keep the first `length` positions alone, of all applications or of some."""
        numbers = self._filled.keys() if applications is None else applications
        assert self._rolled.isdisjoint(numbers), "what has left a window does not come back"
        self._filled |= dict.fromkeys(numbers, length)

    def share_newest(self, source: int, target: Application, rows: Tensor) -> None:
        """Give some rows, at the newest position, the keys and values of application `source` in `target` too."""
        if self._filled.get(target.number) != self._filled[source]:
            self._make_room(target, 1, self.entries[source])
        for theirs, ours in zip(self.entries[source], self.entries[target.number], strict=True):
            ours[rows, :, self._last(target.number)] = theirs[rows, :, self._last(source)]

    def extend(self, application: Application, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        number, num_new = application.number, keys.shape[2]
        self._make_room(application, num_new, (keys, values))
        rows = slice(None) if self.rows is None else self.rows
        stop = self._last(number) + 1
        for ours, new in zip(self.entries[number], (keys, values), strict=True):
            ours[rows, :, stop - num_new : stop] = new
        found = self.read(number)
        if application.window is not None and number in self._rolled:
            self.entries[number] = _newest(self.entries[number], application.window)
        return found

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        (all_keys, all_values), stop = self.entries[number], self._last(number) + 1
        rows = slice(None) if self.rows is None else self.rows
        return all_keys[rows, :, :stop], all_values[rows, :, :stop]

    def _last(self, number: int) -> int:
        """The column of an application's newest position."""
        return (self.entries[number][0].shape[2] if number in self._rolled else self._filled[number]) - 1

    def _make_room(self, application: Application, num_new: int, like: tuple[Tensor, Tensor]) -> None:
        """Give an application new positions, still to be filled, for keys and values like these [b, g, s, e]."""
        number, window = application.number, application.window
        self._filled[number] = self._filled.get(number, 0) + num_new
        self._num_rows = self._num_rows or len(like[0])
        rolls = window is not None and not self._forgets
        if number in self.entries and not rolls:
            return
        size = num_new if rolls else self._capacity
        keys, values = (each.new_empty(self._num_rows, each.shape[1], size, each.shape[3]) for each in like)
        if window is not None and number in self._rolled:
            old_keys, old_values = _newest(self.entries[number], window - 1)
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        if rolls:
            self._rolled.add(number)
        self.entries[number] = keys, values


def _newest(entry: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The newest `count` positions of keys and values [b, g, s, e], or all if they are fewer."""
    keys, values = (each[:, :, max(0, each.shape[2] - count) :] for each in entry)
    return keys, values
