"""Strings that end a text."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.data.tokenizers.tokenizer import Tokenizer

_LOOK_BACK = 8
"""Tokens of text before a stop string that are decoded with it, at least."""


@dataclass(frozen=True)
class StopStrings:
    """Whether new tokens hold one of some strings; picklable, so that every rank stops at the same token."""

    tokenizer: Tokenizer
    strings: tuple[str, ...]

    def __call__(self, tokens: list[int]) -> bool:
        if not self.strings:
            return False
        window = _LOOK_BACK + max(len(text.encode()) for text in self.strings)  # a token is a byte at least
        text = self.tokenizer.decode(tokens[-window:])
        return any(string in text for string in self.strings)


def cut_at(text: str, strings: Sequence[str]) -> str:
    """A text up to the first of some strings."""
    for string in strings:
        text = text.split(string)[0]
    return text
