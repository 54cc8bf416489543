"""A tokenizer over a short list of symbols: one id a symbol, for tasks that are trained on alone (digits, letters,
elements of a group).

The file is one JSON object with the symbols. Encoding takes the longest symbol at each place; text that is not made of
symbols is an error, so nothing is lost: decode(encode(text)) == text. Ids: the special ones in the order of SPECIALS,
then the symbols in their order.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from pretrain.data.tokenizers.tokenizer import FORMAT_VERSION, THOUGHT_TOKENS, Tokenizer, read_fields

FORMAT = "looped-symbol-tokenizer"
SPECIALS = ("<pad>", "<bos>", "<eos>", *THOUGHT_TOKENS)
"""Names of the special ids 0, 1, 2, ..., which no text gives."""


class SymbolTokenizer(Tokenizer):
    """A tokenizer over symbols."""

    is_of_symbols = True

    def __init__(self, content: bytes) -> None:
        """Args: content, the bytes that `write_symbols` returned. Use `Tokenizer.load` for a file.

        Raises:
            ValueError: they are not of this format.
        """
        self.symbols = _read_symbols(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = len(SPECIALS) + len(self.symbols)
        self.pad_id, self.bos_id, self.eos_id = range(3)
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols, start=len(SPECIALS))}
        longest_first = sorted(self.symbols, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def thought_id(self, name: str) -> int:
        return SPECIALS.index(name)

    def iterate(self, text: str) -> Iterator[int]:
        """The ids of `encode`, all of them at once.

        Raises:
            ValueError: naming the place where no symbol begins.
        """
        found = self._pattern.findall(text)
        if sum(map(len, found)) != len(text):
            raise ValueError(self._misfit(text))
        return iter([self._ids[symbol] for symbol in found])

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self.symbols[number - len(SPECIALS)] for number in ids if number >= len(SPECIALS)])

    def _misfit(self, text: str) -> str:
        place = 0
        while match := self._pattern.match(text, place):
            place = match.end()
        symbols = " ".join(map(repr, self.symbols[:20])) + (" ..." if len(self.symbols) > 20 else "")
        return f"character {place}: {text[place : place + 20]!r} begins with none of the tokenizer's symbols {symbols}"


def write_symbols(symbols: Sequence[str]) -> bytes:
    """The bytes of a tokenizer file for texts of these symbols, the vocabulary of a task, say.

    Raises:
        ValueError: there is none, one is empty or two are the same.
    """
    fields = {"format": FORMAT, "version": FORMAT_VERSION, "symbols": list(symbols)}
    content = json.dumps(fields, ensure_ascii=True, indent=1).encode()
    _read_symbols(content)
    return content


def is_symbol_file(content: bytes) -> bool:
    """Whether bytes that begin like JSON are meant as a file of this kind."""
    return FORMAT.encode() in content[:100]


def _read_symbols(content: bytes) -> tuple[str, ...]:
    symbols = read_fields(content, FORMAT, ()).get("symbols")
    is_list = isinstance(symbols, list) and all(isinstance(symbol, str) and symbol for symbol in symbols)
    if not symbols or not is_list:
        raise ValueError("its symbols are not a list of texts, none of them empty")
    twice = next((symbol for number, symbol in enumerate(symbols) if symbol in symbols[:number]), None)
    if twice is not None:
        raise ValueError(f"its symbols hold {twice!r} twice")
    return tuple(symbols)
