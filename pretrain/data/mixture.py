"""How the sources of a run are mixed: their weights, by temperature too, and their budgets.

    weight      w_i, or w_i · n_i^(1/T) of a source of n_i tokens with data.temperature=T (Arivazhagan et al. 2019,
                "Massively Multilingual Neural Machine Translation in the Wild", arXiv:1907.05019)
    budget      a stream's part of max_tokens, in samples, or max_epochs of its walk; a source that a stream has used up
                is left out of that stream's draws, so the others get its share in their proportions

Both follow from the configuration, the manifests and the cursors of the stream that a sample is of. A stream lies
whole on a rank and its cursors are saved, so neither the number of ranks nor a restart shows.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from pretrain.config.data import DataSection, SourceSection
from pretrain.data.stream import order
from pretrain.data.stream.cursor import Cursor


def mixture_weights(data: DataSection, num_tokens: Sequence[int | None]) -> tuple[float, ...]:
    """Weights of the sources in a draw.

    Args:
        data: the sources and the temperature.
        num_tokens: of each source; None of one whose tokens are not counted.

    Raises:
        ValueError: there is a temperature, and a source whose tokens are not known.
    """
    if data.temperature is None:
        return tuple(source.weight for source in data.sources)
    known = []
    for source, tokens in zip(data.sources, num_tokens, strict=True):
        if tokens is None:
            raise ValueError(
                f"{source.path}: holds text, whose tokens data.temperature={data.temperature:g} does not know: prepare "
                "it with a tokenizer, or give weights without a temperature"
            )
        known.append(tokens)
    most = max(*known, 1)
    pairs = zip(data.sources, known, strict=True)
    return tuple(source.weight * (tokens / most) ** (1 / data.temperature) for source, tokens in pairs)


def is_spent(source: SourceSection, cursor: Cursor, stream: int, num_streams: int, seq_len: int) -> bool:
    """Whether a stream has used up its part of the budget of a source."""
    if source.max_epochs is not None and cursor.epoch >= source.max_epochs:
        return True
    if source.max_tokens is None:
        return False
    samples = source.max_tokens // seq_len
    return cursor.samples >= samples // num_streams + (stream < samples % num_streams)


class Mixture:
    """The sources of samples."""

    def __init__(
        self, data: DataSection, num_tokens: Sequence[int | None], *, is_training: bool, seed: int, seq_len: int
    ):
        """Args: data, num_tokens: as of `mixture_weights`; is_training: whether budgets count."""
        self._data, self._seed, self._seq_len = data, seed, seq_len
        self._weights = mixture_weights(data, num_tokens)
        self._budgets = [number for number, source in enumerate(data.sources) if is_training and source.has_budget]

    def draw(self, samples: np.ndarray) -> list[int]:
        """The source of each sample, as if there were no budgets."""
        return order.draw_sources(samples, self._weights, self._seed).tolist()

    def within_budget(self, sample: int, drawn: int, cursor: Callable[[int, int], Cursor]) -> int:
        """The source of a sample for which one was drawn: drawn again, by the same number, among the sources of which
        its stream has not used up its part, if there are others. `cursor` is that of a stream and a source."""
        if not self._budgets:
            return drawn
        data, stream = self._data, sample % self._data.num_streams
        spent = [
            number
            for number in self._budgets
            if is_spent(data.sources[number], cursor(stream, number), stream, data.num_streams, self._seq_len)
        ]
        if not spent:
            return drawn
        weights = tuple(0.0 if number in spent else weight for number, weight in enumerate(self._weights))
        return int(order.draw_sources(np.array([sample]), weights, self._seed)[0])


def expected_tokens(total: float, weights: Sequence[float], budgets: Sequence[float]) -> list[float]:
    """Tokens of each source among `total` of a run, on average over seeds: until a budget is used up the sources are
    read in proportion to their weights, then the others are.

    Args:
        total: tokens of the run.
        weights: of the sources.
        budgets: the most tokens of each; infinity of one without a budget. One at least has none.
    """
    taken, left = [0.0] * len(weights), total
    open_sources = [number for number, budget in enumerate(budgets) if budget > 0]
    while left > 0 and open_sources:
        all_weights = sum(weights[number] for number in open_sources)
        if not all_weights:
            break
        shares = {number: weights[number] / all_weights for number in open_sources}
        ends = [(budgets[number] - taken[number]) / share if share else math.inf for number, share in shares.items()]
        step = min(left, *ends)
        for number, share in shares.items():
            taken[number] += step * share
        left -= step
        open_sources = [number for number, end in zip(open_sources, ends, strict=True) if end > step]
    return taken
