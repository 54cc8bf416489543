"""Framing: a document as the stream lays it end to end with others: `bos tokens eos`, or `separator tokens` where bos
and eos are one.

Raw text is encoded as far as it is read, a few thousand tokens at a time: the first sample of a book costs its first
pages, not the book.
"""

import io
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from pretrain.data.shards import EXTENSIONS
from pretrain.data.stream.long_documents import DocumentPiece, text_range, token_range
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.storage import parse_json

ENCODE_TOKENS = 4096
"""Tokens of raw text that are made at once."""


class FramedDocument:
    """The tokens of one document, read forward."""

    def __init__(self, ready: np.ndarray, rest: Iterator[int] | None = None) -> None:
        """Args: ready: the first tokens, int32; rest: those that follow."""
        self._ready, self._rest = ready, rest or iter(())
        self._start = 0  # place of the first ready token in the document

    def read(self, offset: int, count: int) -> np.ndarray:
        """At most `count` tokens from `offset` on, int32; fewer only at the document's end. Offsets never fall between
        two calls."""
        missing = offset + count - self._start - len(self._ready)
        if missing > 0:
            more = np.fromiter(islice(self._rest, max(missing, ENCODE_TOKENS)), np.int32)
            if len(more):
                kept = min(offset - self._start, len(self._ready))
                self._ready, self._start = np.concatenate((self._ready[kept:], more)), self._start + kept
        return self._ready[offset - self._start :][:count]


WHOLE = DocumentPiece(0, 1)


def frame_document(
    payload: bytes, extension: int, tokenizer: Tokenizer, piece: DocumentPiece = WHOLE
) -> FramedDocument:
    """Frame a document, or a piece of one: a payload of `read_document`, and the index's `extension`, a position in
    EXTENSIONS.

    Raises:
        ValueError, KeyError, TypeError, IndexError: the payload is not of its format.
    """
    closing = () if tokenizer.separators.are_one else (tokenizer.eos_id,)
    if EXTENSIONS[extension] == "npy":
        tokens = np.load(io.BytesIO(payload), allow_pickle=False)
        if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
            raise ValueError(f"an array of {tokens.dtype} and shape {list(tokens.shape)} is not a list of token ids")
        smallest, largest = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        if smallest < 0 or largest >= tokenizer.vocab_size:
            beyond = largest if smallest >= 0 else smallest
            raise ValueError(f"token id {beyond} is beyond the {tokenizer.vocab_size} tokens of the vocabulary")
        start, stop = token_range(piece, len(tokens))
        closing = closing if stop == len(tokens) else ()
        tokens = tokens[start:stop]
        framed = np.empty(1 + len(tokens) + len(closing), dtype=np.int32)
        framed[0], framed[1 : 1 + len(tokens)], framed[1 + len(tokens) :] = tokenizer.bos_id, tokens, closing
        return FramedDocument(framed)
    text = read_text(payload, extension)
    if piece.total > 1:
        start, stop = text_range(piece, text)
        if start == stop:
            return FramedDocument(np.empty(0, dtype=np.int32))
        closing = closing if stop == len(text) else ()
        text = text[start:stop]
    return FramedDocument(np.array([tokenizer.bos_id], dtype=np.int32), chain(tokenizer.iterate(text), closing))


def read_text(payload: bytes, extension: int) -> str:
    """The text of a document that is not of tokens; arguments and errors as of `frame_document`."""
    return payload.decode("utf-8") if EXTENSIONS[extension] == "txt" else parse_json(payload)["text"]
