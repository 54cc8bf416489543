"""The tokenizer as the rest of the project knows it: text to ids and back, and the special ids that frame documents and
thoughts.

Three kinds: SentencePiece models that this project trains (`pretrain/data/tokenizers/sentencepiece.py`), byte-pair
tokenizers of published models (`pretrain/data/tokenizers/published.py`) and lists of symbols for tasks
(`pretrain/data/tokenizers/symbols.py`). Each is one file, told apart by its content.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pretrain.config.run import SYMBOLS_PREFIX
from pretrain.data.tokenizers.usage import Usage
from pretrain.storage import is_there, parse_json, read_file, require_missing

FORMAT_VERSION = 1
"""Of the tokenizer files that are JSON objects of ours."""
THOUGHT_TOKENS = ("<bot>", "<eot>", "<latent>", "<pause>")
"""Begin and end of latent thoughts, the slot of one, and a pause."""


@dataclass(frozen=True, kw_only=True)
class Separators:
    """The ids that tell documents laid end to end apart."""

    bos_id: int
    """Begins a document."""
    eos_id: int
    """Ends it. Where it is the same as bos, one separator ends a document and begins the next."""

    @property
    def are_one(self) -> bool:
        return self.bos_id == self.eos_id


def read_tokenizer(name: str | PathLike[str]) -> bytes:
    """The bytes of a tokenizer: of its file, or of one that a name such as "symbols:0123456789+=" spells out.

    Raises:
        OSError: the file cannot be read.
        ValueError: no symbols are named, or one twice.
    """
    text = str(name)
    if text.startswith(SYMBOLS_PREFIX):
        from pretrain.data.tokenizers.symbols import write_symbols

        try:
            return write_symbols(text.removeprefix(SYMBOLS_PREFIX))
        except ValueError as error:
            raise ValueError(f"tokenizer {text}: {error}") from None
    return read_file(Path(name))


def require_tokenizer_file(name: str | PathLike[str]) -> None:
    """Raise a ValueError that names the file and what to do if there is no such tokenizer. What it is, is not read."""
    if not str(name).startswith(SYMBOLS_PREFIX) and (not is_there(Path(name)) or Path(name).is_dir()):
        raise _no_tokenizer(name)


def _no_tokenizer(name: str | PathLike[str]) -> ValueError:
    return ValueError(f"{name}: no such tokenizer file; make one with tools/train_tokenizer.py")


def read_fields(content: bytes, file_format: str, names: Collection[str]) -> dict[str, Any]:
    """The fields of a tokenizer file that is a JSON object.

    Raises:
        ValueError: it is not of this format and version, or lacks one of `names`.
    """
    try:
        fields = parse_json(content)
    except ValueError:
        raise ValueError("it is not JSON") from None
    if not isinstance(fields, dict) or fields.get("format") != file_format:
        raise ValueError(f"its format is not {file_format}")
    if fields.get("version") != FORMAT_VERSION:
        raise ValueError(f"its version is {fields.get('version')}, this project reads {FORMAT_VERSION}")
    if missing := set(names) - fields.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return fields


class Tokenizer(ABC):
    """A tokenizer, loaded. Its ids are 0 to vocab_size - 1."""

    sha256: str
    """Of the file's bytes: two tokenizers are the same if it is."""
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    adds_bos: bool = True
    """Whether a text begins with bos where nothing else is said, as the documents of pretraining do."""
    usage: Usage = Usage()
    """What a publisher says of its use."""
    is_of_symbols: ClassVar[bool] = False
    """Whether every token is a symbol of a list; else it is of one byte of text or more, joined as training found."""

    @staticmethod
    def load(path: str | PathLike[str]) -> "Tokenizer":
        """Load a tokenizer file of any kind.

        Raises:
            ValueError: naming the file and what to do, if it is missing or not a tokenizer of ours.
            OSError: it cannot be read.
        """
        try:
            content = read_tokenizer(path)
        except (FileNotFoundError, IsADirectoryError):
            if not Path(path).is_dir():
                require_missing(Path(path))
            raise _no_tokenizer(path) from None
        try:
            return Tokenizer.from_bytes(content)
        except ValueError as error:
            maker = "tools/convert_checkpoint.py import" if content.startswith(b"{") else "tools/train_tokenizer.py"
            raise ValueError(f"{path}: not a tokenizer of this project: {error}; make one with {maker}") from None

    @staticmethod
    def from_bytes(content: bytes) -> "Tokenizer":
        """A tokenizer of any kind from the bytes of its file.

        Raises:
            ValueError: they are not one of ours.
        """
        # The kinds build on this module, and a process needs the library of one of them only.
        if content.startswith(b"{"):
            from pretrain.data.tokenizers.symbols import SymbolTokenizer, is_symbol_file

            if is_symbol_file(content):
                return SymbolTokenizer(content)
            from pretrain.data.tokenizers.published import PublishedTokenizer

            return PublishedTokenizer(content)
        from pretrain.data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(content)

    @property
    def separators(self) -> Separators:
        return Separators(bos_id=self.bos_id, eos_id=self.eos_id)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: eos, and those that a published model ends with too."""
        return tuple(dict.fromkeys((self.eos_id, *self.usage.end_ids)))

    @property
    def special_names(self) -> dict[str, str]:
        """How bos and eos are spelled in the markup of a chat."""
        return {}

    def encode_markup(self, text: str) -> list[int]:
        """Token ids of a text in which the names of special tokens stand for them.

        Raises:
            ValueError: this kind of tokenizer has none.
        """
        raise ValueError("this tokenizer has no special tokens that a text can name")

    @property
    def bot_id(self) -> int:
        return self.thought_id("<bot>")

    @property
    def eot_id(self) -> int:
        return self.thought_id("<eot>")

    @property
    def latent_id(self) -> int:
        return self.thought_id("<latent>")

    @property
    def pause_id(self) -> int:
        return self.thought_id("<pause>")

    @abstractmethod
    def thought_id(self, name: str) -> int:
        """Id of one of THOUGHT_TOKENS.

        Raises:
            ValueError: the tokenizer was made without them.
        """

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without bos and eos; never a special id.

        Raises:
            UnicodeEncodeError: a ValueError, if the text holds a lone surrogate, which UTF-8 cannot write.
            ValueError: it holds what none of a list of symbols spells.
        """
        return list(self.iterate(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, int32 [tokens]; in this thread only, so that processes do not crowd each other."""
        return [np.fromiter(self.iterate(text), np.int32) for text in texts]

    @abstractmethod
    def iterate(self, text: str) -> Iterator[int]:
        """The ids of `encode`, made as they are asked for where the kind allows it; a lone surrogate raises at once."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids. Special ids vanish; bytes that are not UTF-8 become U+FFFD."""
