"""The project's own tokenizer: SentencePiece with byte fallback, exact on every text, with the project's special ids.

Encoding: 1. cut the text after runs of newlines, which no piece crosses, so that the ids are those of the whole text
(for a unigram model, without the rounding errors that SentencePiece's sums gather over a long text); 2. encode each
part; 3. join. Short parts stay in the processor's cache: twice the speed of encoding a novel in one call. A literal
U+2581, which SentencePiece uses for the space, is written as its three bytes. Hence decode(encode(text)) == text for
every text. No text gives a special id: those are control symbols, which SentencePiece never finds in text. Training:
`pretrain/data/tokenizers/train.py`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from sentencepiece import SentencePieceProcessor

from pretrain.data.tokenizers.tokenizer import THOUGHT_TOKENS, Tokenizer

SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", *THOUGHT_TOKENS)
"""Reserved pieces; their ids are 0, 1, 2, ... in this order."""

SPACE_MARK = "\u2581"
WHITESPACE_PIECES = ("\n", "\n\n", "\t")
"""Whitespace with pieces of its own, which never merges with its neighbours."""

# Part of a text that is encoded at once: some 400 characters, to the end of the line, and all newlines that follow.
PART = re.compile(r"(?s:.{1,400})[^\n]*\n*")


class SentencePieceTokenizer(Tokenizer):
    """A trained tokenizer. Cheap to load in every process: only the model file's bytes."""

    def __init__(self, model: bytes) -> None:
        """Args: model, the bytes of a file that `train_tokenizer` wrote. Use `Tokenizer.load` for a file."""
        self.model = model
        self.processor = SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError("it is not a SentencePiece model") from None
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size = len(self.processor)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = range(4)
        pieces = [self.processor.IdToPiece(number) for number in range(min(len(SPECIALS), self.vocab_size))]
        if tuple(pieces) != SPECIALS:
            raise ValueError(f"its first pieces are {' '.join(pieces)}, not {' '.join(SPECIALS)}")
        self._space_mark_ids = [self.processor.PieceToId(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        if self.unk_id in self._space_mark_ids:
            raise ValueError("it has no byte fallback")

    def thought_id(self, name: str) -> int:
        return SPECIALS.index(name)

    def iterate(self, text: str) -> Iterator[int]:
        """The ids of `encode`, each part of the text encoded when it is reached; a lone surrogate raises at once."""
        text.encode()  # SentencePiece would call a lone surrogate "not a string"
        first, *others = (self._encode_parts(stretch) for stretch in text.split(SPACE_MARK))
        return chain(first, *(chain(self._space_mark_ids, other) for other in others))

    def _encode_parts(self, text: str) -> Iterator[int]:
        return chain.from_iterable(self.processor.Encode(part) for part in PART.findall(text))

    def decode(self, ids: Iterable[int]) -> str:
        # Without the special ids, so that one between two bytes of a character does not break it.
        return self.processor.Decode([int(number) for number in ids if number >= len(SPECIALS)])
