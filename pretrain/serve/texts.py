"""Text from tokens as they come: a letter is handed out when it is whole, and what may begin a stop string is kept
back until it is clear that it does not."""

from collections.abc import Sequence

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.generation.stop_strings import cut_at

BROKEN = "\ufffd"
"""In place of bytes that are no letter yet."""
LONGEST_LETTER = 4
"""Bytes."""


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: of the model.
        stops: strings at which the text ends; they are no part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens: list[int] = []
        self._text = ""
        """Handed out so far."""

    def add(self, tokens: Sequence[int], *, is_last: bool) -> str:
        """What the next tokens add to the text, as far as it is sure."""
        self._tokens += tokens
        whole = self._tokenizer.decode(self._tokens)
        cut = cut_at(whole, self._stops)
        end = len(cut)
        if not is_last and len(cut) == len(whole):
            end -= self._kept_back(whole)
        new = cut[len(self._text) : max(end, len(self._text))]
        self._text += new
        return new

    def _kept_back(self, text: str) -> int:
        """Letters at the end of a text that what follows may change."""
        broken = len(text) - len(text.rstrip(BROKEN))
        begun = [
            size
            for stop in self._stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ]
        return max([broken if broken <= LONGEST_LETTER else 0, *begun])
